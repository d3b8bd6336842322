//! The three classes of ends, and the one table that says which status is of which class.

use std::fmt;

use http::StatusCode;

/// What the end of a run says of the operation. The class decides what becomes of the key.
///
/// | class | HTTP | gRPC | the key |
/// |---|---|---|---|
/// | [final](Self::Final) | 2xx, 300–303, 402 | `OK`, `ALREADY_EXISTS` | completes with the response, which is replayed |
/// | [nothing done](Self::NothingDone) | every 4xx but 402, 408, 424 and 499; 307, 308, 501, 505 | `INVALID_ARGUMENT`, `NOT_FOUND`, `PERMISSION_DENIED`, `FAILED_PRECONDITION`, `ABORTED`, `UNIMPLEMENTED`, `UNAUTHENTICATED` | is released: the next request runs, also one with another body |
/// | [unknown](Self::Unknown) | 408, 424, 499, every other 5xx, and all that is not named here | every other code, and none | the [orphan policy](crate::Orphan) decides at once |
///
/// A panic, an error of the service and a response that breaks off are *unknown*, too. A refusal
/// of a layer of this crate further in, known by its header `Idempotency-Refused`, is *nothing
/// done* where it promises that nothing ran. `Retry-After` and `grpc-retry-pushback-ms` change no
/// class: they say how long to wait, and nothing of what was done.
///
/// A redirection to a login page is *final*, as every 302: authentication belongs outside of the
/// layer, where a request that is not authenticated never gets to a key.
///
/// This is the table of [`Recording::default`](crate::Recording), which can be changed. A handler
/// changes the class of one response by a [`RecordingOverride`](crate::RecordingOverride), and
/// says when its work begins by [`Attempt::begin_effects`](crate::Attempt::begin_effects).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The operation has its outcome.
    Final,
    /// Nothing was done.
    NothingDone,
    /// Nobody can say whether anything was done.
    Unknown,
}

impl End {
    /// Returns the class of an HTTP status.
    ///
    /// An informational status is *final*: 101 hands the connection over to another protocol.
    pub const fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            100..=303 | 402 => Self::Final,
            408 | 424 | 499 => Self::Unknown,
            307 | 308 | 400..=499 | 501 | 505 => Self::NothingDone,
            _ => Self::Unknown,
        }
    }

    /// Returns the class of a gRPC status code. What is no code is *unknown*.
    pub const fn of_grpc_code(code: u16) -> Self {
        match code {
            // OK, ALREADY_EXISTS
            0 | 6 => Self::Final,
            // INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, ABORTED,
            // UNIMPLEMENTED, UNAUTHENTICATED
            3 | 5 | 7 | 9 | 10 | 12 | 16 => Self::NothingDone,
            _ => Self::Unknown,
        }
    }

    /// Returns a short name for logs and metrics: `final`, `nothing-done` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::NothingDone => "nothing-done",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a response says by its status: that of HTTP, or that of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Http(StatusCode),
    /// The code, or [`NO_CODE`].
    Grpc(u16),
}

/// A gRPC status that is missing, or that is no number.
pub(crate) const NO_CODE: u16 = u16::MAX;

impl Word {
    pub(crate) const fn end(self) -> End {
        match self {
            Self::Http(status) => End::of_status(status),
            Self::Grpc(code) => End::of_grpc_code(code),
        }
    }

    /// Whether it says that the operation succeeded.
    pub(crate) fn is_success(self) -> bool {
        match self {
            Self::Http(status) => status.is_success(),
            Self::Grpc(code) => code == 0,
        }
    }

    /// Whether it redirects, or is no final response.
    fn leads_on(self) -> bool {
        matches!(self, Self::Http(status) if status.is_redirection() || status.is_informational())
    }
}

/// What a run has said of its effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Effects {
    /// Nothing: no status can say whether the work had begun.
    #[default]
    Untold,
    /// It announces them, and has not begun.
    Announced,
    Begun,
}

impl Effects {
    /// Returns the class of a response, where the effects say more than its status alone.
    pub(crate) fn end(self, word: Word) -> Option<End> {
        match self {
            Self::Untold => None,
            Self::Announced if word.is_success() || word.leads_on() => None,
            Self::Announced => Some(End::NothingDone),
            Self::Begun => match (word, word.end()) {
                // Not the handler's word, but that of a timeout, or of a client that has gone.
                (_, End::Unknown) => Some(End::Unknown),
                (_, End::Final) => None,
                (Word::Http(status), _) if status.is_client_error() => Some(End::Final),
                (Word::Grpc(code), _) if code != UNIMPLEMENTED => Some(End::Final),
                // "Not here" is no longer true.
                _ => Some(End::Unknown),
            },
        }
    }

    /// Returns the class of an end that has no response: a panic, an error, or a response that
    /// broke off.
    pub(crate) const fn end_of_failure(self) -> End {
        match self {
            Self::Announced => End::NothingDone,
            Self::Untold | Self::Begun => End::Unknown,
        }
    }
}

const UNIMPLEMENTED: u16 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(end: End) -> Vec<u16> {
        (100..=999)
            .filter(|status| {
                StatusCode::from_u16(*status).is_ok_and(|status| End::of_status(status) == end)
            })
            .collect()
    }

    #[test]
    fn each_status_has_its_class() {
        let finals: Vec<u16> = (100..=303).chain([402]).collect();
        assert_eq!(statuses(End::Final), finals);
        let client_errors = (400..=499).filter(|status| ![402, 408, 424, 499].contains(status));
        let nothing_done: Vec<u16> = [307, 308]
            .into_iter()
            .chain(client_errors)
            .chain([501, 505])
            .collect();
        assert_eq!(statuses(End::NothingDone), nothing_done);
        assert_eq!(
            statuses(End::Unknown).len(),
            900 - finals.len() - nothing_done.len()
        );
    }

    #[test]
    fn each_grpc_code_has_its_class() {
        let codes = |end| -> Vec<u16> {
            (0..=u16::MAX)
                .filter(|code| End::of_grpc_code(*code) == end)
                .collect()
        };
        assert_eq!(codes(End::Final), [0, 6]);
        assert_eq!(codes(End::NothingDone), [3, 5, 7, 9, 10, 12, 16]);
        assert_eq!(End::of_grpc_code(NO_CODE), End::Unknown);
    }

    fn told(effects: Effects, status: u16) -> Option<End> {
        let status = StatusCode::from_u16(status).expect("a status");
        effects.end(Word::Http(status))
    }

    #[test]
    fn before_the_effects_begin_every_end_but_success_and_redirection_is_nothing_done() {
        for status in (200..400).chain([101]) {
            assert_eq!(told(Effects::Announced, status), None, "{status}");
        }
        for status in 400..=999 {
            assert_eq!(
                told(Effects::Announced, status),
                Some(End::NothingDone),
                "{status}"
            );
        }
        assert_eq!(Effects::Announced.end(Word::Grpc(0)), None);
        for code in (1..20).chain([NO_CODE]) {
            let end = Effects::Announced.end(Word::Grpc(code));
            assert_eq!(end, Some(End::NothingDone), "{code}");
        }
        assert_eq!(Effects::Announced.end_of_failure(), End::NothingDone);
    }

    #[test]
    fn after_the_effects_have_begun_nothing_is_nothing_done() {
        for status in 100..=999 {
            let end = told(Effects::Begun, status);
            let expected = match status {
                100..=303 | 402 => None,
                408 | 424 | 499 => Some(End::Unknown),
                400..=499 => Some(End::Final),
                _ => Some(End::Unknown),
            };
            assert_eq!(end, expected, "{status}");
        }
        for code in (0..20).chain([NO_CODE]) {
            let expected = match code {
                0 | 6 => None,
                3 | 5 | 7 | 9 | 10 | 16 => Some(End::Final),
                _ => Some(End::Unknown),
            };
            assert_eq!(Effects::Begun.end(Word::Grpc(code)), expected, "{code}");
        }
        assert_eq!(Effects::Begun.end_of_failure(), End::Unknown);
        assert_eq!(Effects::Untold.end_of_failure(), End::Unknown);
    }
}
