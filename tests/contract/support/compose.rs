//! The layer among others.

use bytes::Bytes;
use http::Response;
use tower::layer::util::{Identity, Stack};
use tower::util::MapResponseLayer;

use super::body::{Body, BoxError, boxed};

/// Serves a handler with a layer around the idempotency layer, and one within it: in axum as
/// layers of a router, in hyper as layers of a service builder.
macro_rules! serve {
    ($case:ident, $outer:expr, $layer:expr, $inner:expr, $handler:expr) => {
        match $case.stack {
            $crate::support::Stack::Axum => {
                let router = $crate::support::router($handler)
                    .layer($inner)
                    .layer($layer.clone())
                    .layer($outer);
                $case.serve_router(router).await
            }
            $crate::support::Stack::Hyper => {
                let service = tower::ServiceBuilder::new()
                    .layer($outer)
                    .layer($layer.clone().for_any_body())
                    .layer($inner)
                    .service($crate::support::service($handler));
                $case.serve_service(service).await
            }
        }
    };
}
pub(crate) use serve;

/// No layer.
pub(crate) const NONE: Identity = Identity::new();

/// For a layer that makes responses itself: it wants a body that has a default.
pub(crate) fn refusing<L, B>(layer: L) -> Stack<ToBody<B>, L>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Stack::new(MapResponseLayer::new(|response| response.map(boxed)), layer)
}

pub(crate) type ToBody<B> = MapResponseLayer<fn(Response<B>) -> Response<Body>>;
