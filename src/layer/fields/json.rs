//! Fields of JSON bodies, and the canonical form of a JSON value.
//!
//! ```text
//! value   = null | false | true | number | string | array | object | left-out   (a tag each)
//! number  = sign exponent digits        (digits without zeros at either end)
//!         | its text                    (when the exponent does not fit 64 bits)
//! string  = length bytes                (escapes undone)
//! array   = count *value
//! object  = count *(length name value)  (by name)
//! ```
//!
//! No value is built of a body: serde_json checks it once, without recursion, and hands out the
//! parts that matter as pieces of its text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Blank, Field, FieldError, MAX_LEVELS, PRESENT, feed_absent};
use crate::format::digest::Digest;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const NUMBER: u8 = 3;
const NUMBER_AS_TEXT: u8 = 4;
const STRING: u8 = 5;
const ARRAY: u8 = 6;
const OBJECT: u8 = 7;
const LEFT_OUT: u8 = 8;

/// The tokens of a pointer that are still to be followed.
type Tokens<'t> = &'t [String];

/// Feeds the `fields` of a body in their order, and returns how many were there.
pub(super) fn select(
    body: &[u8],
    fields: &[Field],
    blank: Blank,
    digest: &mut Digest,
) -> Result<usize, FieldError> {
    let values = match blank {
        Blank::IsAbsent if body.trim_ascii().is_empty() => vec![None; fields.len()],
        _ => locate(document(body)?, fields)?,
    };
    let mut found = 0;
    for (field, value) in fields.iter().zip(values) {
        match value {
            None => feed_absent(field, digest)?,
            Some(value) if blank == Blank::IsAbsent && is_blank(value, MAX_LEVELS)? => {
                feed_absent(field, digest)?;
            }
            Some(value) => {
                digest.tag(PRESENT);
                feed(value, &[], MAX_LEVELS, digest)?;
                found += 1;
            }
        }
    }
    Ok(found)
}

/// Feeds all of a body but the fields `left_out`. The place of an element that is left out of an
/// array still counts.
pub(super) fn without(
    body: &[u8],
    left_out: &[Field],
    digest: &mut Digest,
) -> Result<(), FieldError> {
    let left_out: Vec<_> = left_out.iter().map(Field::tokens).collect();
    feed(document(body)?, &left_out, MAX_LEVELS, digest)
}

/// Whether a value holds nothing. One that nests deeper than `levels` is said to hold something;
/// it is refused when it is fed.
fn is_blank(value: &str, levels: usize) -> Result<bool, FieldError> {
    let Some(levels) = levels.checked_sub(1) else {
        return Ok(false);
    };
    let all_blank = |values: &mut dyn Iterator<Item = &RawValue>| {
        for value in values {
            if !is_blank(value.get(), levels)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match value.as_bytes().first() {
        Some(b'n') => Ok(true),
        Some(b'"') => parse(value).map(|Text(text)| text.trim().is_empty()),
        Some(b'[') => {
            let elements: Vec<&RawValue> = parse(value)?;
            all_blank(&mut elements.into_iter())
        }
        Some(b'{') => {
            let Members(members) = parse(value)?;
            all_blank(&mut members.into_iter().map(|(_, value)| value))
        }
        _ => Ok(false),
    }
}

/// The text of a body that is one JSON value, without white space around it.
fn document(body: &[u8]) -> Result<&str, FieldError> {
    let text = std::str::from_utf8(body).map_err(|error| FieldError::Malformed {
        message: error.to_string(),
    })?;
    let document: &RawValue =
        serde_json::from_str(text).map_err(|error| FieldError::Malformed {
            message: error.to_string(),
        })?;
    Ok(document.get())
}

/// The value of each field.
fn locate<'a>(document: &'a str, fields: &[Field]) -> Result<Vec<Option<&'a str>>, FieldError> {
    let mut found = vec![None; fields.len()];
    let paths = fields.iter().map(Field::tokens).enumerate().collect();
    let mut open: Vec<(_, Vec<(usize, Tokens<'_>)>)> = vec![(document, paths)];
    while let Some((value, paths)) = open.pop() {
        let mut wanted = Wanted::new();
        for (field, tokens) in paths {
            match tokens.split_first() {
                None => found[field] = Some(value),
                Some((token, rest)) => wanted.entry(token).or_default().push((field, rest)),
            }
        }
        for (token, child) in pick(value, &wanted)? {
            let paths = wanted.remove(token).ok_or_else(|| ambiguous(token))?;
            open.push((child.get(), paths));
        }
    }
    Ok(found)
}

/// By the next token: the fields that lie there, and the rest of their tokens.
type Wanted<'t> = BTreeMap<&'t str, Vec<(usize, Tokens<'t>)>>;

/// The members or elements of `value` that are wanted, as often as they are there.
fn pick<'a, 't>(
    value: &'a str,
    wanted: &Wanted<'t>,
) -> Result<Vec<(&'t str, &'a RawValue)>, FieldError> {
    if wanted.is_empty() || !value.starts_with(['{', '[']) {
        return Ok(Vec::new());
    }
    serde_json::Deserializer::from_str(value)
        .deserialize_any(Pick(wanted))
        .map_err(|error| half_escape(&error))
}

struct Pick<'w, 't>(&'w Wanted<'t>);

impl<'de, 't> Visitor<'de> for Pick<'_, 't> {
    type Value = Vec<(&'t str, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut picked = Vec::new();
        while let Some(Text(name)) = members.next_key()? {
            match self.0.get_key_value(&*name) {
                Some((token, _)) => picked.push((*token, members.next_value()?)),
                None => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(picked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let indices: BTreeMap<_, _> = self
            .0
            .keys()
            .filter_map(|token| Some((index(token)?, *token)))
            .collect();
        let mut picked = Vec::new();
        for at in 0.. {
            let more = match indices.get(&at) {
                Some(token) => {
                    let element = elements.next_element()?;
                    picked.extend(element.map(|element| (*token, element)));
                    element.is_some()
                }
                None => elements.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(picked)
    }
}

/// The place in an array that a token names. There is one way to write each number, and `-`,
/// the place after the end, is never there.
fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| canonical)
}

/// Feeds the canonical form of `value`, which may nest `levels` deep, without what the pointers
/// `left_out` name in it.
fn feed(
    value: &str,
    left_out: &[Tokens<'_>],
    levels: usize,
    digest: &mut Digest,
) -> Result<(), FieldError> {
    if names_all(left_out) {
        digest.tag(LEFT_OUT);
        return Ok(());
    }
    match value.as_bytes().first() {
        Some(b'n') => digest.tag(NULL),
        Some(b'f') => digest.tag(FALSE),
        Some(b't') => digest.tag(TRUE),
        Some(b'"') => feed_string(value, digest)?,
        Some(b'[') => feed_array(value, left_out, levels, digest)?,
        Some(b'{') => feed_object(value, left_out, levels, digest)?,
        _ => feed_number(value, digest),
    }
    Ok(())
}

fn feed_array(
    value: &str,
    left_out: &[Tokens<'_>],
    levels: usize,
    digest: &mut Digest,
) -> Result<(), FieldError> {
    let levels = levels.checked_sub(1).ok_or(FieldError::TooDeep)?;
    let elements: Vec<&RawValue> = parse(value)?;
    digest.tag(ARRAY);
    digest.count(elements.len());
    for (at, element) in elements.into_iter().enumerate() {
        let left_out = below(left_out, |token| index(token) == Some(at));
        feed(element.get(), &left_out, levels, digest)?;
    }
    Ok(())
}

fn feed_object(
    value: &str,
    left_out: &[Tokens<'_>],
    levels: usize,
    digest: &mut Digest,
) -> Result<(), FieldError> {
    let levels = levels.checked_sub(1).ok_or(FieldError::TooDeep)?;
    let below = |name: &str| below(left_out, |token| token == name);
    let Members(mut members) = parse(value)?;
    members.retain(|(name, _)| !names_all(&below(name)));
    members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ambiguous(&pair[0].0));
    }
    digest.tag(OBJECT);
    digest.count(members.len());
    for (name, value) in members {
        digest.field(name.as_bytes());
        feed(value.get(), &below(&name), levels, digest)?;
    }
    Ok(())
}

/// What is left of the pointers that go through the member or element `here`.
fn below<'t>(left_out: &[Tokens<'t>], here: impl Fn(&str) -> bool) -> Vec<Tokens<'t>> {
    left_out
        .iter()
        .filter_map(|tokens| tokens.split_first())
        .filter(|(token, _)| here(token))
        .map(|(_, rest)| rest)
        .collect()
}

/// Whether one of the pointers ends here.
fn names_all(left_out: &[Tokens<'_>]) -> bool {
    left_out.iter().any(|tokens| tokens.is_empty())
}

fn feed_string(value: &str, digest: &mut Digest) -> Result<(), FieldError> {
    let Text(text) = parse(value)?;
    digest.tag(STRING);
    digest.field(text.as_bytes());
    Ok(())
}

fn feed_number(text: &str, digest: &mut Digest) {
    let Some(decimal) = Decimal::read(text) else {
        digest.tag(NUMBER_AS_TEXT);
        digest.field(text.as_bytes());
        return;
    };
    digest.tag(NUMBER);
    digest.tag(u8::from(decimal.negative));
    digest.raw(&decimal.exponent.to_le_bytes());
    digest.count(decimal.whole.len() + decimal.fraction.len());
    digest.raw(decimal.whole.as_bytes());
    digest.raw(decimal.fraction.as_bytes());
}

/// A number without the freedom that its notation has: `whole` and `fraction`, one after the
/// other, are its digits without zeros at either end, and they count units of ten to the power
/// of `exponent`. Zero has no digits, no sign and the exponent 0.
#[derive(Default)]
struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// `None` when the exponent does not fit.
    fn read(text: &'a str) -> Option<Self> {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let unsigned = mantissa.trim_start_matches('-');
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let whole = whole.trim_start_matches('0');
        let fraction = fraction.trim_end_matches('0');
        if whole.is_empty() && fraction.is_empty() {
            return Some(Self::default());
        }
        let decimal = Self {
            negative: text.starts_with('-'),
            whole,
            fraction,
            exponent: exponent.parse().ok()?,
        };
        if fraction.is_empty() {
            decimal.trim_whole()
        } else {
            decimal.shift_fraction()
        }
    }

    fn trim_whole(self) -> Option<Self> {
        let whole = self.whole.trim_end_matches('0');
        let zeros = i64::try_from(self.whole.len() - whole.len()).ok()?;
        let exponent = self.exponent.checked_add(zeros)?;
        Some(Self {
            whole,
            exponent,
            ..self
        })
    }

    fn shift_fraction(self) -> Option<Self> {
        let places = i64::try_from(self.fraction.len()).ok()?;
        let fraction = match self.whole {
            "" => self.fraction.trim_start_matches('0'),
            _ => self.fraction,
        };
        let exponent = self.exponent.checked_sub(places)?;
        Some(Self {
            fraction,
            exponent,
            ..self
        })
    }
}

/// Reads a part of a document.
fn parse<'a, T: Deserialize<'a>>(value: &'a str) -> Result<T, FieldError> {
    serde_json::from_str(value).map_err(|error| half_escape(&error))
}

/// All that can be wrong within a document is half a surrogate pair in an escape, which is looked
/// at only when a string is read.
fn half_escape(error: &serde_json::Error) -> FieldError {
    // Its position is counted from the start of the part.
    let mut message = error.to_string();
    message.truncate(message.rfind(" at line ").unwrap_or(message.len()));
    FieldError::Malformed { message }
}

fn ambiguous(name: &str) -> FieldError {
    // A name can be as long as the body; its start is enough to find it.
    FieldError::Ambiguous {
        name: name.chars().take(64).collect(),
    }
}

/// A string, borrowed unless it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor).map(Self)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// The members of an object in their order, however often each is there.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor).map(Self)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((Text(name), value)) = map.next_entry()? {
            members.push((name, value));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests;
