//! What names the record of a request.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use super::path::original_path;
use crate::protocol::key::KeyParts;

type ScopeFunction = dyn for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync;
type TargetFunction = dyn for<'a> Fn(&'a Parts) -> Cow<'a, str> + Send + Sync;

/// The settings that name the record of a request, beside the key that its client sends: the
/// [namespace](crate::IdempotencyLayer::namespace), the [scope](crate::IdempotencyLayer::scope)
/// and the [target](crate::IdempotencyLayer::target) of a layer.
///
/// A layer that names records in another way does not find those that it has made before, unless
/// it is told how they were named; see
/// [`IdempotencyLayer::previously`](crate::IdempotencyLayer::previously).
#[derive(Clone, Default)]
pub struct Naming {
    namespace: Cow<'static, str>,
    scope: Option<Arc<ScopeFunction>>,
    target: Option<Arc<TargetFunction>>,
}

impl Naming {
    /// Returns the naming of a layer as it comes: no namespace, no scope, and the original path as the
    /// target.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`IdempotencyLayer::namespace`](crate::IdempotencyLayer::namespace).
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Cow<'static, str>>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// See [`IdempotencyLayer::scope`](crate::IdempotencyLayer::scope).
    #[must_use]
    pub fn scope<F>(mut self, scope: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    {
        self.scope = Some(Arc::new(scope));
        self
    }

    /// See [`IdempotencyLayer::target`](crate::IdempotencyLayer::target).
    #[must_use]
    pub fn target<F>(mut self, target: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Cow<'a, str> + Send + Sync + 'static,
    {
        self.target = Some(Arc::new(target));
        self
    }

    /// Whether it sets no namespace.
    pub(crate) fn has_no_namespace(&self) -> bool {
        self.namespace.is_empty()
    }

    /// Names a request.
    #[inline]
    pub(super) fn name<'a>(&'a self, parts: &'a Parts) -> Named<'a> {
        Named {
            namespace: &self.namespace,
            scope: self.scope.as_ref().and_then(|scope| scope(parts)),
            method: parts.method.as_str(),
            target: match &self.target {
                Some(target) => target(parts),
                None => original_path(parts),
            },
            has_own_target: self.target.is_some(),
        }
    }
}

impl fmt::Debug for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Naming")
            .field("namespace", &self.namespace)
            .field("is_scoped", &self.scope.is_some())
            .field("has_target", &self.target.is_some())
            .finish()
    }
}

/// The parts of a key, but for what the client sent.
pub(super) struct Named<'a> {
    namespace: &'a str,
    pub(super) scope: Option<Cow<'a, str>>,
    method: &'a str,
    target: Cow<'a, str>,
    has_own_target: bool,
}

impl Named<'_> {
    /// The original path, whatever the target is.
    pub(super) fn path<'a>(&'a self, parts: &'a Parts) -> Cow<'a, str> {
        match self.has_own_target {
            true => original_path(parts),
            false => Cow::Borrowed(&self.target),
        }
    }

    pub(super) fn parts<'a>(&'a self, sent: &'a str) -> KeyParts<'a> {
        KeyParts {
            namespace: self.namespace,
            scope: self.scope.as_deref(),
            method: self.method,
            target: &self.target,
            key: sent,
        }
    }
}
