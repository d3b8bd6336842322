//! The settings of the layer that concern HTTP.

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request};

use crate::executor::{Executor, Room};
use crate::layer::body::Limits;
use crate::layer::problem::{Responder, is_grpc};
use crate::layer::recording::Recording;
use crate::layer::request::{Identification, Look};
use crate::layer::service::Carry;
use crate::store::Store;

/// Everything that the services of one layer share.
#[derive(Debug)]
pub(crate) struct Shared<St> {
    pub(crate) executor: Executor<St>,
    pub(crate) settings: Settings,
    /// Whether it was told what is wrong with them.
    pub(crate) told: Once,
}

impl<St> Shared<St> {
    pub(crate) fn new(executor: Executor<St>, settings: Settings) -> Self {
        Self {
            executor,
            settings,
            told: Once::new(),
        }
    }
}

impl<St: Store> Shared<St> {
    /// The room that there is for request bodies.
    pub(crate) fn room(&self) -> Room<'_> {
        self.executor.room(self.settings.max_buffered)
    }
}

impl<St> Clone for Shared<St> {
    fn clone(&self) -> Self {
        Self::new(self.executor.clone(), self.settings.clone())
    }
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) methods: Vec<Method>,
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) identification: Identification,
    pub(crate) key_required: bool,
    /// gRPC methods that are guarded, as paths; `None`: all.
    pub(crate) grpc_methods: Option<Vec<String>>,
    pub(crate) body_idle: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) max_request_body: usize,
    pub(crate) max_buffered: usize,
    pub(crate) recording: Recording,
    pub(crate) fail_open: bool,
    pub(crate) report_times: bool,
    pub(crate) report_outcome: bool,
    pub(crate) responder: Responder,
    pub(crate) carry: Option<Carry>,
}

type Filter = dyn Fn(&Parts) -> bool + Send + Sync;

impl Default for Settings {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            filter: None,
            identification: Identification::default(),
            key_required: false,
            grpc_methods: None,
            body_idle: Duration::from_secs(30),
            request_timeout: Duration::from_secs(5 * 60),
            max_request_body: 1 << 20,
            max_buffered: 256 << 20,
            recording: Recording::default(),
            fail_open: false,
            report_times: false,
            report_outcome: false,
            responder: Responder::default(),
            carry: None,
        }
    }
}

impl Settings {
    /// Says, at the price of a header look-up, what there is of a key; `None` when the request is
    /// not to be guarded.
    #[inline]
    pub(crate) fn look<B>(&self, request: &Request<B>) -> Option<Look> {
        if !self.methods.contains(request.method()) {
            return None;
        }
        match self.identification.source.look(request.headers()) {
            Look::Absent if !self.key_required => None,
            look => Some(look),
        }
    }

    /// Says what there is of a key where only the whole head tells; `None` when the request is not
    /// to be guarded.
    pub(crate) fn look_again(&self, parts: &Parts) -> Option<Look> {
        match self.identification.source.look_again(parts) {
            Look::Absent if !self.key_required => None,
            look => Some(look),
        }
    }

    /// Whether the application wants a request guarded.
    pub(crate) fn is_picked(&self, parts: &Parts) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter(parts))
            && self.grpc_methods.as_ref().is_none_or(|methods| {
                !is_grpc(&parts.headers) || methods.iter().any(|path| path == parts.uri.path())
            })
    }

    /// How long the body of a request may take.
    pub(crate) const fn body_limits(&self) -> Limits {
        Limits {
            idle: self.body_idle,
            total: self.request_timeout,
        }
    }

    /// The longest body that a request may have: a longer one would not fit in at any time.
    pub(crate) fn longest_request_body(&self) -> usize {
        self.max_request_body.min(self.max_buffered)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("methods", &self.methods)
            .field("is_filtered", &self.filter.is_some())
            .field("identification", &self.identification)
            .field("key_required", &self.key_required)
            .field("grpc_methods", &self.grpc_methods)
            .field("body_idle", &self.body_idle)
            .field("request_timeout", &self.request_timeout)
            .field("max_request_body", &self.max_request_body)
            .field("max_buffered", &self.max_buffered)
            .field("recording", &self.recording)
            .field("fail_open", &self.fail_open)
            .field("report_times", &self.report_times)
            .field("report_outcome", &self.report_outcome)
            .field("responder", &self.responder)
            .field("carry", &self.carry)
            .finish()
    }
}
