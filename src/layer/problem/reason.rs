//! Why a request is refused.

use std::fmt;

use http::StatusCode;

/// Why a request was refused. Its [`code`](Self::code) is stable, and what clients should
/// program against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// <a id="buffers-full"></a>503 `buffers-full`: as many bytes of request bodies are buffered as may be. Try again
    /// with the same key.
    BuffersFull,
    /// <a id="caller-differs"></a>422 `caller-differs`: the key was first sent by another caller. Nothing is told about
    /// that caller's request, neither its contents nor its state. Authenticate as the caller that
    /// first sent the key, or ask for the state of the operation.
    CallerDiffers,
    /// <a id="in-progress"></a>409 `in-progress`: the first request with the key still runs. Try again with the same
    /// key.
    InProgress,
    /// <a id="invalid-key"></a>400 `invalid-key`: the key is malformed.
    InvalidKey,
    /// <a id="key-reused"></a>422 `key-reused`: the caller used the key for another request. A retry must repeat the
    /// request as it was first sent; a new operation needs a key of its own.
    KeyReused,
    /// <a id="lease-lost"></a>409 `lease-lost`: the operation was carried out, but its lease was lost meanwhile, so that
    /// another run has the say about the outcome. Try again with the same key.
    LeaseLost,
    /// <a id="missing-key"></a>400 `missing-key`: a key is required.
    MissingKey,
    /// <a id="not-recorded"></a>503 `not-recorded`: the operation was carried out, but its answer is not recorded yet,
    /// and not given before that. Try again with the same key.
    NotRecorded,
    /// <a id="outcome-unknown"></a>409 `outcome-unknown`: a run under the key ended without an outcome, and is not repeated.
    OutcomeUnknown,
    /// <a id="record-newer"></a>503 `record-newer`: the record of the key was written by a later version of the service,
    /// which this node cannot read. Try again with the same key: another node may read it.
    RecordNewer,
    /// <a id="request-timeout"></a>408 `request-timeout`: the request body stopped, or did not end in time. Nothing was
    /// executed. Try again with the same key.
    RequestTimeout,
    /// <a id="request-too-large"></a>413 `request-too-large`: the request body is longer than the layer may buffer.
    RequestTooLarge,
    /// <a id="response-not-stored"></a>409 `response-not-stored`: the operation ran, but its response was too large, or a
    /// stream, and only the first client got it.
    ResponseNotStored,
    /// <a id="settings-changed"></a>409 `settings-changed`: the key was first used under other settings of the service, by
    /// which this node cannot tell whether it is the same request. Try again with the same key:
    /// another node may know them.
    SettingsChanged,
    /// <a id="shutting-down"></a>503 `shutting-down`: the service stops. Try again with the same key.
    ShuttingDown,
    /// <a id="store-broken"></a>500 `store-broken`: the store of records has a fault that does not pass by itself, or two
    /// services claim the same record one after the other. Someone has to mend it.
    StoreBroken,
    /// <a id="store-full"></a>503 `store-full`: the store of records has no room for a new key. Try again with the same
    /// key, when the store says that its oldest record expires, where it knows.
    StoreFull,
    /// <a id="store-unavailable"></a>503 `store-unavailable`: the store of records cannot be asked. Try again with the same
    /// key.
    StoreUnavailable,
    /// <a id="too-many-runs"></a>503 `too-many-runs`: the service has as many runs in flight as it may. Try again with
    /// the same key.
    TooManyRuns,
    /// <a id="unreadable-request"></a>400 `unreadable-request`: the request body broke off.
    UnreadableRequest,
}

impl RefusalReason {
    /// The machine-readable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::BuffersFull => "buffers-full",
            Self::CallerDiffers => "caller-differs",
            Self::InProgress => "in-progress",
            Self::InvalidKey => "invalid-key",
            Self::KeyReused => "key-reused",
            Self::LeaseLost => "lease-lost",
            Self::MissingKey => "missing-key",
            Self::NotRecorded => "not-recorded",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::RecordNewer => "record-newer",
            Self::RequestTimeout => "request-timeout",
            Self::RequestTooLarge => "request-too-large",
            Self::ResponseNotStored => "response-not-stored",
            Self::SettingsChanged => "settings-changed",
            Self::ShuttingDown => "shutting-down",
            Self::StoreBroken => "store-broken",
            Self::StoreFull => "store-full",
            Self::StoreUnavailable => "store-unavailable",
            Self::TooManyRuns => "too-many-runs",
            Self::UnreadableRequest => "unreadable-request",
        }
    }

    /// The status of the default response.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidKey | Self::MissingKey | Self::UnreadableRequest => {
                StatusCode::BAD_REQUEST
            }
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::InProgress
            | Self::LeaseLost
            | Self::OutcomeUnknown
            | Self::ResponseNotStored
            | Self::SettingsChanged => StatusCode::CONFLICT,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::CallerDiffers | Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::StoreBroken => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BuffersFull
            | Self::NotRecorded
            | Self::RecordNewer
            | Self::ShuttingDown
            | Self::StoreFull
            | Self::StoreUnavailable
            | Self::TooManyRuns => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// A short, fixed summary. Where the draft has one, it is the draft's ([section 2.7]).
    ///
    /// [section 2.7]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07#section-2.7
    pub const fn title(self) -> &'static str {
        match self {
            Self::BuffersFull => "Too many requests are being received",
            Self::CallerDiffers => "Idempotency-Key belongs to another caller",
            Self::InProgress => "A request is outstanding for this Idempotency-Key",
            Self::InvalidKey => "Idempotency-Key is malformed",
            Self::KeyReused => "Idempotency-Key is already used",
            Self::LeaseLost => "The outcome of this operation is being decided",
            Self::MissingKey => "Idempotency-Key is missing",
            Self::NotRecorded => "The outcome of this operation is not recorded yet",
            Self::OutcomeUnknown => "The outcome of this operation is not known",
            Self::RecordNewer => "The record of this Idempotency-Key cannot be read here",
            Self::RequestTimeout => "The request body did not come in time",
            Self::RequestTooLarge => "The request body is too large",
            Self::ResponseNotStored => "The response to this operation was not stored",
            Self::SettingsChanged => "The settings for this Idempotency-Key have changed",
            Self::ShuttingDown => "The service is shutting down",
            Self::StoreBroken => "Idempotency records are out of order",
            Self::StoreFull => "There is no room for a new Idempotency-Key",
            Self::StoreUnavailable => "Idempotency records are unavailable",
            Self::TooManyRuns => "Too many operations are in progress",
            Self::UnreadableRequest => "The request body could not be read",
        }
    }

    /// Whether the same request, with the same key, may be sent again; see also
    /// [`Refusal::is_retryable`](crate::Refusal::is_retryable).
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::BuffersFull
                | Self::InProgress
                | Self::LeaseLost
                | Self::NotRecorded
                | Self::RecordNewer
                | Self::RequestTimeout
                | Self::SettingsChanged
                | Self::ShuttingDown
                | Self::StoreFull
                | Self::StoreUnavailable
                | Self::TooManyRuns
                | Self::UnreadableRequest
        )
    }

    pub(super) const fn grpc_status(self) -> u16 {
        const INVALID_ARGUMENT: u16 = 3;
        const DEADLINE_EXCEEDED: u16 = 4;
        const ALREADY_EXISTS: u16 = 6;
        const RESOURCE_EXHAUSTED: u16 = 8;
        const FAILED_PRECONDITION: u16 = 9;
        const ABORTED: u16 = 10;
        const INTERNAL: u16 = 13;
        const UNAVAILABLE: u16 = 14;
        match self {
            Self::CallerDiffers | Self::InvalidKey | Self::KeyReused | Self::MissingKey => {
                INVALID_ARGUMENT
            }
            Self::RequestTimeout => DEADLINE_EXCEEDED,
            Self::ResponseNotStored => ALREADY_EXISTS,
            Self::RequestTooLarge => RESOURCE_EXHAUSTED,
            Self::OutcomeUnknown => FAILED_PRECONDITION,
            Self::InProgress
            | Self::LeaseLost
            | Self::SettingsChanged
            | Self::UnreadableRequest => ABORTED,
            Self::StoreBroken => INTERNAL,
            Self::BuffersFull
            | Self::NotRecorded
            | Self::RecordNewer
            | Self::ShuttingDown
            | Self::StoreFull
            | Self::StoreUnavailable
            | Self::TooManyRuns => UNAVAILABLE,
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
