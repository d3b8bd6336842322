//! An HTTP client that answers at once with what it was given.

use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::config::http::{HttpRequest, HttpResponse};
use aws_sdk_dynamodb::config::{HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

#[derive(Clone, Debug)]
pub(crate) struct Wire(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    status: u16,
    answer: Bytes,
    records: bool,
    sent: Vec<Bytes>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            status: 200,
            answer: Bytes::from_static(b"{}"),
            records: true,
            sent: Vec::new(),
        })))
    }

    pub(crate) fn client(&self) -> SharedHttpClient {
        SharedHttpClient::new(self.clone())
    }

    pub(crate) fn answers(&self, status: u16, answer: impl Into<Bytes>) {
        let mut state = self.state();
        (state.status, state.answer) = (status, answer.into());
    }

    /// The body that was sent last.
    pub(crate) fn sent(&self) -> Bytes {
        self.state().sent.pop().expect("something was sent")
    }

    pub(crate) fn record(&self, records: bool) {
        self.state().records = records;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics in here")
    }
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut state = self.state();
        if state.records {
            let body = request.body().bytes().expect("the body is in memory");
            state.sent.push(Bytes::copy_from_slice(body));
        }
        let status = StatusCode::try_from(state.status).expect("a valid status");
        let mut response = HttpResponse::new(status, SdkBody::from(state.answer.clone()));
        let headers = response.headers_mut();
        headers.insert("content-type", "application/x-amz-json-1.0");
        headers.insert(
            "x-amzn-requestid",
            "MD1LIEPAV47A4CTJS6Q9TO6PPVVV4KQNSO5AEMVJF66Q9ASUAAJG",
        );
        HttpConnectorFuture::ready(Ok(response))
    }
}
