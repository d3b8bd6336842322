//! Whether a write that failed may have been applied all the same.
//!
//! The error of a call is that of its last try alone. A try before it may have reached DynamoDB
//! and lost only its answer, so this is a flag over all tries of a call. An interceptor sets it. The
//! client has it from the start: one for each call would make the SDK put the configuration of the
//! call together anew.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;

/// The present try may be at DynamoDB, and has no answer yet.
const IS_SENT: u8 = 1;
/// A try before it ended without an answer that says what became of it.
const REMAINS: u8 = 2;

tokio::task_local! {
    static OF_THIS_CALL: Doubt;
}

/// Says whether a try of one call may have been applied without being known to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt {
    state: Arc<AtomicU8>,
}

impl Doubt {
    /// Watches the tries of a call that is made by a [watched](Watch::over) client.
    pub(super) async fn of<F: Future>(&self, call: F) -> F::Output {
        OF_THIS_CALL.scope(self.clone(), call).await
    }

    /// Also true for a try that is broken off while it is on its way.
    pub(super) fn remains(&self) -> bool {
        self.state.load(Ordering::Relaxed) != 0
    }

    fn is_sent(&self) {
        self.state.fetch_or(IS_SENT, Ordering::Relaxed);
    }

    /// The present try is known to have been applied, or to have not been.
    fn resolved(&self) {
        self.state.fetch_and(!IS_SENT, Ordering::Relaxed);
    }

    /// The next try begins with a doubt of its own, and cannot take this one back.
    fn try_ended(&self) {
        if self.state.load(Ordering::Relaxed) & IS_SENT != 0 {
            self.state.store(REMAINS, Ordering::Relaxed);
        }
    }
}

/// Looks at each try of a client's calls.
#[derive(Debug)]
pub(super) struct Watch;

impl Watch {
    /// Returns a client with the configuration of `client` whose tries are looked at.
    pub(super) fn over(client: &Client) -> Client {
        let config = client.config().to_builder().interceptor(Self);
        Client::from_conf(config.build())
    }

    /// Calls that nobody asks about have no doubt.
    fn tell(tell: impl FnOnce(&Doubt)) {
        let _ = OF_THIS_CALL.try_with(tell);
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "tower-idempotency: doubt"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        Self::tell(Doubt::is_sent);
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let refused = context.response().status().is_client_error();
        match context.output_or_error() {
            Ok(_) => Self::tell(Doubt::resolved),
            Err(error) if error.is_operation_error() && refused => Self::tell(Doubt::resolved),
            // A failure of DynamoDB's own, or an answer that cannot be read.
            Err(_) => {}
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // A try that was answered is not looked at again.
        if context.response().is_none()
            && let Some(Err(error)) = context.output_or_error()
            && never_connected(error)
        {
            Self::tell(Doubt::resolved);
        }
        Self::tell(Doubt::try_ended);
        Ok(())
    }
}

/// Whether there was no connection to send on. What is not known to be so counts as sent.
fn never_connected(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_of_connect) || says_connect(error) {
            return true;
        }
        next = error.source();
    }
    false
}

/// These kinds come before anything was sent.
fn is_of_connect(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AddrNotAvailable
            | ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
    )
}

/// What hyper-util and the SDK's own client say when they did not get a connection; their types
/// cannot be named here.
fn says_connect(error: &(dyn Error + 'static)) -> bool {
    let text = error.to_string();
    text == "client error (Connect)" || text.starts_with("HTTP connect timeout occurred")
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::error::ConnectorError;

    use super::*;

    #[test]
    fn a_refused_connection_was_never_used_and_a_reset_one_may_have_been() {
        for (kind, unused) in [
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::NetworkUnreachable, true),
            (ErrorKind::ConnectionReset, false),
            (ErrorKind::TimedOut, false),
            (ErrorKind::BrokenPipe, false),
        ] {
            let error = ConnectorError::io(io::Error::from(kind).into());
            assert_eq!(never_connected(&error), unused, "{kind}");
        }
    }

    #[test]
    fn what_a_client_says_of_its_connection_counts() {
        assert!(never_connected(&io::Error::other("client error (Connect)")));
        let timeout = "HTTP connect timeout occurred after 1s";
        assert!(never_connected(&io::Error::other(timeout)));
        assert!(!never_connected(&io::Error::other(
            "client error (SendRequest)"
        )));
    }
}
