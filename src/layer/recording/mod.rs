//! Which class the end of a run is of.

mod judged;
mod media;
mod refused;
mod said;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;

pub(crate) use self::judged::Judged;
use self::media::Form;
pub(crate) use self::media::has_second_message;
pub use self::said::RecordingOverride;
use crate::executor::asked;
use crate::protocol::end::{Effects, End, NO_CODE, Word};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Says of which class each response is, and so what becomes of its key; see [`End`].
///
/// It starts from a named set, and is changed status by status or by functions:
///
/// ```
/// use tower_idempotency::{End, Recording};
///
/// // This API declines with 422, after it has asked the provider.
/// let recording = Recording::default().also_final([422]);
///
/// // GraphQL puts its errors into a 200.
/// let graphql = Recording::default().by_body(|response| {
///     let body: serde_json::Value = serde_json::from_slice(response.body()).ok()?;
///     body.get("errors").map(|_| End::NothingDone)
/// });
/// ```
///
/// What decides is, in this order: what the handler says of the one response
/// ([`RecordingOverride`](crate::RecordingOverride)); the functions of [`by_body`](Self::by_body);
/// those of [`by_head`](Self::by_head); the `also_` lists, the last one first; what the handler
/// says of its effects ([`Attempt::begin_effects`](crate::Attempt::begin_effects)); and the set.
/// A refusal of a layer of this crate further in is *nothing done* whatever lists and sets say,
/// where it promises that nothing ran: it is not the handler's response.
///
/// A gRPC response (`application/grpc`, or with `+` or `;` after it) counts by its `grpc-status`,
/// in the trailers or, where there are none, in the head. gRPC-Web and Connect put it into the
/// body, where a function of [`by_body`](Self::by_body) can read it; only that of a gRPC-Web
/// response without a message is in its head, and counts.
#[derive(Clone, Default)]
pub struct Recording {
    set: Set,
    also: Vec<(Word, End)>,
    by_head: Vec<Arc<ByHead>>,
    by_body: Vec<Arc<ByBody>>,
}

type ByHead = dyn Fn(&Parts) -> Option<End> + Send + Sync;
type ByBody = dyn Fn(&CapturedResponse<'_>) -> Option<End> + Send + Sync;

/// A named set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Set {
    #[default]
    Default,
    StripeV1,
    Success,
}

/// The named sets. The default one is the table of [`End`].
impl Recording {
    /// Returns the set in which every response is *final*, a 500 too: what Stripe's API v1 does
    /// once a request has begun to execute.
    ///
    /// In a handler that announces its effects, what happens before they begin is *nothing done*
    /// here, too; and this is then exactly Stripe's rule.
    pub fn stripe_v1() -> Self {
        Self::of(Set::StripeV1)
    }

    /// Returns the set in which 2xx, and gRPC `OK`, are *final*, and no other response is.
    ///
    /// Of what the default has as final, 402 and `ALREADY_EXISTS` are *nothing done*; 300–303 are
    /// *unknown*, because many a handler redirects after it has done its work.
    pub fn success() -> Self {
        Self::of(Set::Success)
    }

    fn of(set: Set) -> Self {
        Self {
            set,
            ..Self::default()
        }
    }
}

/// What is changed of a set.
impl Recording {
    /// Makes responses with these statuses *final*.
    #[must_use]
    pub fn also_final(self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.also_http(statuses, End::Final)
    }

    /// Makes responses with these statuses *nothing done*.
    #[must_use]
    pub fn also_nothing_done(self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.also_http(statuses, End::NothingDone)
    }

    /// Makes responses with these statuses *unknown*.
    #[must_use]
    pub fn also_unknown(self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.also_http(statuses, End::Unknown)
    }

    /// Makes gRPC responses with these codes *final*.
    #[must_use]
    pub fn also_final_grpc(self, codes: impl IntoIterator<Item = u16>) -> Self {
        self.also_grpc(codes, End::Final)
    }

    /// Makes gRPC responses with these codes *nothing done*.
    #[must_use]
    pub fn also_nothing_done_grpc(self, codes: impl IntoIterator<Item = u16>) -> Self {
        self.also_grpc(codes, End::NothingDone)
    }

    /// Makes gRPC responses with these codes *unknown*.
    #[must_use]
    pub fn also_unknown_grpc(self, codes: impl IntoIterator<Item = u16>) -> Self {
        self.also_grpc(codes, End::Unknown)
    }

    /// Adds a function that says by its head of which class a response is, or leaves that to
    /// what comes after it, with `None`.
    ///
    /// Functions are asked in the order in which they were added, each at most once per response.
    /// One that panics is logged, and the response counts as *unknown*.
    #[must_use]
    pub fn by_head(
        mut self,
        judge: impl Fn(&Parts) -> Option<End> + Send + Sync + 'static,
    ) -> Self {
        self.by_head.push(Arc::new(judge));
        self
    }

    /// Adds a function that says by its body and trailers of which class a response is, or leaves
    /// that to what comes after it, with `None`.
    ///
    /// It is asked as one of [`by_head`](Self::by_head), and before those. A response whose body
    /// is not read to its end, because it is a stream or longer than
    /// [`max_response_body`](crate::IdempotencyLayer::max_response_body), is not shown to it.
    ///
    /// With such a function every response is read before the client gets it, also one that will
    /// not be recorded.
    #[must_use]
    pub fn by_body(
        mut self,
        judge: impl Fn(&CapturedResponse<'_>) -> Option<End> + Send + Sync + 'static,
    ) -> Self {
        self.by_body.push(Arc::new(judge));
        self
    }

    fn also_http(self, statuses: impl IntoIterator<Item = u16>, end: End) -> Self {
        // What is no status never comes.
        let statuses = statuses
            .into_iter()
            .filter_map(|status| status.try_into().ok());
        self.also(statuses.map(Word::Http), end)
    }

    fn also_grpc(self, codes: impl IntoIterator<Item = u16>, end: End) -> Self {
        self.also(codes.into_iter().map(Word::Grpc), end)
    }

    fn also(mut self, words: impl Iterator<Item = Word>, end: End) -> Self {
        self.also.extend(words.map(|word| (word, end)));
        self
    }
}

/// How the class of a response is found.
impl Recording {
    /// Whether the body of a response has to be read to tell its class.
    pub(super) fn looks_at_bodies(&self) -> bool {
        !self.by_body.is_empty()
    }

    /// What the functions say that look at a whole response.
    pub(super) fn class_by_body(&self, response: &CapturedResponse<'_>) -> Option<End> {
        self.by_body
            .iter()
            .find_map(|judge| asked("Recording::by_body", || judge(response)))
    }

    /// What the functions say that look at a head.
    pub(super) fn class_by_head(&self, head: &Parts) -> Option<End> {
        self.by_head
            .iter()
            .find_map(|judge| asked("Recording::by_head", || judge(head)))
    }

    /// What lists, effects and set say of a response, `whole` or not; `None` for a gRPC response
    /// whose status is still to come.
    pub(super) fn class_by_status(
        &self,
        head: &Parts,
        form: Form,
        whole: Option<Option<&HeaderMap>>,
        effects: impl FnOnce() -> Effects,
    ) -> Option<End> {
        let word = match form {
            Form::Whole | Form::Stream => Word::Http(head.status),
            Form::Grpc => Word::Grpc(grpc_code(&head.headers, whole)?),
            Form::GrpcWeb => match head.headers.get(GRPC_STATUS) {
                Some(value) => Word::Grpc(code(value)),
                None => Word::Http(head.status),
            },
        };
        if word.is_success() {
            return Some(match self.also.is_empty() {
                true => End::Final,
                false => self.listed(word).unwrap_or(End::Final),
            });
        }
        if let Some(end) = refused::end(&head.headers) {
            return Some(match effects() {
                // It is the word of a service that the handler has called meanwhile.
                Effects::Begun => End::Unknown,
                _ => end,
            });
        }
        Some(self.listed(word).unwrap_or_else(|| {
            let effects = effects();
            match self.set {
                Set::StripeV1 if effects == Effects::Begun => End::Final,
                _ => effects.end(word).unwrap_or_else(|| self.set.end(word)),
            }
        }))
    }

    fn listed(&self, word: Word) -> Option<End> {
        let mut last_first = self.also.iter().rev();
        last_first
            .find(|(listed, _)| *listed == word)
            .map(|(_, end)| *end)
    }
}

impl Set {
    fn end(self, word: Word) -> End {
        match (self, word) {
            (Self::StripeV1, _) => End::Final,
            (Self::Success, _) if word.is_success() => End::Final,
            (Self::Success, Word::Http(status)) if status.is_redirection() => match word.end() {
                End::Final => End::Unknown,
                end => end,
            },
            (Self::Success, _) => match word.end() {
                End::Final => End::NothingDone,
                end => end,
            },
            (Self::Default, _) => word.end(),
        }
    }
}

/// The status of a gRPC response; `None` when it may still come. That of the trailers is the last
/// word; a failure that is in the head already comes instead of a message.
fn grpc_code(head: &HeaderMap, whole: Option<Option<&HeaderMap>>) -> Option<u16> {
    let in_head = head.get(GRPC_STATUS).map(code);
    match (in_head, whole) {
        (None | Some(0), None) => None,
        (Some(code), None) => Some(code),
        (_, Some(trailers)) => {
            let in_trailers = trailers.and_then(|trailers| trailers.get(GRPC_STATUS));
            Some(in_trailers.map(code).or(in_head).unwrap_or(NO_CODE))
        }
    }
}

fn code(value: &HeaderValue) -> u16 {
    match value.as_bytes() {
        [digit @ b'0'..=b'9'] => u16::from(digit - b'0'),
        [b'1', digit @ b'0'..=b'9'] => 10 + u16::from(digit - b'0'),
        _ => NO_CODE,
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("set", &self.set)
            .field("also", &self.also)
            .field("by_head", &self.by_head.len())
            .field("by_body", &self.by_body.len())
            .finish()
    }
}

/// A response that was read to its end, as [`Recording::by_body`] sees it.
#[derive(Debug)]
pub struct CapturedResponse<'a> {
    head: &'a Parts,
    body: Bytes,
    trailers: Option<&'a HeaderMap>,
}

impl<'a> CapturedResponse<'a> {
    pub(super) const fn new(head: &'a Parts, body: Bytes, trailers: Option<&'a HeaderMap>) -> Self {
        Self {
            head,
            body,
            trailers,
        }
    }

    /// Returns status, header fields and extensions.
    pub const fn head(&self) -> &'a Parts {
        self.head
    }

    /// Returns the whole body. It is compressed if a layer within compresses it.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns the trailers, if there were any.
    pub const fn trailers(&self) -> Option<&'a HeaderMap> {
        self.trailers
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http::header::CONTENT_TYPE;

    use super::*;

    fn head(status: u16) -> Parts {
        let response = http::Response::builder().status(status).body(());
        response.expect("a status").into_parts().0
    }

    fn class(recording: &Recording, head: &Parts, trailers: Option<&HeaderMap>) -> End {
        let untold = || Effects::Untold;
        let form = Form::of(&head.headers);
        recording
            .class_by_status(head, form, Some(trailers), untold)
            .expect("it is whole")
    }

    fn of_class(recording: &Recording, end: End) -> Vec<u16> {
        (200..600)
            .filter(|status| class(recording, &head(*status), None) == end)
            .collect()
    }

    #[test]
    fn a_set_does_what_its_name_says() {
        let finals: Vec<u16> = (200..=303).chain([402]).collect();
        assert_eq!(of_class(&Recording::default(), End::Final), finals);
        assert_eq!(of_class(&Recording::stripe_v1(), End::Final).len(), 400);
        let success = Recording::success();
        let successes: Vec<u16> = (200..300).collect();
        assert_eq!(of_class(&success, End::Final), successes);
        assert_eq!(class(&success, &head(303), None), End::Unknown);
        assert_eq!(class(&success, &head(307), None), End::NothingDone);
        assert_eq!(class(&success, &head(402), None), End::NothingDone);
        assert_eq!(class(&success, &head(500), None), End::Unknown);
    }

    #[test]
    fn the_last_list_that_names_a_status_counts() {
        let recording = Recording::default()
            .also_final([422, 500])
            .also_nothing_done([500, 0, 1000])
            .also_unknown([200, 201])
            .also_final([201]);
        for (status, end) in [
            (422, End::Final),
            (500, End::NothingDone),
            (200, End::Unknown),
            (201, End::Final),
            (202, End::Final),
        ] {
            assert_eq!(class(&recording, &head(status), None), end, "{status}");
        }
    }

    fn grpc(in_head: Option<&'static str>) -> Parts {
        let mut head = head(200);
        let content_type = HeaderValue::from_static("application/grpc+proto");
        head.headers.insert(CONTENT_TYPE, content_type);
        if let Some(code) = in_head {
            let code = HeaderValue::from_static(code);
            head.headers.insert(GRPC_STATUS, code);
        }
        head
    }

    fn trailers(code: &'static str) -> HeaderMap {
        let field = (GRPC_STATUS, HeaderValue::from_static(code));
        [field].into_iter().collect()
    }

    #[test]
    fn a_grpc_response_counts_by_its_grpc_status() {
        let recording = Recording::default();
        for (code, end) in [
            ("0", End::Final),
            ("6", End::Final),
            ("3", End::NothingDone),
            ("16", End::NothingDone),
            ("8", End::Unknown),
            ("14", End::Unknown),
            ("00", End::Unknown),
            ("99", End::Unknown),
            ("x", End::Unknown),
        ] {
            let trailers = trailers(code);
            assert_eq!(
                class(&recording, &grpc(None), Some(&trailers)),
                end,
                "{code}"
            );
            assert_eq!(class(&recording, &grpc(Some(code)), None), end, "{code}");
        }
        let last = trailers("13");
        assert_eq!(
            class(&recording, &grpc(Some("0")), Some(&last)),
            End::Unknown
        );
    }

    #[test]
    fn a_grpc_web_response_counts_by_the_status_in_its_head() {
        let recording = Recording::default();
        for (in_head, end) in [
            (Some("14"), End::Unknown),
            (Some("3"), End::NothingDone),
            (Some("0"), End::Final),
            (None, End::Final),
        ] {
            let mut head = grpc(in_head);
            let content_type = HeaderValue::from_static("application/grpc-web+proto");
            head.headers.insert(CONTENT_TYPE, content_type);
            assert_eq!(class(&recording, &head, None), end, "{in_head:?}");
        }
    }

    #[test]
    fn a_grpc_response_without_a_status_is_unknown() {
        let recording = Recording::default();
        assert_eq!(class(&recording, &grpc(None), None), End::Unknown);
        let empty = HeaderMap::new();
        assert_eq!(class(&recording, &grpc(None), Some(&empty)), End::Unknown);
    }

    #[test]
    fn a_grpc_status_that_may_still_come_is_waited_for() {
        let by_head = |code| {
            let head = grpc(code);
            let untold = || Effects::Untold;
            Recording::default().class_by_status(&head, Form::Grpc, None, untold)
        };
        assert_eq!(by_head(None), None);
        assert_eq!(by_head(Some("0")), None);
        assert_eq!(by_head(Some("5")), Some(End::NothingDone));
    }

    #[test]
    fn a_grpc_status_means_nothing_in_another_response() {
        let mut head = head(200);
        head.headers
            .insert(GRPC_STATUS, HeaderValue::from_static("14"));
        assert_eq!(class(&Recording::default(), &head, None), End::Final);
    }

    #[test]
    fn lists_of_grpc_codes_and_of_statuses_do_not_meet() {
        let recording = Recording::default()
            .also_nothing_done([200])
            .also_final_grpc([14])
            .also_nothing_done_grpc([8])
            .also_unknown_grpc([0]);
        assert_eq!(class(&recording, &grpc(Some("14")), None), End::Final);
        assert_eq!(class(&recording, &grpc(Some("8")), None), End::NothingDone);
        assert_eq!(class(&recording, &grpc(Some("0")), None), End::Unknown);
        assert_eq!(class(&recording, &head(200), None), End::NothingDone);
    }

    #[test]
    fn a_function_that_panics_says_unknown() {
        let recording = Recording::stripe_v1()
            .by_head(|head| match head.status {
                StatusCode::OK => None,
                status => panic!("{status} was not planned for"),
            })
            .by_head(|_| Some(End::NothingDone));
        assert_eq!(recording.class_by_head(&head(200)), Some(End::NothingDone));
        assert_eq!(recording.class_by_head(&head(201)), Some(End::Unknown));
    }

    #[test]
    fn what_begins_its_effects_is_stripes_rule_to_the_letter() {
        let recording = Recording::stripe_v1();
        let class = |effects, status| {
            recording.class_by_status(&head(status), Form::Whole, None, || effects)
        };
        for status in [400, 408, 500] {
            assert_eq!(class(Effects::Announced, status), Some(End::NothingDone));
            assert_eq!(class(Effects::Begun, status), Some(End::Final));
        }
    }

    #[test]
    fn a_recording_can_be_looked_at() {
        let recording = Recording::success().also_final([422]).by_head(|_| None);
        assert_eq!(
            format!("{recording:?}"),
            "Recording { set: Success, also: [(Http(422), Final)], by_head: 1, by_body: 0 }"
        );
    }
}
