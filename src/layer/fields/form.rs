//! Fields of form-encoded bodies.
//!
//! `/card/number` is the field `card[number]`, as Stripe, PHP and Rails write it, and a pointer
//! covers what is nested below it, too. Names and values are compared as bytes: a decoder that
//! puts U+FFFD in the place of what is not UTF-8 would make different values one.

use std::borrow::Cow;

use super::{Blank, Field, FieldError, PRESENT, feed_absent};
use crate::format::digest::Digest;

type Bytes<'a> = Cow<'a, [u8]>;

/// Feeds the `fields` of a body in their order, and returns how many were there.
pub(super) fn select(
    body: &[u8],
    fields: &[Field],
    blank: Blank,
    digest: &mut Digest,
) -> Result<usize, FieldError> {
    let mut found = 0;
    for field in fields {
        let covered = covered(body, field);
        let is_blank = |pair: &Pair<'_>| pair.value.trim_ascii().is_empty();
        if covered.is_empty() || blank == Blank::IsAbsent && covered.iter().all(is_blank) {
            feed_absent(field, digest)?;
        } else {
            digest.tag(PRESENT);
            feed(covered, digest);
            found += 1;
        }
    }
    Ok(found)
}

/// Feeds all of a body but the fields `left_out`.
pub(super) fn without(body: &[u8], left_out: &[Field], digest: &mut Digest) {
    let left_out: Vec<_> = left_out.iter().map(full_name).collect();
    let kept = pairs(body)
        .filter(|pair| {
            !left_out
                .iter()
                .any(|left_out| below(&pair.name, left_out.as_deref()).is_some())
        })
        .collect();
    feed(kept, digest);
}

/// The pairs that `field` covers, each with the rest of its name.
fn covered<'a>(body: &'a [u8], field: &Field) -> Vec<Pair<'a>> {
    let full_name = full_name(field);
    pairs(body)
        .filter_map(|pair| {
            let rest = below(&pair.name, full_name.as_deref())?;
            let start = pair.name.len() - rest.len();
            Some(Pair { start, ..pair })
        })
        .collect()
}

/// Feeds pairs by name. Those whose names are the same up to a `[]` stay in their order: each
/// of them adds to a list, or to the element of a list that the one before it has begun.
fn feed(mut pairs: Vec<Pair<'_>>, digest: &mut Digest) {
    pairs.sort_by(|one, other| one.list().cmp(other.list()));
    digest.count(pairs.len());
    for pair in pairs {
        digest.field(&pair.name[pair.start..]);
        digest.field(&pair.value);
    }
}

/// The name that a form gives to `field`, such as `card[number]`; `None` for the whole form.
fn full_name(field: &Field) -> Option<String> {
    let (first, nested) = field.tokens().split_first()?;
    let brackets = nested.iter().map(|token| format!("[{token}]"));
    Some(std::iter::once(first.clone()).chain(brackets).collect())
}

/// What `name` has beyond `full_name`, when it is that name or nested below it.
fn below<'a>(name: &'a [u8], full_name: Option<&str>) -> Option<&'a [u8]> {
    let Some(full_name) = full_name else {
        return Some(name);
    };
    name.strip_prefix(full_name.as_bytes())
        .filter(|rest| rest.is_empty() || rest.starts_with(b"["))
}

/// A name and its value, decoded.
struct Pair<'a> {
    name: Bytes<'a>,
    value: Bytes<'a>,
    /// Where what counts of the name begins.
    start: usize,
}

impl Pair<'_> {
    /// The name up to its first `[]`, or all of it.
    fn list(&self) -> &[u8] {
        let end = memchr::memmem::find(&self.name, b"[]").map(|at| at + 2);
        &self.name[..end.unwrap_or(self.name.len())]
    }
}

/// Names and values, decoded as [the URL standard] has it but kept as bytes.
///
/// [the URL standard]: https://url.spec.whatwg.org/#urlencoded-parsing
fn pairs(body: &[u8]) -> impl Iterator<Item = Pair<'_>> {
    body.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let value = pair.get(end + 1..).unwrap_or_default();
            Pair {
                name: percent_decoded(&pair[..end]),
                value: percent_decoded(value),
                start: 0,
            }
        })
}

/// Undoes the percent-encoding of a name or a value, where `+` is a space.
pub(crate) fn percent_decoded(text: &[u8]) -> Bytes<'_> {
    let Some(plain) = memchr::memchr2(b'+', b'%', text) else {
        return Cow::Borrowed(text);
    };
    let mut decoded = text[..plain].to_vec();
    let mut rest = &text[plain..];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => match escaped(rest) {
                Some(byte) => {
                    rest = &rest[2..];
                    byte
                }
                None => b'%',
            },
            byte => byte,
        });
    }
    decoded.into()
}

/// The byte that two hexadecimal digits at the start of `text` stand for.
fn escaped(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ABSENT;
    use super::super::tests::{field, fields};
    use super::*;
    use crate::format::digest::Domain;

    fn selected(body: &str, pointers: &[&str]) -> Result<[u8; 32], FieldError> {
        let mut digest = Digest::new(Domain::Test);
        select(
            body.as_bytes(),
            &fields(pointers),
            Blank::IsAValue,
            &mut digest,
        )?;
        Ok(digest.finish())
    }

    fn found(body: &str, pointers: &[&str]) -> usize {
        let optional: Vec<_> = fields(pointers).into_iter().map(Field::optional).collect();
        select(
            body.as_bytes(),
            &optional,
            Blank::IsAValue,
            &mut Digest::new(Domain::Test),
        )
        .expect("all are optional")
    }

    fn rest(body: &str, left_out: &[&str]) -> [u8; 32] {
        let mut digest = Digest::new(Domain::Test);
        without(body.as_bytes(), &fields(left_out), &mut digest);
        digest.finish()
    }

    #[test]
    fn pointers_name_fields_with_brackets() {
        let body = "amount=12&card[number]=42&items%5B0%5D=a&items%5B1%5D=b&d[e][f]=1";
        let there = [
            "/amount",
            "/card/number",
            "/items/0",
            "/items",
            "/d/e/f",
            "/d/e",
            "/d",
            "",
        ];
        assert_eq!(found(body, &there), there.len());
        let not_there = [
            "/card/num",
            "/car",
            "/items/2",
            "/number",
            "/",
            "/amount/x",
            "/d/f",
        ];
        assert_eq!(found(body, &not_there), 0);
    }

    #[test]
    fn the_canonical_form_is_names_and_values_with_their_lengths() {
        let mut expected = Digest::new(Domain::Test);
        expected.tag(PRESENT);
        expected.count(2);
        for text in ["", "1", "[b]", "2"] {
            expected.field(text.as_bytes());
        }
        expected.tag(ABSENT);
        let fields = [field("/a"), field("/c").optional()];
        let mut fed = Digest::new(Domain::Test);
        assert_eq!(
            select(b"a%5Bb]=2&x=&a=1", &fields, Blank::IsAValue, &mut fed),
            Ok(1)
        );
        assert_eq!(fed.finish(), expected.finish());
    }

    #[test]
    fn only_the_selected_fields_count() {
        let base = selected("a=1&b=2", &["/a"]);
        assert!(base.is_ok());
        assert_eq!(selected("b=3&a=%31&ab=4", &["/a"]), base);
        assert_ne!(selected("a=2&b=2", &["/a"]), base);
        assert_ne!(selected("a[x]=1&b=2", &["/a"]), base);
    }

    #[test]
    fn fields_go_in_as_configured_not_as_sent() {
        let base = selected("a=1&b=2", &["/a", "/b"]);
        assert_eq!(selected("b=2&a=1", &["/a", "/b"]), base);
        assert_ne!(selected("a=2&b=1", &["/a", "/b"]), base);
    }

    #[test]
    fn order_matters_between_values_of_one_name_only() {
        let base = selected("m[a]=1&m[b]=2&m[b]=3", &["/m"]);
        assert_eq!(selected("m[b]=2&m[a]=1&m[b]=3", &["/m"]), base);
        assert_ne!(selected("m[a]=1&m[b]=3&m[b]=2", &["/m"]), base);
        assert_ne!(selected("m[a]=1&m[b]=2", &["/m"]), base);
        assert_eq!(rest("a=1&b=2", &[]), rest("b=2&a=1", &[]));
        assert_ne!(rest("a=1&a=2", &[]), rest("a=2&a=1", &[]));
    }

    #[test]
    fn pairs_that_build_a_list_stay_in_their_order() {
        let rack = "items[][sku]=A&items[][n]=3&items[][sku]=B";
        let other = "items[][sku]=A&items[][sku]=B&items[][n]=3";
        for pointer in ["/items", "/items/", ""] {
            assert_ne!(selected(rack, &[pointer]), selected(other, &[pointer]));
            let apart = "items[][sku]=A&a=1&items[][n]=3&items[][sku]=B";
            let together = "a=1&items[][sku]=A&items[][n]=3&items[][sku]=B";
            assert_eq!(selected(apart, &[pointer]), selected(together, &[pointer]));
        }
        assert_ne!(rest(rack, &[]), rest(other, &[]));
        // A number says which element is meant.
        assert_eq!(
            rest("i[0][a]=1&i[0][b]=2", &[]),
            rest("i[0][b]=2&i[0][a]=1", &[])
        );
        assert_ne!(
            rest("i[0][][a]=1&i[0][][b]=2", &[]),
            rest("i[0][][b]=2&i[0][][a]=1", &[])
        );
    }

    #[test]
    fn a_blank_field_is_absent_where_it_names_nobody() {
        let found = |body: &str| {
            let fields = [field("/id").optional()];
            let mut digest = Digest::new(Domain::Test);
            select(body.as_bytes(), &fields, Blank::IsAbsent, &mut digest).expect("it is optional")
        };
        for body in ["", "id=", "id", "id=+%09", "id[]=&id[]=+", "id[a]="] {
            assert_eq!(found(body), 0, "{body}");
        }
        for body in ["id=0", "id[]=&id[]=1", "id=%C2%A0"] {
            assert_eq!(found(body), 1, "{body}");
        }
    }

    #[test]
    fn an_absent_field_is_missing_and_an_empty_one_is_not() {
        let missing = |pointer: &str| {
            Err(FieldError::Missing {
                pointer: pointer.to_owned(),
            })
        };
        assert_eq!(selected("a=1", &["/a", "/b~1c"]), missing("/b~1c"));
        assert_eq!(selected("", &[""]), missing(""));
        assert!(selected("a=1&b=", &["/a", "/b"]).is_ok());
        assert!(selected("a=1&b", &["/a", "/b"]).is_ok());
    }

    #[test]
    fn an_absent_optional_field_is_a_value_of_its_own() {
        let of = |body: &str| {
            let mut digest = Digest::new(Domain::Test);
            let fields = [field("/a").optional(), field("/b").optional()];
            let found = select(body.as_bytes(), &fields, Blank::IsAValue, &mut digest)
                .expect("all are optional");
            (found, digest.finish())
        };
        let bodies = ["", "a=", "b=", "a=&b="];
        assert_eq!(bodies.map(|body| of(body).0), [0, 1, 1, 2]);
        let mut digests = bodies.map(|body| of(body).1).to_vec();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), bodies.len());
    }

    #[test]
    fn bytes_that_are_not_utf_8_stay_apart() {
        assert_ne!(selected("a=%FF", &["/a"]), selected("a=%FE", &["/a"]));
        assert_ne!(rest("%FF=1", &[]), rest("%FE=1", &[]));
    }

    #[test]
    fn what_is_left_out_does_not_count() {
        let base = rest("a=1&t=now", &["/t"]);
        assert_eq!(rest("a=1", &["/t"]), base);
        assert_eq!(rest("t[x]=then&a=1&t=later", &["/t"]), base);
        assert_ne!(rest("a=2&t=now", &["/t"]), base);
        assert_ne!(rest("a=1&tt=now", &["/t"]), base);
        assert_eq!(rest("m[a]=1&m[b]=2", &["/m/b"]), rest("m[a]=1", &[]));
        assert_eq!(rest("a=1", &[""]), rest("", &[]));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_digest_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let all = fields(&["", "/a", "/a/b"]);
            let _ = select(&body, &all, Blank::IsAbsent, &mut Digest::new(Domain::Test));
            without(&body, &all, &mut Digest::new(Domain::Test));
        }

        #[test]
        fn pairs_are_read_as_handlers_read_them(body in "([a-c=&+%\\[\\]]|%[0-9a-fA-F]{2}|é){0,20}") {
            let ours: Vec<_> = pairs(body.as_bytes())
                .map(|Pair { name, value, .. }| {
                    (String::from_utf8_lossy(&name).into_owned(), String::from_utf8_lossy(&value).into_owned())
                })
                .collect();
            let theirs: Vec<_> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn the_order_of_different_names_does_not_matter(
            pairs in proptest::collection::btree_map("m(\\[[a-c]{1,2}\\]){0,2}(\\[\\])?", "[a-c]{0,2}", 1..6),
            seed in any::<proptest::sample::Index>(),
        ) {
            let mut lines: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let sorted = lines.join("&");
            let middle = seed.index(lines.len());
            lines.rotate_left(middle);
            let turned = lines.join("&");
            prop_assert_eq!(selected(&sorted, &["/m"])?, selected(&turned, &["/m"])?);
            prop_assert_eq!(rest(&sorted, &[]), rest(&turned, &[]));
        }
    }
}
