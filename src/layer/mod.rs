//! The HTTP front end: the layer, its settings, and the way of a request.

#[cfg(feature = "axum")]
pub(crate) mod axum;
pub(crate) mod body;
mod builder;
pub(crate) mod fields;
pub(crate) mod misuse;
pub(crate) mod outcome;
pub(crate) mod problem;
pub(crate) mod recording;
pub(crate) mod request;
pub(crate) mod service;
pub(crate) mod settings;

pub use self::builder::IdempotencyLayer;
#[cfg(feature = "axum")]
pub(crate) use self::builder::is_layered;
