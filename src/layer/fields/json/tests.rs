use std::fmt::Write;

use proptest::prelude::*;

use super::super::ABSENT;
use super::super::tests::{field, fields};
use super::*;
use crate::format::digest::Domain;

fn select_in(body: &str, pointers: &[&str]) -> Result<[u8; 32], FieldError> {
    let mut digest = Digest::new(Domain::Test);
    select(
        body.as_bytes(),
        &fields(pointers),
        Blank::IsAbsent,
        &mut digest,
    )?;
    Ok(digest.finish())
}

fn rest(body: &str, left_out: &[&str]) -> Result<[u8; 32], FieldError> {
    let mut digest = Digest::new(Domain::Test);
    without(body.as_bytes(), &fields(left_out), &mut digest)?;
    Ok(digest.finish())
}

/// The canonical digest of a document.
fn whole(body: &str) -> [u8; 32] {
    rest(body, &[]).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn found(body: &str, pointers: &[&str]) -> usize {
    let optional: Vec<_> = fields(pointers).into_iter().map(Field::optional).collect();
    let mut digest = Digest::new(Domain::Test);
    select(body.as_bytes(), &optional, Blank::IsAValue, &mut digest).expect("all are optional")
}

fn missing(pointer: &str) -> FieldError {
    FieldError::Missing {
        pointer: pointer.to_owned(),
    }
}

fn twice(name: &str) -> FieldError {
    FieldError::Ambiguous {
        name: name.to_owned(),
    }
}

fn is_malformed<T>(result: &Result<T, FieldError>) -> bool {
    matches!(result, Err(FieldError::Malformed { .. }))
}

#[test]
fn the_pointers_of_rfc_6901_find_their_values() {
    let body = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
    let cases = [
        ("", body),
        ("/foo", r#"["bar","baz"]"#),
        ("/foo/0", r#""bar""#),
        ("/", "0"),
        ("/a~1b", "1"),
        ("/c%d", "2"),
        ("/i\\j", "5"),
        ("/k\"l", "6"),
        ("/ ", "7"),
        ("/m~0n", "8"),
    ];
    for (pointer, value) in cases {
        let located = locate(body, &[field(pointer)]);
        assert_eq!(located, Ok(vec![Some(value)]), "{pointer}");
    }
    let pointers = cases.map(|(pointer, _)| pointer);
    let all = locate(body, &fields(&pointers));
    assert_eq!(all, Ok(cases.map(|(_, value)| Some(value)).to_vec()));
}

#[test]
fn one_way_to_write_an_index_finds_an_element() {
    let body = r#"{"a":[10,[20,30]],"o":{"0":1,"01":2,"-":3}}"#;
    let there = ["/a/0", "/a/1/1", "/o/0", "/o/01", "/o/-"];
    assert_eq!(found(body, &there), there.len());
    let not_there = [
        "/a/00",
        "/a/01",
        "/a/+1",
        "/a/-",
        "/a/-1",
        "/a/2",
        "/a/",
        "/a/1e0",
        "/a/ 1",
        "/a/18446744073709551616",
        "/a/0/0",
    ];
    assert_eq!(found(body, &not_there), 0);
}

#[test]
fn only_the_selected_fields_count() {
    let base = select_in(r#"{"a":{"x":1,"y":2},"b":2}"#, &["/a/x"]);
    assert!(base.is_ok());
    assert_eq!(select_in(r#" { "b":3, "a":{"x":1} } "#, &["/a/x"]), base);
    assert_ne!(select_in(r#"{"a":{"x":2,"y":2},"b":2}"#, &["/a/x"]), base);
    assert_ne!(select_in(r#"{"a":{"x":"1"}}"#, &["/a/x"]), base);
}

#[test]
fn fields_go_in_as_configured_not_as_sent() {
    let base = select_in(r#"{"a":1,"b":2}"#, &["/a", "/b"]);
    assert_eq!(select_in(r#"{"b":2,"a":1}"#, &["/a", "/b"]), base);
    assert_ne!(select_in(r#"{"a":2,"b":1}"#, &["/a", "/b"]), base);
}

#[test]
fn a_field_may_lie_in_another_and_stand_twice() {
    let pointers = ["/a", "/a/b", "/a/b", ""];
    assert_eq!(found(r#"{"a":{"b":1}}"#, &pointers), 4);
    assert_eq!(found(r#"{"a":{"c":1}}"#, &pointers), 2);
}

#[test]
fn a_field_that_holds_nothing_is_missing() {
    for body in [
        "",
        " \n",
        r#"{"a":1}"#,
        r#"[{"b":1}]"#,
        "1",
        r#"{"a":1,"b":null}"#,
        r#"{"b":""}"#,
        r#"{"b":" \t\u00a0\n"}"#,
        r#"{"b":[]}"#,
        r#"{"b":{}}"#,
        r#"{"b":[null,"",{"c":[[]]}]}"#,
    ] {
        let optional = [field("/b").optional()];
        let mut digest = Digest::new(Domain::Test);
        let count = select(body.as_bytes(), &optional, Blank::IsAbsent, &mut digest);
        assert_eq!(count, Ok(0), "{body}");
        assert_eq!(select_in(body, &["/b"]), Err(missing("/b")), "{body}");
    }
    assert_eq!(select_in(" null ", &[""]), Err(missing("")));
    assert_eq!(select_in(r#"{"b":null}"#, &["/b/c"]), Err(missing("/b/c")));
    for there in [
        r#"{"b":0}"#,
        r#"{"b":false}"#,
        r#"{"b":"0"}"#,
        r#"{"b":[null,0]}"#,
        r#"{"b":{"c":[false]}}"#,
    ] {
        assert!(select_in(there, &["/b"]).is_ok(), "{there}");
    }
}

#[test]
fn a_field_that_holds_nothing_is_a_value_where_it_says_something() {
    let of = |body: &str| {
        let mut digest = Digest::new(Domain::Test);
        let fields = [field("/a").optional()];
        let count = select(body.as_bytes(), &fields, Blank::IsAValue, &mut digest);
        (count, digest.finish())
    };
    let bodies = [
        "{}",
        r#"{"a":null}"#,
        r#"{"a":""}"#,
        r#"{"a":[]}"#,
        r#"{"a":" "}"#,
    ];
    let mut digests = bodies.map(|body| of(body).1).to_vec();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), bodies.len());
    assert_eq!(of("{}").0, Ok(0));
    assert_eq!(of(r#"{"a":null}"#).0, Ok(1));
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
    let bodies = ["{}", r#"{"a":""}"#, r#"{"b":""}"#, r#"{"a":"","b":""}"#];
    assert_eq!(bodies.map(|body| of(body).0), [0, 1, 1, 2]);
    let mut digests = bodies.map(|body| of(body).1).to_vec();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), bodies.len());
}

#[test]
fn what_is_no_json_is_malformed() {
    for body in ["", " "] {
        assert!(is_malformed(&rest(body, &[])), "{body}");
    }
    for body in [
        "{",
        r#"{"a":1"#,
        r#"{"a":1}}"#,
        r#"{"a":1} x"#,
        r#"{"a":1,}"#,
        r#"{"a":1,"b":01}"#,
        r#"{"a":1,"b":tru}"#,
        "{\"a\":1,\"b\":\"\n\"}",
        "\u{c}{\"a\":1}",
        "\u{feff}{\"a\":1}",
        "truex",
        "1.",
        "-",
        "NaN",
    ] {
        assert!(is_malformed(&select_in(body, &["/a"])), "{body}");
        assert!(is_malformed(&select_in(body, &[""])), "{body}");
        assert!(is_malformed(&select_in(body, &[])), "{body}");
        assert!(is_malformed(&rest(body, &[])), "{body}");
        assert!(is_malformed(&rest(body, &[""])), "{body}");
    }
    let skipped = b"{\"a\":1,\"b\":\"\xff\"}";
    let mut digest = Digest::new(Domain::Test);
    assert!(is_malformed(&select(
        skipped,
        &fields(&["/a"]),
        Blank::IsAbsent,
        &mut digest
    )));
    assert!(is_malformed(&without(
        skipped,
        &fields(&["/b"]),
        &mut digest
    )));
}

#[test]
fn half_a_surrogate_pair_is_malformed_where_it_is_read() {
    let body = r#"{"a":"\ud800","b":1}"#;
    let malformed = FieldError::Malformed {
        message: "unexpected end of hex escape".to_owned(),
    };
    assert_eq!(select_in(body, &["/a"]), Err(malformed.clone()));
    assert_eq!(rest(body, &[]), Err(malformed));
    assert!(select_in(body, &["/b"]).is_ok());
    assert!(rest(body, &["/a"]).is_ok());
    assert!(is_malformed(&select_in(r#"{"\udc00":1,"b":1}"#, &["/b"])));
}

#[test]
fn a_member_that_stands_twice_is_ambiguous_where_it_matters() {
    let on_the_way = r#"{"a":{"x":1},"b":1,"\u0061":{"x":1}}"#;
    assert_eq!(select_in(on_the_way, &["/a/x"]), Err(twice("a")));
    assert_eq!(select_in(on_the_way, &["/a"]), Err(twice("a")));
    assert!(select_in(on_the_way, &["/b"]).is_ok());
    let inside = r#"{"a":[{"x":1,"y":2,"x":1}],"b":1}"#;
    assert_eq!(select_in(inside, &["/a"]), Err(twice("x")));
    assert_eq!(select_in(inside, &["/a/0/x"]), Err(twice("x")));
    assert!(select_in(inside, &["/a/0/y"]).is_ok());
    assert_eq!(rest(inside, &["/b"]), Err(twice("x")));
    assert_eq!(rest(inside, &["/a/0/y"]), Err(twice("x")));
    assert!(rest(inside, &["/a/0/x"]).is_ok());
    assert!(rest(inside, &["/a"]).is_ok());
}

#[test]
fn a_long_name_is_cut_in_the_error() {
    let name = "é".repeat(1000);
    let body = format!(r#"{{"{name}":1,"{name}":2}}"#);
    assert_eq!(rest(&body, &[]), Err(twice(&"é".repeat(64))));
}

#[test]
fn values_nest_32_levels_deep() {
    let nested = |levels: usize, open: &str, close: &str| {
        format!("{}1{}", open.repeat(levels), close.repeat(levels))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        assert!(rest(&nested(32, open, close), &[]).is_ok());
        let deeper = nested(33, open, close);
        assert_eq!(rest(&deeper, &[]), Err(FieldError::TooDeep));
        assert_eq!(select_in(&deeper, &[""]), Err(FieldError::TooDeep));
        let beside = format!(r#"{{"a":1,"b":{}}}"#, nested(1000, open, close));
        assert!(select_in(&beside, &["/a"]).is_ok());
        assert!(rest(&beside, &["/b"]).is_ok());
    }
    // A pointer may lead deeper: only what it names is hashed.
    assert!(select_in(&nested(40, "[", "]"), &[&"/0".repeat(8)]).is_ok());
}

#[test]
fn half_a_million_brackets_are_an_error() {
    let open = "[".repeat(500_000);
    let closed = format!("{open}{}", "]".repeat(500_000));
    let objects = r#"{"a":"#.repeat(500_000);
    for pointer in ["", "/0/0", "/a/a"] {
        assert!(is_malformed(&select_in(&open, &[pointer])));
        assert!(is_malformed(&select_in(&objects, &[pointer])));
    }
    assert!(is_malformed(&rest(&open, &[])));
    assert_eq!(select_in(&closed, &["/0"]), Err(FieldError::TooDeep));
    assert_eq!(rest(&closed, &[]), Err(FieldError::TooDeep));
    assert_eq!(found(&closed, &["/1", "/0/0/0/1"]), 0);
}

#[test]
fn the_canonical_form_is_what_the_module_says() {
    let body = br#"{"b":["x",-1.5e3,1e9223372036854775808,null,true,false,9],"a":{}}"#;
    let mut expected = Digest::new(Domain::Test);
    expected.tag(PRESENT);
    expected.tag(OBJECT);
    expected.count(2);
    expected.field(b"a");
    expected.tag(OBJECT);
    expected.count(0);
    expected.field(b"b");
    expected.tag(ARRAY);
    expected.count(7);
    expected.tag(STRING);
    expected.field(b"x");
    expected.tag(NUMBER);
    expected.tag(1);
    expected.raw(&2_i64.to_le_bytes());
    expected.field(b"15");
    expected.tag(NUMBER_AS_TEXT);
    expected.field(b"1e9223372036854775808");
    expected.raw(&[NULL, TRUE, FALSE, LEFT_OUT]);

    let mut fed = Digest::new(Domain::Test);
    fed.tag(PRESENT);
    without(body, &fields(&["/b/6"]), &mut fed).expect("valid");
    assert_eq!(fed.finish(), expected.finish());

    let mut expected = Digest::new(Domain::Test);
    expected.raw(&[PRESENT, TRUE, ABSENT]);
    let fields = [field("/b/4"), field("/c").optional()];
    let mut fed = Digest::new(Domain::Test);
    assert_eq!(select(body, &fields, Blank::IsAbsent, &mut fed), Ok(1));
    assert_eq!(fed.finish(), expected.finish());
}

#[test]
fn notation_does_not_matter() {
    let base = whole(r#"{"a":"é/\"","b":[1,true],"c":{"x":null,"y":-0.5}}"#);
    let same = "\t{ \"c\" : {\"y\":-5e-1 ,\"x\":null},\r\n \"\\u0061\":\"\\u00e9\\/\\u0022\", \"b\" : [ 1.0,true ] }\n";
    assert_eq!(whole(same), base);
    assert_eq!(whole(r#""\ud83d\ude00""#), whole("\"😀\""));
}

#[test]
fn every_value_has_a_digest_of_its_own() {
    let values = [
        "null",
        "false",
        "true",
        "0",
        "1",
        "-1",
        "\"\"",
        "\"1\"",
        "\"null\"",
        "[]",
        "[0]",
        "[[]]",
        "[null]",
        "[1,2]",
        "[2,1]",
        "[12]",
        "[[1],2]",
        "[[1,2]]",
        "[1,[2]]",
        "{}",
        "[{}]",
        r#"{"a":1}"#,
        r#"{"a":"1"}"#,
        r#"{"A":1}"#,
        r#"{"a":null}"#,
        r#"{"":1}"#,
        r#"{"a":1,"b":2}"#,
        r#"{"a":2,"b":1}"#,
        r#"{"a":{"b":2}}"#,
        r#"{"a":{},"b":2}"#,
        r#"["a",1]"#,
        "\"e\u{301}\"",
        "\"\u{e9}\"",
    ];
    let mut digests = values.map(whole).to_vec();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), values.len());
}

#[test]
fn numbers_are_equal_by_value() {
    let same: [&[&str]; 7] = [
        &[
            "1", "1.0", "10e-1", "1e0", "1E+0", "0.1e1", "0.01e+02", "1e-0", "100e-2",
        ],
        &[
            "0",
            "-0",
            "0.0",
            "-0.00",
            "0e5",
            "0e99999999999999999999",
            "-0E-7",
        ],
        &["-120", "-1.2e2", "-12E1", "-120.00", "-0.0120e4"],
        &["0.05", "5e-2", "0.5e-1", "0.00005e3", "0.050"],
        &["10203", "1.0203e4", "1020300e-2"],
        &["1e400", "10e399", "0.1e401"],
        &["9007199254740993", "9007199254740993.0"],
    ];
    for numbers in same {
        for number in numbers {
            assert_eq!(whole(number), whole(numbers[0]), "{number}");
        }
    }
}

#[test]
fn numbers_are_not_rounded() {
    let others = [
        ("9007199254740993", "9007199254740992"),
        ("0.1", "0.10000000000000000001"),
        ("1e400", "1e401"),
        ("1e-400", "0"),
        ("1", "-1"),
        ("10", "100"),
        ("12.5", "1.25"),
        ("0.5", "0.05"),
        ("1e9223372036854775807", "1e9223372036854775806"),
        ("1e9223372036854775808", "1e9223372036854775809"),
        ("10e9223372036854775807", "1e9223372036854775807"),
        ("10e9223372036854775807", "1e-9223372036854775808"),
        ("0.1e-9223372036854775808", "1e9223372036854775807"),
        ("0.1e-9223372036854775808", "1e-9223372036854775808"),
    ];
    for (a, b) in others {
        assert_ne!(whole(a), whole(b), "{a} {b}");
    }
}

#[test]
fn what_is_left_out_does_not_count() {
    let base = rest(r#"{"a":1,"m":{"t":1,"x":2}}"#, &["/m/t", "/s"]);
    assert!(base.is_ok());
    for same in [
        r#"{"a":1,"m":{"x":2}}"#,
        r#"{"m":{"x":2,"t":[{}]},"a":1.0}"#,
        r#"{"s":"now","m":{"x":2,"t":null},"a":1}"#,
    ] {
        assert_eq!(rest(same, &["/m/t", "/s"]), base, "{same}");
    }
    for other in [
        r#"{"a":1,"m":{"x":3}}"#,
        r#"{"a":1,"t":1,"m":{"x":2}}"#,
        r#"{"a":1,"m":{"x":2,"s":1}}"#,
        r#"{"a":1}"#,
    ] {
        assert_ne!(rest(other, &["/m/t", "/s"]), base, "{other}");
    }
    assert_eq!(rest("[1]", &[""]), rest("{}", &[""]));
}

#[test]
fn an_element_that_is_left_out_keeps_its_place() {
    let base = rest("[1,{\"t\":2,\"x\":3},4]", &["/0", "/1/t", "/7"]);
    assert!(base.is_ok());
    assert_eq!(rest("[9,{\"x\":3},4]", &["/0", "/1/t", "/7"]), base);
    assert_ne!(rest("[{\"x\":3},4]", &["/0", "/1/t", "/7"]), base);
    assert_ne!(rest("[1,{\"t\":2,\"x\":3},5]", &["/0", "/1/t", "/7"]), base);
}

/// A value of few enough that two of them are often equal.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    /// A number of tenths.
    Tenths(i64),
    Text(String),
    Array(Vec<Self>),
    Object(BTreeMap<String, Self>),
}

fn leaf() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        (-11_i64..12).prop_map(Json::Tenths),
        "[1\"é]{0,1}".prop_map(Json::Text),
    ]
}

fn json() -> impl Strategy<Value = Json> {
    leaf().prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Json::Array),
            proptest::collection::btree_map("[ab]{0,2}", inner, 0..4).prop_map(Json::Object),
        ]
    })
}

/// Writes values with a notation drawn by lot.
struct Writer<'a> {
    text: String,
    lots: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl Writer<'_> {
    fn write(value: &Json, lots: &[u8]) -> String {
        let mut writer = Writer {
            text: String::new(),
            lots: lots.iter().cycle(),
        };
        writer.value(value);
        writer.text
    }

    fn lot(&mut self, of: usize) -> usize {
        usize::from(*self.lots.next().expect("there are lots")) % of
    }

    fn put(&mut self, token: &str) {
        let space = ["", " ", "\n", "\t\r"][self.lot(4)];
        self.text.push_str(space);
        self.text.push_str(token);
    }

    fn value(&mut self, value: &Json) {
        match value {
            Json::Null => self.put("null"),
            Json::Bool(value) => self.put(&value.to_string()),
            Json::Tenths(tenths) => self.tenths(*tenths),
            Json::Text(text) => self.string(text),
            Json::Array(elements) => {
                self.put("[");
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 {
                        self.put(",");
                    }
                    self.value(element);
                }
                self.put("]");
            }
            Json::Object(members) => self.object(members),
        }
    }

    fn object(&mut self, members: &BTreeMap<String, Json>) {
        let mut members: Vec<_> = members.iter().collect();
        if !members.is_empty() {
            let by = self.lot(members.len());
            members.rotate_left(by);
        }
        self.put("{");
        for (at, (name, value)) in members.into_iter().enumerate() {
            if at > 0 {
                self.put(",");
            }
            self.string(name);
            self.put(":");
            self.value(value);
        }
        self.put("}");
    }

    fn tenths(&mut self, tenths: i64) {
        let sign = if tenths < 0 { "-" } else { "" };
        let (ones, tenth) = (tenths.abs() / 10, tenths.abs() % 10);
        let notation = match self.lot(4) {
            0 => format!("{sign}{ones}.{tenth}"),
            1 => format!("{tenths}e-1"),
            2 => format!("{sign}0.0{ones}{tenth}0E+2"),
            _ => format!("{tenths}.00e-01"),
        };
        self.put(&notation);
    }

    fn string(&mut self, text: &str) {
        self.put("\"");
        for char in text.chars() {
            match self.lot(2) {
                0 => write!(self.text, "\\u{:04x}", u32::from(char)).expect("a string"),
                _ if char == '"' => self.text.push_str("\\\""),
                _ => self.text.push(char),
            }
        }
        self.text.push('"');
    }
}

fn lots() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn digests_are_equal_iff_values_are(a in json(), b in json(), lots_a in lots(), lots_b in lots()) {
        let (text_a, text_b) = (Writer::write(&a, &lots_a), Writer::write(&b, &lots_b));
        prop_assert_eq!(whole(&text_a) == whole(&text_b), a == b, "{} {}", text_a, text_b);
    }

    #[test]
    fn another_notation_gives_the_same_digest(value in json(), lots_a in lots(), lots_b in lots()) {
        let (text_a, text_b) = (Writer::write(&value, &lots_a), Writer::write(&value, &lots_b));
        prop_assert_eq!(whole(&text_a), whole(&text_b), "{} {}", text_a, text_b);
        let select = |text: &str| select_in(text, &["/a", "/b/0"]);
        prop_assert_eq!(select(&text_a), select(&text_b), "{} {}", text_a, text_b);
    }

    #[test]
    fn a_member_left_out_is_as_if_it_were_not_there(
        members in proptest::collection::btree_map("[ab]{1,2}", json(), 0..4),
        lots in lots(),
    ) {
        let mut without = members.clone();
        without.remove("a");
        let text = Writer::write(&Json::Object(members), &lots);
        let expected = Writer::write(&Json::Object(without), &lots);
        prop_assert_eq!(rest(&text, &["/a"])?, whole(&expected));
    }

    #[test]
    fn numbers_are_equal_iff_the_same_digits_stand_at_the_same_places(
        a in "-?(0|[12][01]{0,3})(\\.[01]{1,3})?([eE][-+]?[0-3])?",
        b in "-?(0|[12][01]{0,3})(\\.[01]{1,3})?([eE][-+]?[0-3])?",
    ) {
        // Numbers this small are exact in millionths.
        let millionths = |text: &str| (text.parse::<f64>().expect("a number") * 1e6).round() as i64;
        prop_assert_eq!(whole(&a) == whole(&b), millionths(&a) == millionths(&b));
    }

    #[test]
    fn any_bytes_give_a_digest_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let all = fields(&["", "/a", "/0/a"]);
        let _ = select(&body, &all, Blank::IsAbsent, &mut Digest::new(Domain::Test));
        let _ = without(&body, &all[1..], &mut Digest::new(Domain::Test));
    }

    #[test]
    fn nearly_json_gives_a_digest_or_an_error(
        body in r#"([\[\]{},:"\\0-9eE.+-]|"a"|\\ud800|true|null|"a":|\[\{){0,24}"#,
    ) {
        let read = select_in(&body, &["", "/a", "/0/a"]);
        prop_assert!(read.is_err() || serde_json::from_str::<IgnoredAny>(&body).is_ok());
        let _ = rest(&body, &["/a", "/0/a"]);
    }
}
