//! What an error of a run says, and what it tells to do.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::time::Duration;

use tower_idempotency::{
    AttemptEnded, End, Recorded, RunError, StoreError, StoreErrorKind, Timestamp,
};

const SOON: Option<Duration> = Some(Duration::from_secs(1));
const LATER: Duration = Duration::from_secs(7);

fn no_number() -> serde_json::Error {
    serde_json::from_str::<u32>("no number").expect_err("it is none")
}

fn store(kind: StoreErrorKind) -> RunError<io::Error> {
    RunError::Store(StoreError::new(kind, "the table is away"))
}

/// Each error, and when to make the call again.
fn all() -> Vec<(RunError<io::Error>, Option<Duration>)> {
    let unknown = |retry_after| RunError::OutcomeUnknown {
        first_seen: Timestamp::EPOCH,
        retry_after,
    };
    let work = |message: &str, is_retryable| RunError::Work {
        error: io::Error::other(message),
        is_retryable,
    };
    vec![
        (RunError::InProgress { retry_after: LATER }, Some(LATER)),
        (unknown(None), None),
        (unknown(Some(LATER)), Some(LATER)),
        (RunError::KeyReused, None),
        (RunError::CallerDiffers, None),
        (RunError::KeyOfRequest, None),
        (RunError::SettingsChanged, SOON),
        (RunError::Ended(End::NothingDone), SOON),
        (RunError::Ended(End::Unknown), SOON),
        (RunError::Ended(End::Final), None),
        (RunError::LeaseLost, SOON),
        (RunError::NotRecorded, SOON),
        (RunError::NotStored, None),
        (RunError::TooManyRuns, SOON),
        (RunError::ShuttingDown, SOON),
        (store(StoreErrorKind::Unavailable), SOON),
        (RunError::Result(no_number()), None),
        (work("a deadlock", true), SOON),
        (work("declined", false), None),
    ]
}

#[test]
fn each_error_says_in_its_own_words_what_happened() {
    let mut sentences = HashSet::new();
    for (error, _) in all() {
        let sentence = error.to_string();
        assert!(!sentence.is_empty(), "{error:?}");
        assert!(sentences.insert(sentence), "{error:?}");
    }
    assert!(
        sentences.contains("declined"),
        "the error of the work itself"
    );
    assert_eq!(
        AttemptEnded.to_string(),
        "the attempt has ended; its work must not begin any more"
    );
}

#[test]
fn each_error_tells_when_to_call_again() {
    for (error, retry_after) in all() {
        assert_eq!(error.retry_after(), retry_after, "{error:?}");
        assert_eq!(error.is_retryable(), retry_after.is_some(), "{error:?}");
    }
}

#[test]
fn a_fault_of_the_store_is_worth_another_call_when_it_passes_or_another_process_reads_more() {
    for (kind, retry_after) in [
        (StoreErrorKind::Damaged, None),
        (StoreErrorKind::Full, SOON),
        (StoreErrorKind::Newer, SOON),
        (StoreErrorKind::TooLarge, None),
        (StoreErrorKind::Unavailable, SOON),
        (StoreErrorKind::Unusable, None),
    ] {
        assert_eq!(store(kind).retry_after(), retry_after, "{kind:?}");
        let said = StoreError::new(kind, "later").with_retry_after(LATER);
        let error = RunError::<io::Error>::Store(said);
        assert_eq!(
            error.retry_after(),
            retry_after.and(Some(LATER)),
            "{kind:?}"
        );
    }
}

#[test]
fn an_error_leads_to_what_is_below_it() {
    let below = |error: RunError<io::Error>| error.source().map(ToString::to_string);
    let unavailable = store(StoreErrorKind::Unavailable);
    assert_eq!(below(unavailable).as_deref(), Some("the table is away"));
    let unreadable = RunError::Result(no_number());
    assert_eq!(below(unreadable), Some(no_number().to_string()));
    // The error of the work speaks for itself, so what is below that comes next.
    let fault = StoreError::new(StoreErrorKind::Damaged, "the ledger is").with_source(no_number());
    let work = RunError::Work {
        error: io::Error::other(fault),
        is_retryable: false,
    };
    assert_eq!(below(work), Some(no_number().to_string()));
    assert_eq!(below(RunError::LeaseLost), None);
}

#[test]
fn what_became_of_a_key_has_a_short_name() {
    for (recorded, name) in [
        (Recorded::LeaseLost, "lease-lost"),
        (Recorded::NotStored, "not-stored"),
        (Recorded::Pending, "pending"),
        (Recorded::Released, "released"),
        (Recorded::Stored, "stored"),
        (Recorded::Unknown, "unknown"),
    ] {
        assert_eq!(recorded.as_str(), name);
        assert_eq!(recorded.to_string(), name);
    }
}
