//! Every end of a run, under every orphan policy, with and without somebody who waits for it.

use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_idempotency::{Attempt, End, IdempotencyLayer, Orphan, Reconciled, RecordingOverride};

use crate::support::{
    Body, BoxError, Direct, FaultyStore, Gate, channel, direct, empty, eventually, whole,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Status(u16),
    /// The code is in the head, and there is no message.
    GrpcHead(u16),
    /// It is in the trailers, after a message.
    GrpcTrailers(u16),
    GrpcWithoutStatus,
    Error,
    Panic,
    /// Of the body, after its first chunk.
    BodyPanics,
    BreaksOff,
    /// With trailers after that.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Announces,
    Begins,
    AnnouncesAndBegins,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    ends: Ends,
    said: Said,
    says: Option<RecordingOverride>,
}

const STATUSES: [u16; 18] = [
    200, 201, 202, 204, 205, 303, 304, 307, 402, 404, 408, 409, 422, 424, 499, 500, 501, 503,
];
const CODES: [u16; 6] = [0, 3, 6, 8, 12, 13];

fn cases() -> Vec<Case> {
    let statuses = STATUSES.map(Ends::Status).into_iter();
    let in_head = CODES[1..].iter().copied().map(Ends::GrpcHead);
    let in_trailers = CODES.map(Ends::GrpcTrailers);
    let others = [
        Ends::GrpcWithoutStatus,
        Ends::Error,
        Ends::Panic,
        Ends::BodyPanics,
        Ends::BreaksOff,
        Ends::TooLarge,
    ];
    let all = statuses.chain(in_head).chain(in_trailers).chain(others);
    let said = [
        Said::Nothing,
        Said::Announces,
        Said::Begins,
        Said::AnnouncesAndBegins,
    ];
    let says = [
        None,
        Some(RecordingOverride::Final),
        Some(RecordingOverride::NothingDone),
        Some(RecordingOverride::Unknown),
        Some(RecordingOverride::Stream),
    ];
    let mut cases = Vec::new();
    for ends in all {
        for said in said {
            for says in says {
                cases.push(Case { ends, said, says });
            }
        }
    }
    cases
}

impl Case {
    /// What the contract says.
    fn class(self) -> End {
        let has_begun = matches!(self.said, Said::Begins | Said::AnnouncesAndBegins);
        let failed = match self.said {
            Said::Announces => End::NothingDone,
            _ => End::Unknown,
        };
        match (self.says, self.ends) {
            (_, Ends::Error | Ends::Panic) => return failed,
            // It is handed through, so that its body is its client's.
            (Some(RecordingOverride::Stream), Ends::BodyPanics | Ends::BreaksOff) => {
                return End::Final;
            }
            (Some(RecordingOverride::Final), _) => return End::Final,
            (Some(RecordingOverride::NothingDone), _) => return End::NothingDone,
            (Some(RecordingOverride::Unknown), _) => return End::Unknown,
            (_, Ends::BodyPanics | Ends::BreaksOff) => return failed,
            (_, Ends::TooLarge) => return End::Final,
            // Nobody has seen its trailers.
            (Some(RecordingOverride::Stream), Ends::GrpcTrailers(_) | Ends::GrpcWithoutStatus) => {
                return End::Final;
            }
            _ => {}
        }
        let (by_table, is_success, is_client_error) = match self.ends {
            Ends::Status(status) => {
                let status = StatusCode::from_u16(status).expect("a status");
                let succeeds = status.is_success() || status.is_redirection();
                (End::of_status(status), succeeds, status.is_client_error())
            }
            Ends::GrpcHead(code) | Ends::GrpcTrailers(code) => {
                (End::of_grpc_code(code), code == 0, code != 12)
            }
            _ => (End::Unknown, false, false),
        };
        match by_table {
            _ if self.said == Said::Announces && !is_success => End::NothingDone,
            End::NothingDone if has_begun && is_client_error => End::Final,
            End::NothingDone if has_begun => End::Unknown,
            class => class,
        }
    }

    fn response(self, number: usize) -> Response<Body> {
        let grpc = |mut response: Response<Body>| {
            let headers = response.headers_mut();
            headers.insert("content-type", "application/grpc".parse().expect("valid"));
            response
        };
        let code = |code: u16| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.into());
            headers
        };
        let message = || {
            let (sender, body) = channel();
            sender.chunk("\0\0\0\0\x01m");
            (sender, body)
        };
        let mut response = match self.ends {
            Ends::Status(status @ (204 | 205 | 304)) => {
                let mut response = Response::new(empty());
                *response.status_mut() = status.try_into().expect("a status");
                response
            }
            Ends::Status(status) => {
                let mut response = Response::new(whole(format!("run {number}")));
                *response.status_mut() = status.try_into().expect("a status");
                response
            }
            Ends::GrpcHead(number) => {
                let mut response = grpc(Response::new(empty()));
                response.headers_mut().extend(code(number));
                response
            }
            Ends::GrpcTrailers(number) => {
                let (sender, body) = message();
                sender.trailers(code(number));
                grpc(Response::new(body))
            }
            Ends::GrpcWithoutStatus => grpc(Response::new(message().1)),
            Ends::BodyPanics => Response::new(Body::new(PanicsThen(true))),
            Ends::BreaksOff => {
                let (sender, body) = channel();
                sender.chunk("half");
                sender.fail("as planned");
                Response::new(body)
            }
            Ends::TooLarge => {
                let (sender, body) = channel();
                sender.chunk("more than twenty bytes of text");
                sender.trailers(code(13));
                Response::new(body)
            }
            Ends::Error | Ends::Panic => unreachable!("it has no response"),
        };
        if let Some(says) = self.says {
            response.extensions_mut().insert(says);
        }
        response
    }

    async fn run(self, attempt: Attempt, number: usize) -> Result<Response<Body>, BoxError> {
        if matches!(self.said, Said::Announces | Said::AnnouncesAndBegins) {
            attempt.announce_effects();
        }
        tokio::task::yield_now().await;
        if matches!(self.said, Said::Begins | Said::AnnouncesAndBegins) {
            attempt.begin_effects()?;
        }
        match self.ends {
            Ends::Error => Err("as planned".into()),
            Ends::Panic => resume_unwind(Box::new("as planned")),
            _ => Ok(self.response(number)),
        }
    }
}

/// A body that panics after its first chunk.
struct PanicsThen(bool);

impl http_body::Body for PanicsThen {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match std::mem::take(&mut self.0) {
            true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half"))))),
            false => resume_unwind(Box::new("as planned")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Retake,
    Hold,
    Finds,
    FindsNothing,
    KnowsNothing,
}

impl Policy {
    fn orphan(self) -> Orphan<Response<Bytes>> {
        match self {
            Self::Retake => Orphan::Retake,
            Self::Hold => Orphan::Hold,
            _ => Orphan::reconcile(move |_| async move {
                match self {
                    Self::Finds => Reconciled::Completed(Response::new(Bytes::from("found"))),
                    Self::FindsNothing => Reconciled::NotExecuted,
                    _ => Reconciled::Unknown,
                }
            }),
        }
    }
}

/// What a client sees, in a line. `broken`: its body did not come to its end, or the call failed.
async fn ask(service: Direct) -> String {
    let asked = tokio::spawn(async move { try_ask(&service).await });
    match asked.await {
        Ok(Ok(seen)) => seen,
        Ok(Err(_)) | Err(_) => "broken".to_owned(),
    }
}

async fn try_ask(service: &Direct) -> Result<String, BoxError> {
    let request = Request::post("/a").header("idempotency-key", "k");
    let request = request.body(whole("it")).expect("it is valid");
    let mut service = service.clone();
    let response = service.ready().await?.call(request).await?;
    if let Some(code) = response.headers().get("idempotency-refused") {
        return Ok(code.to_str().expect("text").to_owned());
    }
    let is_replayed = response.headers().contains_key("idempotent-replayed");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    let replayed = if is_replayed { "replayed " } else { "" };
    Ok(format!("{replayed}{status} {body}"))
}

async fn try_one(case: Case, policy: Policy, waiters: usize) -> Result<(), String> {
    let store = FaultyStore::new();
    let layer = IdempotencyLayer::new(store.clone())
        .orphan(policy.orphan())
        .max_response_body(20)
        .wait_for_in_flight(Duration::from_secs(20));
    let handle = layer.handle();
    let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Gate::default());
    let service = ServiceBuilder::new().layer(layer).service_fn({
        let (runs, gate) = (Arc::clone(&runs), gate.clone());
        move |request: Request<Body>| {
            let number = runs.fetch_add(1, Ordering::SeqCst) + 1;
            let gate = gate.clone();
            async move {
                gate.pass().await;
                let attempt = request.extensions().get::<Attempt>().cloned();
                case.run(attempt.ok_or("no attempt")?, number).await
            }
        }
    });
    let service = direct(service);
    let first = tokio::spawn(ask(service.clone()));
    gate.arrived().await;
    let others: Vec<_> = (0..waiters)
        .map(|_| tokio::spawn(ask(service.clone())))
        .collect();
    eventually(async || store.waiting() == waiters).await;
    gate.open();
    let first = first.await.map_err(|_| "the first has no end")?;
    for other in others {
        let other = other.await.map_err(|_| "another has no end")?;
        let is_shared = other.strip_prefix("replayed ").is_some_and(|shared| {
            shared == first || policy == Policy::Finds && shared == "200 found"
        });
        let is_told = match case.class() {
            End::Final => other == "response-not-stored",
            End::NothingDone => other == "in-progress",
            End::Unknown if policy == Policy::FindsNothing => other == "in-progress",
            End::Unknown => other == "outcome-unknown",
        };
        if !is_shared && !is_told {
            return Err(format!("one who waited for {first:?} got {other:?}"));
        }
    }
    handle.idle().await;
    if runs.load(Ordering::SeqCst) != 1 {
        return Err("those who waited have run".to_owned());
    }
    gate.open_for_good();
    let again = ask(service.clone()).await;
    let ran = runs.load(Ordering::SeqCst) == 2;
    let is_right = match (case.class(), policy) {
        (End::Final, _) => {
            !ran && (again == "response-not-stored" || again == format!("replayed {first}"))
        }
        (End::NothingDone, _) | (End::Unknown, Policy::Retake | Policy::FindsNothing) => ran,
        (End::Unknown, Policy::Hold | Policy::KnowsNothing) => !ran && again == "outcome-unknown",
        (End::Unknown, Policy::Finds) => !ran && again == "replayed 200 found",
    };
    handle.idle().await;
    match is_right && handle.buffered() == 0 {
        true => Ok(()),
        false => Err(format!("after {first:?}, ran again: {ran}, {again:?}")),
    }
}

#[tokio::test]
async fn every_end_has_its_consequence_under_every_policy() {
    let policies = [
        Policy::Retake,
        Policy::Hold,
        Policy::Finds,
        Policy::FindsNothing,
        Policy::KnowsNothing,
    ];
    let mut wrong = Vec::new();
    for case in cases() {
        for policy in policies {
            for waiters in [0, 2] {
                let tried = timeout(Duration::from_secs(20), try_one(case, policy, waiters)).await;
                let tried = tried.unwrap_or_else(|_| Err("it has no end".to_owned()));
                if let Err(what) = tried {
                    wrong.push(format!("{case:?}, {policy:?}, {waiters} wait: {what}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
