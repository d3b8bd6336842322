//! Keys and requests that are crafted to be taken for another's: the same bytes, cut otherwise.

use axum::Router;
use http::Request;
use proptest::prelude::*;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Fingerprint, IdempotencyLayer, KeyParts, KeySource};

use crate::support::{Answer, Runs, ask, layer};

/// A text, with bytes in it that could pass for lengths, cut into five pieces.
fn five_pieces() -> impl Strategy<Value = ([String; 5], [String; 5])> {
    let cuts = || proptest::array::uniform4(any::<proptest::sample::Index>());
    ("[\\x00-\\x08a-b]{0,24}", cuts(), cuts())
        .prop_map(|(text, first, second)| (cut(&text, first), cut(&text, second)))
}

fn cut(text: &str, cuts: [proptest::sample::Index; 4]) -> [String; 5] {
    let mut ends = cuts.map(|cut| cut.index(text.len() + 1));
    ends.sort_unstable();
    let [a, b, c, d] = ends;
    [
        &text[..a],
        &text[a..b],
        &text[b..c],
        &text[c..d],
        &text[d..],
    ]
    .map(str::to_owned)
}

fn parts(pieces: &[String; 5], scoped: bool) -> KeyParts<'_> {
    KeyParts {
        namespace: &pieces[0],
        scope: scoped.then_some(&pieces[1]),
        method: &pieces[2],
        target: &pieces[3],
        key: &pieces[4],
    }
}

proptest! {
    #[test]
    fn two_keys_have_one_record_only_if_all_their_parts_are_equal(
        (first, second) in five_pieces(),
        scoped in any::<(bool, bool)>(),
    ) {
        let (first, second) = (parts(&first, scoped.0), parts(&second, scoped.1));
        prop_assert_eq!(first.record_key() == second.record_key(), first == second);
    }

    #[test]
    fn two_inputs_have_one_fingerprint_only_if_all_their_fields_are_equal(
        (first, second) in five_pieces(),
        counts in (0..=5_usize, 0..=5_usize),
    ) {
        let (first, second) = (&first[..counts.0], &second[..counts.1]);
        prop_assert_eq!(Fingerprint::of(first) == Fingerprint::of(second), first == second);
    }
}

/// The answers to the first request, and then to the second.
async fn both<const N: usize>(
    app: &Router,
    requests: [(&str, &str, &str, &str); N],
) -> [Answer; N] {
    let mut answers = Vec::new();
    for (path, key, content_type, body) in requests {
        let request = Request::post(path)
            .header("idempotency-key", key)
            .header("content-type", content_type)
            .body(body.to_owned().into());
        answers.push(ask(app, request.expect("the request is valid")).await);
    }
    answers.try_into().expect("as many answers as requests")
}

#[tokio::test]
async fn a_path_and_a_key_that_read_alike_together_are_two_operations() {
    const TEXT: &str = "text/plain";
    let store = MemoryStore::new();
    // The namespace takes part, too.
    for (namespace, path, key) in [
        ("n", "/ab", "c"),
        ("n", "/a", "bc"),
        ("n/", "/ab", "c"),
        ("n/a", "/b", "c"),
        ("", "/ab", "c"),
        ("", "/n/ab", "c"),
    ] {
        let layer = IdempotencyLayer::new(store.clone()).namespace(namespace);
        let app = Runs::default().behind(layer);
        let [answer] = both(&app, [(path, key, TEXT, "body")]).await;
        answer.ran("run 1");
    }
}

#[tokio::test]
async fn key_fields_that_read_alike_together_are_two_keys() {
    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";
    let source = KeySource::fields(["/a", "/b"]).expect("two pointers");
    let app = Runs::default().behind(layer().key_source(source));
    let bodies = [
        (JSON, r#"{"a":"1","b":"23"}"#),
        (JSON, r#"{"a":"12","b":"3"}"#),
        (JSON, r#"{"a":"123","b":""}"#),
        (JSON, r#"{"a":["1","2"],"b":"3"}"#),
        (JSON, r#"{"a":["12"],"b":"3"}"#),
        (JSON, r#"{"a":{"1":"2"},"b":"3"}"#),
        (JSON, r#"{"a":1,"b":"23"}"#),
        (FORM, "a=1&b=23"),
        (FORM, "a=12&b=3"),
        (FORM, "a=1%26b=2&b=3"),
        (FORM, "a=1&a=2&b=3"),
    ];
    for (number, (content_type, body)) in bodies.into_iter().enumerate() {
        let [answer] = both(&app, [("/", "", content_type, body)]).await;
        answer.ran(&format!("run {}", number + 1));
    }
}

#[tokio::test]
async fn bodies_that_read_alike_with_their_boundary_or_query_are_two_requests() {
    let pairs = [
        // The boundary takes a byte of the part, or leaves one to it.
        (
            ("/", "multipart/form-data; boundary=a", "--a\r\n\r\nb--a--"),
            (
                "/",
                "multipart/form-data; boundary=ab",
                "--ab\r\n\r\n--ab--",
            ),
        ),
        // Two parts, and one that reads like both of them.
        (
            (
                "/",
                "multipart/form-data; boundary=a",
                "--a\r\nx\r\n--a\r\ny\r\n--a--",
            ),
            (
                "/",
                "multipart/form-data; boundary=a",
                "--a\r\nx\r\n\r\ny\r\n--a--",
            ),
        ),
        // A part that contains what looks like the end of it.
        (
            (
                "/",
                "multipart/form-data; boundary=a",
                "--a\r\n\r\nx\r\n--a\r\n\r\ny\r\n--a--",
            ),
            (
                "/",
                "multipart/form-data; boundary=b",
                "--b\r\n\r\nx\r\n--a\r\n\r\ny\r\n--b--",
            ),
        ),
        (("/?ab", "text/plain", "c"), ("/?a", "text/plain", "bc")),
        (("/", "text/plainc", "body"), ("/", "text/plain", "cbody")),
        (("/a", "text/plain", "c"), ("/a?c", "text/plain", "")),
        (("/", "a/b;c=d", "x"), ("/", "a/b;c=\"d;c=d\"", "x")),
    ];
    for (number, (first, second)) in pairs.into_iter().enumerate() {
        let app = Runs::default().behind(layer());
        let key = format!("k{number}");
        let requests =
            [first, second].map(|(path, content_type, body)| (path, &*key, content_type, body));
        let [ran, reused] = both(&app, requests).await;
        ran.ran("run 1");
        reused.refused(422, "key-reused");
    }
}
