//! Settings that leave requests unguarded, or keys unprotected, told to operators once.

use std::any::type_name;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::layer::settings::Shared;
use crate::store::Store;

impl<St: Store> Shared<St> {
    /// Warns of what is wrong with these settings, when their first service is made.
    pub(crate) fn tell_misuse(&self) {
        self.told.call_once(|| self.warn_of_misuse());
    }

    fn warn_of_misuse(&self) {
        let (settings, store) = (&self.settings, self.executor.store());
        if settings.methods.is_empty() {
            warn!("the idempotency layer guards no request, because `methods` is empty");
        }
        if let Some(methods) = &settings.grpc_methods {
            if methods.is_empty() {
                warn!("the idempotency layer guards no gRPC call, because `grpc_methods` is empty");
            }
            for method in methods.iter().filter(|method| !is_path(method)) {
                warn!(
                    method,
                    "`grpc_methods` names what is no `package.Service/Method`"
                );
            }
        }
        let (retention, least) = self.executor.retention_and_least();
        if retention < least {
            warn!(
                ?retention,
                "answers may be forgotten while retries still come, because `retention` is shorter than `lease` and `clock_skew`"
            );
        }
        if store.may_forget() {
            warn!(
                store = type_name::<St>(),
                "the store may forget a key before it expires, and then it runs again; use it as a near tier only"
            );
        }
        if store.is_shared() && settings.identification.naming.has_no_namespace() {
            warn_of_namespace(type_name::<St>());
        }
    }
}

/// Whether it is `/package.Service/Method`.
fn is_path(method: &str) -> bool {
    let parts = method
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'));
    parts.is_some_and(|(service, method)| {
        !service.is_empty() && !method.is_empty() && !method.contains('/')
    })
}

/// Warns once of each kind of store: a process may have many layers on one table.
fn warn_of_namespace(store: &'static str) {
    static TOLD: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(store) {
        warn!(
            store,
            "the store is shared by processes and the layer has no `namespace`; two services on one table need one each, or one may answer for the other"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_method_has_a_service_and_a_name() {
        assert!(is_path("/shop.Till/Charge"));
        for method in ["/shop.Till", "/shop.Till/", "//Charge", "/a/b/c", "", "/"] {
            assert!(!is_path(method), "{method}");
        }
    }
}
