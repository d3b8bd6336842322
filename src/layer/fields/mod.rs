//! Fields of request bodies: what an idempotency key is made of, or a fingerprint narrowed to.

mod form;
mod json;
mod media;
mod pointer;

use std::error::Error;
use std::fmt;

use crate::format::digest::Digest;

pub(crate) use form::percent_decoded;
pub(crate) use media::{Media, essence, feed_media, multipart_pieces, unquote};
pub use pointer::{Field, InvalidPointer};
pub(crate) use pointer::{parse_all, parse_some};

/// How deep arrays and objects may nest in a value that is hashed.
const MAX_LEVELS: usize = 32;

/// What goes into a digest before what is read.
const JSON: u8 = 1;
const FORM: u8 = 2;

/// What goes into a digest for each field that is asked for.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// What a field is that holds nothing: `null`, `""`, blanks, `[]`, `{}`, and what is made of
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blank {
    /// It is as if it were not there: it tells no two requests apart.
    IsAbsent,
    /// It is a value of its own: to set a field to nothing is to change it.
    IsAValue,
}

/// Why the fields of a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FieldError {
    /// A required field is not there.
    Missing { pointer: String },
    /// The body is no JSON.
    Malformed { message: String },
    /// An object has a member twice, and readers differ on which one counts.
    Ambiguous { name: String },
    /// A value nests too deep.
    TooDeep,
    /// The body is of a kind that has no fields.
    Unreadable,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { pointer } if pointer.is_empty() => {
                f.write_str("the request body, which the idempotency key is made of, has no value")
            }
            Self::Missing { pointer } => write!(
                f,
                "the request body has no field `{pointer}`, which the idempotency key is made of"
            ),
            Self::Malformed { message } => {
                write!(f, "the request body is not valid JSON: {message}")
            }
            Self::Ambiguous { name } => write!(
                f,
                "an object in the request body has the member {name:?} more than once"
            ),
            Self::TooDeep => write!(
                f,
                "a field of the request body nests more than {MAX_LEVELS} levels deep"
            ),
            Self::Unreadable => {
                f.write_str("key fields are read from JSON and form-encoded bodies only")
            }
        }
    }
}

impl Error for FieldError {}

/// Feeds the `fields` of a body in their order, each in its canonical form, and returns how many
/// were there. On an error `digest` is as it was.
pub(crate) fn select(
    media: &Media<'_>,
    body: &[u8],
    fields: &[Field],
    blank: Blank,
    digest: &mut Digest,
) -> Result<usize, FieldError> {
    let mut fed = digest.clone();
    // With other fields, the same values are another key.
    fed.count(fields.len());
    for field in fields {
        fed.field(field.pointer().as_bytes());
    }
    let found = match media {
        // Whoever asks for fields says that it is JSON.
        Media::Json | Media::Unlabelled => {
            fed.tag(JSON);
            json::select(body, fields, blank, &mut fed)?
        }
        Media::Form => {
            fed.tag(FORM);
            form::select(body, fields, blank, &mut fed)?
        }
        Media::Multipart { .. } | Media::Other => return Err(FieldError::Unreadable),
    };
    *digest = fed;
    Ok(found)
}

/// Feeds the canonical form of a body without the fields `left_out`. On an error `digest` is as
/// it was.
pub(crate) fn without(
    media: &Media<'_>,
    body: &[u8],
    left_out: &[Field],
    digest: &mut Digest,
) -> Result<(), FieldError> {
    let mut fed = digest.clone();
    let names_fields = !left_out.is_empty();
    match media {
        Media::Unlabelled if !names_fields => return Err(FieldError::Unreadable),
        Media::Json | Media::Unlabelled => {
            fed.tag(JSON);
            json::without(body, left_out, &mut fed)?;
        }
        Media::Form => {
            fed.tag(FORM);
            form::without(body, left_out, &mut fed);
        }
        Media::Multipart { .. } | Media::Other => return Err(FieldError::Unreadable),
    }
    *digest = fed;
    Ok(())
}

/// The absence of an optional field is a value, too.
fn feed_absent(field: &Field, digest: &mut Digest) -> Result<(), FieldError> {
    if !field.is_optional() {
        return Err(FieldError::Missing {
            pointer: field.pointer().to_owned(),
        });
    }
    digest.tag(ABSENT);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::digest::Domain;

    pub(super) fn field(pointer: &str) -> Field {
        Field::new(pointer).expect("a valid pointer")
    }

    pub(super) fn fields(pointers: &[&str]) -> Vec<Field> {
        pointers.iter().map(|pointer| field(pointer)).collect()
    }

    const MULTIPART: Media<'_> = Media::Multipart { boundary: None };

    fn selected(media: &Media<'_>, body: &str) -> Result<[u8; 32], FieldError> {
        let mut digest = Digest::new(Domain::Test);
        select(
            media,
            body.as_bytes(),
            &fields(&["/a"]),
            Blank::IsAbsent,
            &mut digest,
        )?;
        Ok(digest.finish())
    }

    fn rest(media: &Media<'_>, body: &str) -> Result<[u8; 32], FieldError> {
        let mut digest = Digest::new(Domain::Test);
        without(media, body.as_bytes(), &[], &mut digest)?;
        Ok(digest.finish())
    }

    #[test]
    fn the_media_type_says_how_fields_are_read() {
        let json = selected(&Media::Json, r#"{"a":"1"}"#).expect("there");
        let form = selected(&Media::Form, "a=1").expect("there");
        assert_ne!(json, form);
        for media in [MULTIPART, Media::Other] {
            assert_eq!(selected(&media, "a=1"), Err(FieldError::Unreadable));
            assert_eq!(rest(&media, "a=1"), Err(FieldError::Unreadable));
        }
    }

    #[test]
    fn json_without_a_label_is_json_when_fields_are_asked_for() {
        let json = selected(&Media::Json, r#"{"a":"1"}"#);
        assert!(json.is_ok());
        assert_eq!(selected(&Media::Unlabelled, r#"{"a":"1"}"#), json);
        let without = |media, left_out: &[&str]| {
            let mut digest = Digest::new(Domain::Test);
            without(&media, b"[1, 2]", &fields(left_out), &mut digest).map(|()| digest.finish())
        };
        assert_eq!(
            without(Media::Unlabelled, &["/0"]),
            without(Media::Json, &["/0"])
        );
        // White space is part of a text.
        assert_eq!(without(Media::Unlabelled, &[]), Err(FieldError::Unreadable));
    }

    #[test]
    fn the_kind_of_body_goes_in_first() {
        let start = |tag: u8| {
            let mut digest = Digest::new(Domain::Test);
            digest.tag(tag);
            digest
        };
        let start_of_fields = |tag: u8| {
            let mut digest = Digest::new(Domain::Test);
            digest.count(1);
            digest.field(b"/a");
            digest.tag(tag);
            digest
        };

        let mut json = start_of_fields(JSON);
        json::select(b"{\"a\":1}", &fields(&["/a"]), Blank::IsAbsent, &mut json).expect("there");
        assert_eq!(selected(&Media::Json, "{\"a\":1}"), Ok(json.finish()));
        let mut form = start_of_fields(FORM);
        form::select(b"a=1", &fields(&["/a"]), Blank::IsAbsent, &mut form).expect("there");
        assert_eq!(selected(&Media::Form, "a=1"), Ok(form.finish()));

        let mut json = start(JSON);
        json::without(b"{}", &[], &mut json).expect("valid");
        assert_eq!(rest(&Media::Json, "{}"), Ok(json.finish()));
        let mut form = start(FORM);
        form::without(b"a=1", &[], &mut form);
        assert_eq!(rest(&Media::Form, "a=1"), Ok(form.finish()));
    }

    #[test]
    fn other_fields_with_the_same_values_are_another_key() {
        let key = |pointer: &str| {
            let mut digest = Digest::new(Domain::Test);
            let body = br#"{"a":1,"b":1}"#;
            select(
                &Media::Json,
                body,
                &fields(&[pointer]),
                Blank::IsAbsent,
                &mut digest,
            )
            .expect("there");
            digest.finish()
        };
        assert_ne!(key("/a"), key("/b"));
    }

    #[test]
    fn an_error_leaves_the_digest_as_it_was() {
        let untouched = Digest::new(Domain::Test).finish();
        let cases = [
            (Media::Json, &br#"{"a":1,"c":{"x":1,"x":2}}"#[..]),
            (Media::Json, br#"{"a":1"#),
            (Media::Form, b"a=1"),
            (MULTIPART, b"a=1"),
        ];
        for (media, body) in cases {
            let mut digest = Digest::new(Domain::Test);
            assert!(
                select(
                    &media,
                    body,
                    &fields(&["/a", "/c"]),
                    Blank::IsAbsent,
                    &mut digest
                )
                .is_err()
            );
            if media != Media::Form {
                assert!(without(&media, body, &[], &mut digest).is_err());
            }
            assert_eq!(digest.finish(), untouched, "{media:?}");
        }
    }

    #[test]
    fn errors_are_sentences_for_the_client() {
        let missing = selected(&Media::Json, "{}").expect_err("not there");
        assert_eq!(
            missing.to_string(),
            "the request body has no field `/a`, which the idempotency key is made of"
        );
        let malformed = selected(&Media::Json, "{\"a\":").expect_err("cut off");
        assert_eq!(
            malformed.to_string(),
            "the request body is not valid JSON: EOF while parsing a value at line 1 column 5"
        );
        let twice = selected(&Media::Json, r#"{"a":{"b\n":1,"b\n":1}}"#).expect_err("twice");
        assert_eq!(
            twice.to_string(),
            r#"an object in the request body has the member "b\n" more than once"#
        );
    }
}
