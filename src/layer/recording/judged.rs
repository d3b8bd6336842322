//! What the head of a response tells of its end, and what is left for its body to tell.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::response::Parts;

use super::media::Form;
use super::said::RecordingOverride;
use super::{CapturedResponse, Recording};
use crate::protocol::end::{Effects, End};

/// What the head of a response tells of its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    /// `None`: body or trailers have to be seen.
    class: Option<End>,
    form: Form,
    /// Whether it is handed through at once.
    pub(crate) is_stream: bool,
    /// Whether the handler said so.
    pub(crate) is_said: bool,
    /// For how long it is recorded, where the handler said so.
    pub(crate) retention: Option<Duration>,
}

impl Judged {
    pub(crate) const fn is_grpc(&self) -> bool {
        matches!(self.form, Form::Grpc)
    }

    /// The class, as far as the head tells. What is to be seen yet is taken for *final*, so that
    /// the response is read.
    pub(crate) fn class(&self) -> End {
        self.class.unwrap_or(End::Final)
    }
}

impl Recording {
    pub(crate) fn judge(&self, head: &Parts, effects: impl FnOnce() -> Effects) -> Judged {
        let said = head.extensions.get::<RecordingOverride>().copied();
        let form = Form::of(&head.headers);
        let is_stream = form == Form::Stream
            || said == Some(RecordingOverride::Stream)
            || head.status.is_informational();
        let mut retention = None;
        let said = match said {
            Some(RecordingOverride::Final) => Some(End::Final),
            Some(RecordingOverride::FinalFor(time)) => {
                retention = Some(time);
                Some(End::Final)
            }
            Some(RecordingOverride::NothingDone) => Some(End::NothingDone),
            Some(RecordingOverride::Unknown) => Some(End::Unknown),
            Some(RecordingOverride::Stream) | None => None,
        };
        let class = said.or_else(|| {
            let is_left_to_the_body = self.looks_at_bodies() && !is_stream;
            match is_left_to_the_body {
                true => None,
                false => self.judge_by_head(head, form, effects),
            }
        });
        Judged {
            class,
            form,
            is_stream,
            is_said: said.is_some(),
            retention,
        }
    }

    /// Judges a response that was read to its end.
    pub(crate) fn judge_whole(
        &self,
        judged: &Judged,
        head: &Parts,
        body: impl FnOnce() -> Bytes,
        trailers: Option<&HeaderMap>,
        effects: impl FnOnce() -> Effects,
    ) -> End {
        let by_functions = || match self.looks_at_bodies() {
            // What looks at heads was asked then.
            false => None,
            true => self
                .class_by_body(&CapturedResponse::new(head, body(), trailers))
                .or_else(|| self.class_by_head(head)),
        };
        let by_status = || self.class_by_status(head, judged.form, Some(trailers), effects);
        let class = judged.class.or_else(by_functions).or_else(by_status);
        // There is a status, or it is known that there is none.
        class.unwrap_or(End::Unknown)
    }

    /// Judges a response that is not read to its end.
    pub(crate) fn judge_unread(
        &self,
        judged: &Judged,
        head: &Parts,
        effects: impl FnOnce() -> Effects,
    ) -> End {
        let class = judged.class.or_else(|| match self.looks_at_bodies() {
            false => None,
            true => self.judge_by_head(head, judged.form, effects),
        });
        // That of a gRPC response whose status comes after its last message.
        class.unwrap_or(End::Final)
    }

    fn judge_by_head(
        &self,
        head: &Parts,
        form: Form,
        effects: impl FnOnce() -> Effects,
    ) -> Option<End> {
        self.class_by_head(head)
            .or_else(|| self.class_by_status(head, form, None, effects))
    }
}
