//! Names of fields: JSON pointers.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;

/// A field of a request body, named by a JSON pointer ([RFC 6901]).
///
/// In a JSON body `/card/number` is the member `number` of the member `card`, and `/items/0` the
/// first element of `items`. In a form-encoded body the same pointers name `card[number]` and
/// `items[0]`. The empty pointer names the whole body.
///
/// ```
/// use tower_idempotency::Field;
///
/// # fn main() -> Result<(), tower_idempotency::InvalidPointer> {
/// let order = Field::new("/order_id")?;
/// let voucher = Field::new("/voucher")?.optional();
/// assert_eq!(voucher.to_string(), "/voucher");
/// assert!(Field::new("order_id").is_err());
/// # Ok(())
/// # }
/// ```
///
/// [RFC 6901]: https://www.rfc-editor.org/rfc/rfc6901
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pointer: String,
    // The pointer taken apart, escapes undone.
    tokens: Vec<String>,
    optional: bool,
}

impl Field {
    /// A field that every request has to have.
    ///
    /// # Errors
    ///
    /// When `pointer` is no JSON pointer.
    pub fn new(pointer: &str) -> Result<Self, InvalidPointer> {
        Ok(Self {
            pointer: pointer.to_owned(),
            tokens: tokens(pointer)?,
            optional: false,
        })
    }

    /// Lets a request leave the field out; its absence is then a value of its own.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    pub(super) fn pointer(&self) -> &str {
        &self.pointer
    }

    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    pub(crate) fn is_optional(&self) -> bool {
        self.optional
    }
}

/// Fields, or pointers that become required fields.
pub(crate) fn parse_all<I>(fields: I) -> Result<Vec<Field>, InvalidPointer>
where
    I: IntoIterator,
    I::Item: TryInto<Field>,
    InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
{
    let parse = |field: I::Item| field.try_into().map_err(InvalidPointer::from);
    fields.into_iter().map(parse).collect()
}

/// Fields, of which there has to be one at least.
pub(crate) fn parse_some<I>(fields: I) -> Result<Vec<Field>, InvalidPointer>
where
    I: IntoIterator,
    I::Item: TryInto<Field>,
    InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
{
    let fields = parse_all(fields)?;
    match fields.is_empty() {
        true => Err(InvalidPointer::None),
        false => Ok(fields),
    }
}

impl TryFrom<&str> for Field {
    type Error = InvalidPointer;

    fn try_from(pointer: &str) -> Result<Self, InvalidPointer> {
        Self::new(pointer)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pointer)
    }
}

fn tokens(pointer: &str) -> Result<Vec<String>, InvalidPointer> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let path = pointer.strip_prefix('/').ok_or(InvalidPointer::NoSlash)?;
    path.split('/').map(unescape).collect()
}

fn unescape(token: &str) -> Result<String, InvalidPointer> {
    let mut pieces = token.split('~');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (escaped, rest) = match piece.as_bytes().first() {
            Some(b'0') => ('~', &piece[1..]),
            Some(b'1') => ('/', &piece[1..]),
            _ => return Err(InvalidPointer::Escape),
        };
        text.push(escaped);
        text.push_str(rest);
    }
    Ok(text)
}

/// Why a text is no JSON pointer, or a list of them is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidPointer {
    /// It is not empty and does not start with a slash.
    NoSlash,
    /// It has a `~` that is not followed by `0` or `1`.
    Escape,
    /// A list of fields has none: all requests would be the same.
    None,
}

impl fmt::Display for InvalidPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlash => "a JSON pointer is empty or starts with a slash, such as `/amount`",
            Self::Escape => "in a JSON pointer `~` stands only in `~0`, for `~`, and `~1`, for `/`",
            Self::None => "a list of fields must name one at least",
        })
    }
}

impl Error for InvalidPointer {}

/// Lets a [`Field`] stand where something that becomes one is asked for.
impl From<Infallible> for InvalidPointer {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens_of(pointer: &str) -> Result<Vec<String>, InvalidPointer> {
        Field::new(pointer).map(|field| field.tokens().to_vec())
    }

    #[test]
    fn the_pointers_of_rfc_6901_are_taken_apart() {
        let cases: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("/foo", &["foo"]),
            ("/foo/0", &["foo", "0"]),
            ("/", &[""]),
            ("/a~1b", &["a/b"]),
            ("/c%d", &["c%d"]),
            ("/i\\j", &["i\\j"]),
            ("/ ", &[" "]),
            ("/m~0n", &["m~n"]),
            ("/~01", &["~1"]),
            ("/~0~1~1", &["~//"]),
            ("/a//b/", &["a", "", "b", ""]),
        ];
        for (pointer, tokens) in cases {
            let tokens = tokens.iter().map(ToString::to_string).collect();
            assert_eq!(tokens_of(pointer), Ok(tokens), "{pointer}");
        }
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        assert_eq!(tokens_of("amount"), Err(InvalidPointer::NoSlash));
        assert_eq!(tokens_of("#/amount"), Err(InvalidPointer::NoSlash));
        for pointer in ["/~", "/a~/b", "/~2", "/a/b~é"] {
            assert_eq!(tokens_of(pointer), Err(InvalidPointer::Escape), "{pointer}");
        }
    }

    #[test]
    fn a_list_has_one_field_at_least() {
        assert_eq!(parse_some::<[&str; 0]>([]), Err(InvalidPointer::None));
        assert_eq!(parse_some(["/a"]).map(|fields| fields.len()), Ok(1));
        assert_eq!(parse_some(["a"]), Err(InvalidPointer::NoSlash));
    }

    #[test]
    fn a_field_is_required_until_it_is_made_optional() {
        let field = Field::try_from("/a~1b").expect("a valid pointer");
        assert!(!field.is_optional());
        assert!(field.clone().optional().is_optional());
        assert_ne!(field.clone().optional(), field);
        assert_eq!(field.optional().to_string(), "/a~1b");
    }

    proptest! {
        #[test]
        fn escaped_tokens_come_back(tokens in proptest::collection::vec(any::<String>(), 0..5)) {
            let pointer: String = tokens
                .iter()
                .map(|token| format!("/{}", token.replace('~', "~0").replace('/', "~1")))
                .collect();
            prop_assert_eq!(tokens_of(&pointer), Ok(tokens));
        }

        #[test]
        fn any_text_gives_a_field_or_an_error(text in any::<String>()) {
            let _ = Field::new(&text);
        }
    }
}
