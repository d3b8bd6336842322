//! The settings of the layer that concern HTTP.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, response};

use crate::executor::{Executor, Room};
use crate::fields::essence;
use crate::policy::{Recording, RecordingOverride};
use crate::problem::Responder;
use crate::request::{Identification, Look};
use crate::store::Store;

/// Everything that the services of one layer share.
#[derive(Debug)]
pub(crate) struct Shared<St> {
    pub(crate) executor: Executor<St>,
    pub(crate) settings: Settings,
}

impl<St: Store> Shared<St> {
    /// The room that there is for request bodies.
    pub(crate) fn room(&self) -> Room<'_> {
        self.executor.room(self.settings.max_buffered)
    }
}

impl<St> Clone for Shared<St> {
    fn clone(&self) -> Self {
        Self {
            executor: self.executor.clone(),
            settings: self.settings.clone(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) methods: Vec<Method>,
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) identification: Identification,
    pub(crate) key_required: bool,
    pub(crate) max_request_body: usize,
    pub(crate) max_buffered: usize,
    pub(crate) max_response_body: usize,
    pub(crate) recording: Recording,
    pub(crate) unstored_headers: Vec<HeaderName>,
    pub(crate) fail_open: bool,
    pub(crate) report_times: bool,
    pub(crate) report_outcome: bool,
    pub(crate) responder: Responder,
}

type Filter = dyn Fn(&Parts) -> bool + Send + Sync;

impl Default for Settings {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            filter: None,
            identification: Identification::default(),
            key_required: false,
            max_request_body: 1 << 20,
            max_buffered: 256 << 20,
            max_response_body: 1 << 20,
            recording: Recording::default(),
            unstored_headers: vec![http::header::SET_COOKIE],
            fail_open: false,
            report_times: false,
            report_outcome: false,
            responder: Responder::default(),
        }
    }
}

impl Settings {
    /// Says, at the price of a header look-up, what there is of a key; `None` when the request is
    /// not to be guarded.
    pub(crate) fn look<B>(&self, request: &Request<B>) -> Option<Look> {
        if !self.methods.contains(request.method()) {
            return None;
        }
        match self.identification.source.look(request.headers()) {
            Look::Absent if !self.key_required => None,
            look => Some(look),
        }
    }

    /// Whether the application wants a request guarded.
    pub(crate) fn is_picked(&self, parts: &Parts) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter(parts))
    }

    /// The longest body that a request may have: a longer one would not fit in at any time.
    pub(crate) fn longest_request_body(&self) -> usize {
        self.max_request_body.min(self.max_buffered)
    }

    /// Whether a response that was to be recorded still is, now that its trailers are known.
    pub(crate) fn records(&self, response: &response::Parts, trailers: Option<&HeaderMap>) -> bool {
        trailers.is_none() || self.recording.records(response, trailers)
    }

    /// What is kept of a response, by its status and headers.
    pub(crate) fn keep(&self, response: &response::Parts) -> Keep {
        let said = response.extensions.get::<RecordingOverride>();
        match said {
            Some(RecordingOverride::Release) => Keep::Not,
            Some(RecordingOverride::Stream) => Keep::ThatItWasNotStored(None),
            Some(RecordingOverride::RetainFor(retention)) => kept(response, Some(*retention)),
            None if self.recording.records(response, None) => kept(response, None),
            None => Keep::Not,
        }
    }

    /// Says which header fields of a response are recorded.
    pub(crate) fn stored_headers(&self, headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool {
        let of_connection = named_by_connection(headers);
        move |name| {
            !is_of_one_message(name)
                && !self.unstored_headers.contains(name)
                && !of_connection.contains(name)
        }
    }
}

/// What is kept of a response.
pub(crate) enum Keep {
    /// Nothing: the next request runs.
    Not,
    /// That the operation ran and its response was not stored: for so long, or else for the
    /// retention that was set.
    ThatItWasNotStored(Option<Duration>),
    /// All of it, for so long.
    For(Option<Duration>),
}

fn kept(response: &response::Parts, retention: Option<Duration>) -> Keep {
    match is_stream(response) {
        true => Keep::ThatItWasNotStored(retention),
        false => Keep::For(retention),
    }
}

/// Whether a response never ends by its nature, or is no message at all.
fn is_stream(response: &response::Parts) -> bool {
    let is_event_stream = response
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| essence(value.as_bytes()).eq_ignore_ascii_case(b"text/event-stream"));
    is_event_stream || response.status.is_informational()
}

/// Fields that belong to one connection ([RFC 9110, section 7.6.1]), and the date of one message.
///
/// [RFC 9110, section 7.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
fn is_of_one_message(name: &HeaderName) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    // Most names are told apart from all of these by their length.
    if !matches!(name.as_str().len(), 2 | 4 | 7 | 10 | 16 | 17) {
        return false;
    }
    *name == CONNECTION
        || *name == http::header::DATE
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == TE
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
}

/// The fields that `Connection` names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("methods", &self.methods)
            .field("is_filtered", &self.filter.is_some())
            .field("identification", &self.identification)
            .field("key_required", &self.key_required)
            .field("max_request_body", &self.max_request_body)
            .field("max_buffered", &self.max_buffered)
            .field("max_response_body", &self.max_response_body)
            .field("recording", &self.recording)
            .field("unstored_headers", &self.unstored_headers)
            .field("fail_open", &self.fail_open)
            .field("report_times", &self.report_times)
            .field("report_outcome", &self.report_outcome)
            .field("responder", &self.responder)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_one_message_are_told_from_those_of_an_answer() {
        for name in [
            "connection",
            "date",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
        ] {
            assert!(is_of_one_message(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["etag", "request-id", "stripe-version", "via", "warning"] {
            assert!(!is_of_one_message(&HeaderName::from_static(name)), "{name}");
        }
    }
}
