//! From a refusal to its response.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use http::request::Parts;
use http::{HeaderValue, Response, Version};

use super::Refusal;
use crate::layer::outcome::IDEMPOTENCY_REFUSED;

/// Where the types of problems are described, unless a base is set: a section of this crate's
/// documentation each.
pub(crate) const DEFAULT_PROBLEM_TYPE_BASE: &str =
    "https://docs.rs/tower-idempotency/latest/tower_idempotency/enum.RefusalReason.html#";

/// Makes the response to a refusal.
#[derive(Clone)]
pub(crate) enum Responder {
    /// Problem details, and gRPC statuses for gRPC requests.
    Problem {
        type_base: Cow<'static, str>,
        /// That of a duplicate in flight, which is refused as often as its client asks, and always
        /// with the same.
        in_progress: OnceLock<Bytes>,
    },
    Application(Arc<Respond>),
}

type Respond = dyn Fn(&Refusal, &Parts) -> Response<Bytes> + Send + Sync;

/// What is kept of a request for a refusal that may come after its handler took it.
#[derive(Clone)]
pub(crate) enum Kept {
    Http,
    Grpc,
    /// An application's responder sees all of it.
    Parts(Box<Parts>),
}

impl Responder {
    pub(crate) const fn problem(type_base: Cow<'static, str>) -> Self {
        Self::Problem {
            type_base,
            in_progress: OnceLock::new(),
        }
    }

    pub(crate) fn keep(&self, parts: &Parts) -> Kept {
        match self {
            // gRPC needs HTTP/2, and most requests come without it.
            Self::Problem { .. } if parts.version < Version::HTTP_2 => Kept::Http,
            Self::Problem { .. } if is_grpc(&parts.headers) => Kept::Grpc,
            Self::Problem { .. } => Kept::Http,
            Self::Application(_) => Kept::Parts(Box::new(parts.clone())),
        }
    }

    pub(crate) fn respond(&self, refusal: &Refusal, parts: &Parts) -> Response<Bytes> {
        match self {
            Self::Application(respond) => marked(respond(refusal, parts), refusal),
            Self::Problem { .. } => self.default(refusal, is_grpc(&parts.headers)),
        }
    }

    pub(crate) fn respond_kept(&self, refusal: &Refusal, kept: &Kept) -> Response<Bytes> {
        match kept {
            Kept::Parts(parts) => self.respond(refusal, parts),
            Kept::Grpc => self.default(refusal, true),
            Kept::Http => self.default(refusal, false),
        }
    }

    fn default(&self, refusal: &Refusal, is_grpc: bool) -> Response<Bytes> {
        match self {
            _ if is_grpc => refusal.to_grpc(),
            Self::Problem {
                type_base,
                in_progress,
            } if refusal.is_of_duplicate() => {
                let problem = in_progress.get_or_init(|| refusal.problem(type_base));
                refusal.with_problem(problem.clone())
            }
            Self::Problem { type_base, .. } => refusal.to_problem(type_base),
            Self::Application(_) => refusal.to_problem(DEFAULT_PROBLEM_TYPE_BASE),
        }
    }
}

impl Refusal {
    /// The response that a layer without settings gives to a request with this head: a
    /// [gRPC status](Self::to_grpc) to a gRPC request, and else a [problem](Self::to_problem) whose
    /// type is a page of this crate's documentation.
    pub fn to_response(&self, request: &Parts) -> Response<Bytes> {
        match is_grpc(&request.headers) {
            true => self.to_grpc(),
            false => self.to_problem(DEFAULT_PROBLEM_TYPE_BASE),
        }
    }
}

/// Adds to an application's response what every refusal has.
fn marked(mut response: Response<Bytes>, refusal: &Refusal) -> Response<Bytes> {
    let headers = response.headers_mut();
    let code = HeaderValue::from_static(refusal.reason().code());
    // A response that has as many fields as there can be goes without.
    let _ = headers.try_insert(IDEMPOTENCY_REFUSED, code);
    if !headers.contains_key(CACHE_CONTROL) {
        let _ = headers.try_insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Whether a request is one of gRPC: `application/grpc`, exactly or followed by `+` or `;`.
/// gRPC-Web is not.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let value = value.as_bytes();
    value.len() >= GRPC.len()
        && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(
            value.get(GRPC.len()),
            None | Some(b'+' | b';' | b' ' | b'\t')
        )
}

impl Default for Responder {
    fn default() -> Self {
        Self::problem(Cow::Borrowed(DEFAULT_PROBLEM_TYPE_BASE))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem { type_base, .. } => f.debug_tuple("Problem").field(type_base).finish(),
            Self::Application(_) => f.write_str("Application"),
        }
    }
}

impl Responder {
    pub(crate) fn application(
        respond: impl Fn(&Refusal, &Parts) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::Application(Arc::new(respond))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_from_what_only_begins_like_it() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        for value in [
            "application/grpc",
            "Application/gRPC",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "application/grpc ; a=b",
        ] {
            assert!(of(value), "{value}");
        }
        for value in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grp",
            "application/json",
            "",
        ] {
            assert!(!of(value), "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
