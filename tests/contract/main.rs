//! The contract: what clients see of services behind the layer, over real sockets,
//! for axum and for hyper, over HTTP/1.1 and HTTP/2.

mod application_panics;
mod blocked;
mod carried;
mod composition;
mod deploys;
mod disconnect;
mod ends;
mod grpc;
mod handler_side;
mod in_flight;
mod keys;
mod misuse;
mod nested;
mod orphans;
mod passthrough;
mod readiness;
mod recording;
mod replay;
mod request_body;
mod reuse;
mod shared_ends;
mod shutdown;
mod store_faults;
mod streams;
mod support;
mod unrecordable;
