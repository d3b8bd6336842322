//! How the text of a key is read.

use std::borrow::Cow;
use std::fmt;
use std::str::Utf8Error;

/// The longest key that is accepted, in bytes, quotes and escapes not counted: Stripe's limit.
pub const MAX_KEY_LENGTH: usize = 255;

/// How the value of a key header is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeySyntax {
    /// Takes a bare key as Stripe's clients send it, or the draft's quoted string; both forms of
    /// one key are the same key. The default.
    #[default]
    Lenient,
    /// Takes only the draft's form: a quoted string of [RFC 9651, section 3.3.3].
    ///
    /// [RFC 9651, section 3.3.3]: https://www.rfc-editor.org/rfc/rfc9651#section-3.3.3
    Strict,
}

impl KeySyntax {
    /// Reads the value of a key header, as the layer itself does it.
    ///
    /// A quoted key may have spaces, and parameters after it, which are read and ignored. A bare
    /// key has neither. Only a quoted key with escapes is copied.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySyntax};
    ///
    /// assert_eq!(KeySyntax::Lenient.parse(b"order-1432").as_deref(), Ok("order-1432"));
    /// assert_eq!(KeySyntax::Lenient.parse(b"\"order-1432\";v=1").as_deref(), Ok("order-1432"));
    /// assert_eq!(KeySyntax::Strict.parse(b"order-1432"), Err(InvalidKey::NotQuoted));
    /// ```
    ///
    /// # Errors
    ///
    /// When the value is no key in this syntax.
    pub fn parse(self, value: &[u8]) -> Result<Cow<'_, str>, InvalidKey> {
        let not_text = |error: Utf8Error| InvalidKey::NotPrintable {
            at: error.valid_up_to(),
        };
        match self.read(value)? {
            Cow::Borrowed(key) => std::str::from_utf8(key)
                .map(Cow::Borrowed)
                .map_err(not_text),
            Cow::Owned(key) => String::from_utf8(key)
                .map(Cow::Owned)
                .map_err(|error| not_text(error.utf8_error())),
        }
    }

    /// As [`parse`](Self::parse), where the key is copied anyway: printable ASCII, not looked at
    /// once more.
    #[inline]
    pub(super) fn read(self, value: &[u8]) -> Result<Cow<'_, [u8]>, InvalidKey> {
        let value = value.trim_ascii();
        match value.first() {
            None => Err(InvalidKey::Empty),
            Some(b'"') => quoted(&value[1..]),
            Some(_) if self == Self::Strict => Err(InvalidKey::NotQuoted),
            Some(_) if value.last() == Some(&b'"') => Err(InvalidKey::Quoting),
            Some(_) => bare(value).map(Cow::Borrowed),
        }
    }
}

/// Why something cannot be an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// It is longer than [`MAX_KEY_LENGTH`].
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It has no character but spaces.
    Empty,
    /// It has a byte that is not a printable ASCII character (0x20 to 0x7E), or a space outside
    /// of quotes.
    NotPrintable {
        /// The position of the first such byte, counted from 0.
        at: usize,
    },
    /// A quote is not where the syntax allows one, or the closing one is missing.
    Quoting,
    /// What follows the quoted key is no list of parameters.
    Parameters,
    /// The syntax is [`KeySyntax::Strict`], and the key is not a quoted string.
    NotQuoted,
    /// The request has two keys, and they differ.
    Differing,
    /// The application's own rule refused it, or a key field of the body cannot be read.
    Refused(
        /// What is wrong, for the client to read.
        Cow<'static, str>,
    ),
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { length } => write!(
                f,
                "the idempotency key is {length} bytes long; at most {MAX_KEY_LENGTH} are allowed"
            ),
            Self::Empty => f.write_str("the idempotency key is empty"),
            Self::NotPrintable { at } => write!(
                f,
                "the idempotency key has a byte at position {at} that is not allowed there: a key is made of printable ASCII characters, with spaces only if it is quoted"
            ),
            Self::Quoting => f.write_str("the idempotency key has broken quoting"),
            Self::Parameters => {
                f.write_str("the idempotency key is followed by something that is no parameter")
            }
            Self::NotQuoted => {
                f.write_str("the idempotency key must be a quoted string, such as \"4f1c9e\"")
            }
            Self::Differing => {
                f.write_str("the request has more than one idempotency key, and they differ")
            }
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for InvalidKey {}

fn bare(value: &[u8]) -> Result<&[u8], InvalidKey> {
    // Nearly all are good, so the bytes are looked at in one go, and a position is for the others.
    let is_visible = |byte: &u8| byte.is_ascii_graphic();
    if !value.iter().fold(true, |all, byte| all & is_visible(byte)) {
        let at = value.iter().take_while(|byte| is_visible(byte)).count();
        return Err(InvalidKey::NotPrintable { at });
    }
    short_enough(value)
}

/// Reads what follows the opening quote.
fn quoted(inner: &[u8]) -> Result<Cow<'_, [u8]>, InvalidKey> {
    // A backslash inside is the rare case; without one the key is borrowed.
    match memchr::memchr2(b'"', b'\\', inner) {
        None => Err(InvalidKey::Quoting),
        Some(end) if inner[end] == b'"' => {
            parameters(&inner[end + 1..])?;
            check(&inner[..end]).map(Cow::Borrowed)
        }
        Some(_) => unescape(inner),
    }
}

fn unescape(inner: &[u8]) -> Result<Cow<'static, [u8]>, InvalidKey> {
    let (key, rest) = escaped_string(inner).ok_or(InvalidKey::Quoting)?;
    parameters(rest)?;
    check(&key)?;
    Ok(Cow::Owned(key))
}

/// Reads a string with escapes up to its closing quote, and gives what follows it.
fn escaped_string(inner: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut text = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    loop {
        match *bytes.next()? {
            b'"' => return Some((text, bytes.as_slice())),
            b'\\' => match *bytes.next()? {
                escaped @ (b'"' | b'\\') => text.push(escaped),
                _ => return None,
            },
            byte => text.push(byte),
        }
    }
}

/// Checks the parameters after a quoted key: [RFC 9651, section 3.1.2].
///
/// [RFC 9651, section 3.1.2]: https://www.rfc-editor.org/rfc/rfc9651#section-3.1.2
fn parameters(mut rest: &[u8]) -> Result<(), InvalidKey> {
    let Some(first) = rest.first() else {
        return Ok(());
    };
    if *first != b';' {
        return Err(InvalidKey::Quoting);
    }
    while !rest.is_empty() {
        rest = parameter(rest).ok_or(InvalidKey::Parameters)?;
    }
    Ok(())
}

/// Reads one parameter, and gives what follows it.
fn parameter(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_prefix(b";")?;
    let text = skip(text, |byte| byte == b' ');
    let (b'a'..=b'z' | b'*') = *text.first()? else {
        return None;
    };
    let rest = skip(
        text,
        |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'),
    );
    match rest.strip_prefix(b"=") {
        Some(value) => bare_item(value),
        None => Some(rest),
    }
}

/// Reads a value of any type that there is, and gives what follows it.
fn bare_item(text: &[u8]) -> Option<&[u8]> {
    let (first, rest) = text.split_first()?;
    match first {
        b'"' => escaped_string(rest)
            .filter(|(text, _)| text.iter().all(|byte| matches!(byte, b' '..=b'~')))
            .map(|(_, rest)| rest),
        b'%' => display_string(rest),
        b'?' => rest.strip_prefix(b"0").or(rest.strip_prefix(b"1")),
        b'@' => integer(rest),
        b'-' | b'0'..=b'9' => number(text),
        b':' => {
            let rest = skip(
                rest,
                |byte| matches!(byte, b'+' | b'/' | b'=' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z'),
            );
            rest.strip_prefix(b":")
        }
        b'*' | b'A'..=b'Z' | b'a'..=b'z' => Some(skip(rest, is_of_token)),
        _ => None,
    }
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}

fn number(text: &[u8]) -> Option<&[u8]> {
    let rest = integer(text)?;
    let Some(fraction) = rest.strip_prefix(b".") else {
        return Some(rest);
    };
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let rest = digits_of(fraction, 3)?;
    digits_of(digits, 12).map(|_| rest)
}

fn integer(text: &[u8]) -> Option<&[u8]> {
    digits_of(text.strip_prefix(b"-").unwrap_or(text), 15)
}

/// Reads digits, at least one and at most so many, and gives what follows them.
fn digits_of(text: &[u8], most: usize) -> Option<&[u8]> {
    let rest = skip(text, |byte| byte.is_ascii_digit());
    (1..=most)
        .contains(&(text.len() - rest.len()))
        .then_some(rest)
}

/// Reads `"text"` of [RFC 9651, section 3.3.8].
///
/// [RFC 9651, section 3.3.8]: https://www.rfc-editor.org/rfc/rfc9651#section-3.3.8
fn display_string(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_prefix(b"\"")?;
    let end = memchr::memchr(b'"', text)?;
    let (text, rest) = (&text[..end], &text[end + 1..]);
    let is_escape = |at: usize| {
        let digits = text.get(at + 1..at + 3);
        digits.is_some_and(|digits| {
            digits
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let valid = text.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => is_escape(at),
        byte => matches!(byte, b' '..=b'~'),
    });
    valid.then_some(rest)
}

fn skip(text: &[u8], skipped: impl Fn(u8) -> bool) -> &[u8] {
    let length = text.iter().take_while(|byte| skipped(**byte)).count();
    &text[length..]
}

/// Checks what holds for a key from any source.
pub(crate) fn check(key: &[u8]) -> Result<&[u8], InvalidKey> {
    let is_printable = |byte: &u8| matches!(byte, b' '..=b'~');
    let (printable, visible) = key
        .iter()
        .fold((true, false), |(printable, visible), byte| {
            (printable & is_printable(byte), visible | (*byte != b' '))
        });
    if !printable {
        let at = key.iter().take_while(|byte| is_printable(byte)).count();
        return Err(InvalidKey::NotPrintable { at });
    }
    if !visible {
        return Err(InvalidKey::Empty);
    }
    short_enough(key)
}

const fn short_enough(key: &[u8]) -> Result<&[u8], InvalidKey> {
    match key.len() {
        length if length > MAX_KEY_LENGTH => Err(InvalidKey::TooLong { length }),
        _ => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lenient(value: &str) -> Result<String, InvalidKey> {
        let key = KeySyntax::Lenient.parse(value.as_bytes());
        key.map(Cow::into_owned)
    }

    fn strict(value: &str) -> Result<String, InvalidKey> {
        let key = KeySyntax::Strict.parse(value.as_bytes());
        key.map(Cow::into_owned)
    }

    #[test]
    fn bare_and_quoted_forms_are_one_key() {
        assert_eq!(lenient("8e03978e-40d5").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(lenient("\"8e03978e-40d5\"").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(
            lenient("  \"8e03978e-40d5\" ").as_deref(),
            Ok("8e03978e-40d5")
        );
        assert_eq!(lenient(r#""a\"b\\c""#).as_deref(), Ok(r#"a"b\c"#));
        assert_eq!(lenient(r"a\b,c=d").as_deref(), Ok(r"a\b,c=d"));
        assert_eq!(lenient("abc;v=1").as_deref(), Ok("abc;v=1"));
    }

    #[test]
    fn strict_takes_the_quoted_form_alone() {
        assert_eq!(strict("\"abc\"").as_deref(), Ok("abc"));
        assert_eq!(strict("abc"), Err(InvalidKey::NotQuoted));
    }

    #[test]
    fn a_quoted_key_may_have_spaces() {
        for read in [lenient, strict] {
            assert_eq!(read("\"order 1432\"").as_deref(), Ok("order 1432"));
            assert_eq!(read("\" a \"").as_deref(), Ok(" a "));
            assert_eq!(read(r#""a \" b""#).as_deref(), Ok("a \" b"));
            assert_eq!(read("\"  \""), Err(InvalidKey::Empty));
        }
        assert_eq!(
            lenient("order 1432"),
            Err(InvalidKey::NotPrintable { at: 5 })
        );
    }

    #[test]
    fn parameters_are_ignored() {
        for parameters in [
            ";v=1",
            "; v=1;w",
            ";*a-b_c.d=token/x",
            ";a=-1.5;b=@17;c=?0;d=:aGk=:;e=\"x\\\"y\"",
            ";a=%\"f%c3%bc\"",
            ";  a=999999999999999",
        ] {
            for read in [lenient, strict] {
                for key in ["abc", r"a\\c"] {
                    let value = format!("\"{key}\"{parameters}");
                    let expected = key.replace(r"\\", r"\");
                    assert_eq!(read(&value), Ok(expected), "{value}");
                }
            }
        }
    }

    #[test]
    fn broken_parameters_are_refused() {
        for parameters in [
            ";",
            ";;",
            ";V=1",
            ";v=",
            ";v =1",
            ";v= 1",
            ";v=1 x",
            ";v=1,2",
            ";v=1.",
            ";v=.5",
            ";v=1.2345",
            ";v=1234567890123.4",
            ";v=@1.5",
            ";v=1234567890123456",
            ";v=-",
            ";v=?2",
            ";v=:a",
            ";v=\"a",
            ";v=\"a\\b\"",
            ";v=\"é\"",
            ";v=%\"%C3\"",
            ";v=%\"%c\"",
            ";v=%x",
            ";v=(1)",
            ";v=1 ; w",
        ] {
            for read in [lenient, strict] {
                let value = format!("\"abc\"{parameters}");
                assert_eq!(read(&value), Err(InvalidKey::Parameters), "{value}");
            }
        }
    }

    #[test]
    fn malformed_keys_are_named() {
        assert_eq!(lenient(""), Err(InvalidKey::Empty));
        assert_eq!(lenient("   "), Err(InvalidKey::Empty));
        assert_eq!(lenient("\"\""), Err(InvalidKey::Empty));
        for value in [
            "\"",
            "\"abc",
            "abc\"",
            "\"a\"b\"",
            "\"a\", \"b\"",
            "\"a\" ;v=1",
            r#""a\b""#,
            r#""a\""#,
            r#""a\"#,
        ] {
            assert_eq!(lenient(value), Err(InvalidKey::Quoting), "{value}");
        }
        let not_printable = |at| Err(InvalidKey::NotPrintable { at });
        assert_eq!(lenient("a b"), not_printable(1));
        assert_eq!(lenient("a\tb"), not_printable(1));
        assert_eq!(lenient("\"a\tb\""), not_printable(1));
        assert_eq!(lenient("clé"), not_printable(2));
        assert_eq!(lenient("a\u{7f}"), not_printable(1));
        assert_eq!(
            lenient(&"k".repeat(256)),
            Err(InvalidKey::TooLong { length: 256 })
        );
        assert_eq!(lenient(&"k".repeat(255)).map(|key| key.len()), Ok(255));
        let longest_quoted = format!("\"{}\"", "k".repeat(255));
        assert_eq!(lenient(&longest_quoted).map(|key| key.len()), Ok(255));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_valid_key_or_an_error(
            value in proptest::collection::vec(any::<u8>(), 0..300),
            start in prop_oneof![Just("\"a\";"), Just("\""), Just("")],
        ) {
            let value = [start.as_bytes(), &value].concat();
            for syntax in [KeySyntax::Lenient, KeySyntax::Strict] {
                match syntax.parse(&value) {
                    Ok(key) => prop_assert_eq!(check(key.as_bytes()), Ok(key.as_bytes())),
                    Err(invalid) => prop_assert!(!invalid.to_string().is_empty()),
                }
            }
        }

        #[test]
        fn any_quoted_key_is_read_as_it_was_meant(key in "[ -~]{0,254}[!-~]", pad in " {0,2}") {
            let quoted = key.replace('\\', "\\\\").replace('"', "\\\"");
            let value = format!("{pad}\"{quoted}\"{pad}");
            prop_assert_eq!(lenient(&value), Ok(key.clone()));
            prop_assert_eq!(strict(&value), Ok(key));
        }

        #[test]
        fn any_bare_key_without_quotes_is_read_as_it_is(key in "[!#-~]{1,255}") {
            let read = lenient(&key);
            prop_assert_eq!(read.as_deref(), Ok(&*key));
        }
    }
}
