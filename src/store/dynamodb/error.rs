//! From the SDK's errors to the store's.

use std::error::Error;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::protocol::error::{StoreError, StoreErrorKind};

pub(super) fn damaged(message: impl Into<String>) -> StoreError {
    StoreError::new(StoreErrorKind::Damaged, message)
}

/// A call as the messages name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) table: &'a str,
}

impl Call<'_> {
    /// What `error` means for the caller; whether a write was applied is not looked at.
    pub(super) fn failed<E>(self, error: SdkError<E>) -> StoreError
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (kind, message) = self.explain(&error);
        StoreError::new(kind, message).with_source(error)
    }

    fn explain<E: ProvideErrorMetadata>(self, error: &SdkError<E>) -> (StoreErrorKind, String) {
        use StoreErrorKind::{Unavailable, Unusable};
        let Self { operation, table } = self;
        match error {
            SdkError::ConstructionFailure(_) => (
                Unusable,
                format!("{operation} on the DynamoDB table `{table}` could not be put together"),
            ),
            SdkError::TimeoutError(_) => (
                Unavailable,
                format!("DynamoDB did not answer {operation} on table `{table}` in time"),
            ),
            SdkError::DispatchFailure(_) => (
                Unavailable,
                format!("DynamoDB could not be reached for {operation} on table `{table}`"),
            ),
            SdkError::ServiceError(error) if error.err().code().is_some() => {
                self.explain_answer(error.err())
            }
            _ => (
                Unavailable,
                format!("the answer of DynamoDB to {operation} on table `{table}` cannot be read"),
            ),
        }
    }

    fn explain_answer(self, error: &impl ProvideErrorMetadata) -> (StoreErrorKind, String) {
        use StoreErrorKind::{Full, Unavailable, Unusable};
        let Self { operation, table } = self;
        let code = error.code().unwrap_or("an unnamed error");
        let says = error.message().unwrap_or("nothing more");
        match code {
            "ResourceNotFoundException" => (
                Unusable,
                format!("the DynamoDB table `{table}` does not exist in this region and account"),
            ),
            _ if is_of_credentials(code, says) => (
                Unavailable,
                format!(
                    "DynamoDB did not take the credentials of {operation} on table `{table}`, \
                     with {code}: {says}"
                ),
            ),
            _ if is_of_permission(code) => (
                Unusable,
                format!("DynamoDB refused {operation} on table `{table}` with {code}: {says}"),
            ),
            "ValidationException" | "SerializationException" | "UnknownOperationException" => (
                Unusable,
                format!("DynamoDB took {operation} on table `{table}` for invalid: {says}"),
            ),
            "ItemCollectionSizeLimitExceededException" => (
                Full,
                format!("a partition of the DynamoDB table `{table}` is full"),
            ),
            _ if is_of_throttling(code) => (
                Unavailable,
                format!("DynamoDB throttled {operation} on table `{table}`: {says}"),
            ),
            _ => (
                Unavailable,
                format!("DynamoDB answered {operation} on table `{table}` with {code}: {says}"),
            ),
        }
    }
}

/// Credentials that have expired or were rotated are soon others, and a clock that is off is set
/// again. A signature that is wrong for another reason has a wrong secret.
fn is_of_credentials(code: &str, says: &str) -> bool {
    match code {
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "UnrecognizedClientException" => true,
        "InvalidSignatureException" => {
            says.contains("Signature expired") || says.contains("Signature not yet current")
        }
        _ => false,
    }
}

pub(super) fn is_of_permission(code: &str) -> bool {
    matches!(
        code,
        "AccessDeniedException"
            | "IncompleteSignatureException"
            | "InvalidSignatureException"
            | "MissingAuthenticationTokenException"
    )
}

pub(super) fn is_of_throttling(code: &str) -> bool {
    matches!(
        code,
        "ProvisionedThroughputExceededException"
            | "RequestLimitExceeded"
            | "ThrottlingException"
            | "LimitExceededException"
    )
}
