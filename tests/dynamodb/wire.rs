//! An HTTP client that counts what goes over it, and loses or replaces answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::config::http::{HttpRequest, HttpResponse};
use aws_sdk_dynamodb::config::{HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::embedded::units::{Units, billed};

/// What happens to a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is carried out, and its answer never comes.
    AnswerLost,
    /// It is carried out, and its answer is cut in half.
    AnswerCut,
    /// It is not carried out, and never answered.
    Hangs,
    /// It is answered with this status and error code.
    Answered(u16, &'static str),
    /// It is answered with this status, error code and message.
    Says(u16, &'static str, &'static str),
    /// It does not see one of the items of a batch.
    LagsBehind,
    /// One of the keys of a batch is left out of the answer.
    LeavesOut,
    /// All of the keys of a batch are left out of the answer.
    LeavesOutAll,
    /// Nothing.
    None,
    /// There is nobody to connect to.
    Unreachable,
    /// It waits until somebody lets it go on.
    Waits,
}

#[derive(Clone, Debug)]
pub(crate) struct Wire(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: SharedHttpClient,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    held: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
    faults: VecDeque<(&'static str, Fault)>,
    always: Option<(&'static str, Fault)>,
    is_down: bool,
    metered: bool,
    units: Units,
    described: serde_json::Map<String, Value>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            http: aws_smithy_http_client::Builder::new().build_http(),
            state: Mutex::default(),
        }))
    }

    /// The calls since the last time that somebody asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// How many calls of `operation` there were since then.
    pub(crate) fn seen(&self, operation: &str) -> usize {
        let state = self.state();
        let seen = state.calls.iter().filter(|call| *call == operation);
        seen.count()
    }

    /// The next call of `operation` meets with `fault`.
    pub(crate) fn fail_next(&self, operation: &'static str, fault: Fault) {
        self.state().faults.push_back((operation, fault));
    }

    /// The call of `operation` after the next one meets with `fault`.
    pub(crate) fn fail_second(&self, operation: &'static str, fault: Fault) {
        self.fail_next(operation, Fault::None);
        self.fail_next(operation, fault);
    }

    /// The call of `operation` after the next one waits. Gives what resolves when it does, and
    /// what lets it go on.
    pub(crate) fn hold_second(
        &self,
        operation: &'static str,
    ) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        self.fail_next(operation, Fault::None);
        self.hold_next(operation)
    }

    /// The same for the next call.
    pub(crate) fn hold_next(
        &self,
        operation: &'static str,
    ) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (arrives, arrived) = oneshot::channel();
        let (goes_on, may_go_on) = oneshot::channel();
        self.state().held = Some((arrives, may_go_on));
        self.fail_next(operation, Fault::Waits);
        (arrived, goes_on)
    }

    /// Every call of `operation` meets with `fault`.
    pub(crate) fn fail_always(&self, operation: &'static str, fault: Fault) {
        self.state().always = Some((operation, fault));
    }

    /// Every call of any operation finds nobody there.
    pub(crate) fn go_down(&self) {
        self.state().is_down = true;
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.always = None;
        state.is_down = false;
        state.faults.clear();
    }

    /// The write units and the read units that calls have taken since the last time that somebody
    /// asked; the first question begins the count.
    pub(crate) fn units(&self) -> Units {
        let mut state = self.state();
        state.metered = true;
        std::mem::take(&mut state.units)
    }

    /// Counts what a call was billed.
    fn count(&self, operation: &str, sent: &Value, answered: &Value) {
        let billed = billed(operation, sent, answered);
        let units = &mut self.state().units;
        units.writes += billed.writes;
        units.reads += billed.reads;
    }

    /// Tables are described as having these members, too.
    pub(crate) fn describe(&self, members: &Value) {
        self.state().described = members.as_object().expect("an object").clone();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no test panics in here")
    }

    fn takes(&self, operation: &str) -> Option<Fault> {
        let mut state = self.state();
        state.calls.push(operation.to_owned());
        if state.is_down {
            return Some(Fault::Unreachable);
        }
        if let Some(&(fails, fault)) = state.faults.front()
            && fails == operation
        {
            state.faults.pop_front();
            return Some(fault);
        }
        state
            .always
            .filter(|(fails, _)| *fails == operation)
            .map(|(_, fault)| fault)
    }

    async fn answer(
        self,
        connector: SharedHttpConnector,
        mut request: HttpRequest,
    ) -> Result<HttpResponse, ConnectorError> {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let fault = self.takes(&operation);
        match fault {
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Unreachable) => {
                let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                return Err(ConnectorError::io(refused.into()));
            }
            Some(Fault::Waits) => {
                let held = self.state().held.take();
                let (arrives, may_go_on) = held.expect("it was said who lets it go on");
                arrives.send(()).expect("the test waits for it");
                may_go_on.await.expect("the test lets it go on");
            }
            Some(Fault::Answered(status, code)) => {
                return Ok(error_answer(status, code, "as planned"));
            }
            Some(Fault::Says(status, code, message)) => {
                return Ok(error_answer(status, code, message));
            }
            Some(Fault::LeavesOutAll) => {
                let keys = json_of(&request)["RequestItems"].take();
                return Ok(answer(200, &json!({ "UnprocessedKeys": keys })));
            }
            _ => {}
        }
        if self.state().metered && operation.ends_with("Item") && operation != "BatchGetItem" {
            ask_for_capacity(&mut request);
        }
        let left_out = match fault {
            Some(Fault::LeavesOut) => Some(leave_one_out(&mut request)),
            _ => None,
        };
        let metered = self.state().metered.then(|| json_of(&request));
        let mut response = connector.call(request).await?;
        match fault {
            Some(Fault::AnswerLost) => {
                let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                return Err(ConnectorError::io(lost.into()));
            }
            Some(Fault::AnswerCut) => {
                let body = collected(&mut response).await;
                *response.body_mut() = SdkBody::from(body[..body.len() / 2].to_vec());
            }
            _ => {}
        }
        if let Some(left_out) = left_out {
            let mut body: Value = serde_json::from_slice(&collected(&mut response).await)
                .expect("the emulator answers with JSON");
            body["UnprocessedKeys"] = left_out;
            response = answer(200, &body);
        }
        if let Some(Fault::LagsBehind) = fault {
            let mut body: Value = serde_json::from_slice(&collected(&mut response).await)
                .expect("the emulator answers with JSON");
            let tables = body["Responses"].as_object_mut().expect("a map");
            let found = tables.values_mut().next().expect("one table");
            found.as_array_mut().expect("a list").pop();
            response = answer(200, &body);
        }
        let described = self.state().described.clone();
        if operation == "DescribeTable" && !described.is_empty() {
            let mut body: Value = serde_json::from_slice(&collected(&mut response).await)
                .expect("the emulator answers with JSON");
            let table = body["Table"].as_object_mut().expect("an object");
            table.extend(described);
            response = answer(200, &body);
        }
        if let Some(sent) = metered {
            let body = collected(&mut response).await;
            if let Ok(json) = serde_json::from_slice(&body) {
                self.count(&operation, &sent, &json);
            }
            *response.body_mut() = SdkBody::from(body);
        }
        Ok(response)
    }
}

async fn collected(response: &mut HttpResponse) -> Vec<u8> {
    let body = std::mem::replace(response.body_mut(), SdkBody::taken());
    let body = body.collect().await.expect("the answer comes whole");
    body.to_bytes().to_vec()
}

fn json_of(request: &HttpRequest) -> Value {
    let body = request.body().bytes().expect("the body is in memory");
    serde_json::from_slice(body).expect("the SDK sends JSON")
}

fn replace_body(request: &mut HttpRequest, body: &Value) {
    let body = body.to_string();
    request
        .headers_mut()
        .insert("content-length", body.len().to_string());
    *request.body_mut() = SdkBody::from(body);
}

fn ask_for_capacity(request: &mut HttpRequest) {
    let mut body = json_of(request);
    body["ReturnConsumedCapacity"] = json!("TOTAL");
    replace_body(request, &body);
}

/// Takes the first key of a batch out, and gives it in the form of unprocessed keys.
fn leave_one_out(request: &mut HttpRequest) -> Value {
    let mut body = json_of(request);
    let tables = body["RequestItems"].as_object_mut().expect("a map");
    let (table, wanted) = tables.iter_mut().next().expect("one table");
    let keys = wanted["Keys"].as_array_mut().expect("a list");
    let left_out = keys.remove(0);
    let unprocessed = json!({ table.clone(): { "Keys": [left_out], "ConsistentRead": true } });
    replace_body(request, &body);
    unprocessed
}

fn error_answer(status: u16, code: &str, message: &str) -> HttpResponse {
    let body = json!({
        "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"),
        "message": message,
    });
    answer(status, &body)
}

fn answer(status: u16, body: &Value) -> HttpResponse {
    let status = StatusCode::try_from(status).expect("a valid status");
    HttpResponse::new(status, SdkBody::from(body.to_string()))
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            wire: self.clone(),
            inner: self.0.http.http_connector(settings, components),
        })
    }
}

#[derive(Debug)]
struct Connector {
    wire: Wire,
    inner: SharedHttpConnector,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.wire.clone().answer(self.inner.clone(), request);
        HttpConnectorFuture::new(answer)
    }
}
