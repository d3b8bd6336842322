//! A service that is called without a server.

use http::{Request, Response};
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::body::{Body, BoxError, read_body};

pub(crate) type Direct = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

pub(crate) fn direct<S>(service: S) -> Direct
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Error: Into<BoxError>,
{
    BoxCloneSyncService::new(service.map_err(Into::into))
}

/// Calls a clone that was polled ready, as servers do, and gives the body of its answer, after
/// `replayed: `, or the code of its refusal.
pub(crate) async fn call(service: &Direct, request: Request<Body>) -> Result<String, BoxError> {
    let mut service = service.clone();
    let response = service.ready().await?.call(request).await?;
    let is_replayed = response.headers().contains_key("idempotent-replayed");
    let refused = response.headers().get("idempotency-refused").cloned();
    Ok(match refused {
        Some(code) => code.to_str().expect("text").to_owned(),
        None if is_replayed => format!("replayed: {}", read_body(response).await),
        None => read_body(response).await,
    })
}

/// [`call`], of one that does not fail.
pub(crate) async fn answer(service: &Direct, request: Request<Body>) -> String {
    call(service, request).await.expect("no error")
}

/// [`answer`], as a task of its own.
pub(crate) fn spawn(service: &Direct, request: Request<Body>) -> JoinHandle<String> {
    let service = service.clone();
    tokio::spawn(async move { answer(&service, request).await })
}
