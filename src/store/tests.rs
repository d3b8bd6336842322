//! What becomes of a record in a store that reads, decides and writes bytes.

use std::time::Duration;

use bytes::Bytes;

use super::{Change, Completion, Fenced, Release};
use crate::protocol::clock::Timestamp;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{
    Extras, FencingToken, Holder, Identity, Lease, Owner, Record, Renewal,
};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// As a later version writes them, with a field that is not known here.
fn extras() -> Extras {
    let later = Extras::from_bytes(&[9, 2, b'h', b'i']).expect("they are well formed");
    later.with_trace([7; 16], [8; 8])
}

/// The extras of what takes the place of a record, which goes through its byte form.
fn written(change: Change) -> Extras {
    let Change::Write(record) = change else {
        panic!("nothing is written but {change:?}");
    };
    let record = Record::from_bytes(record.to_bytes());
    match record.expect("what was written is read") {
        Record::InProgress(lease) => lease.extras,
        Record::Completed(completed) => completed.extras,
    }
}

#[test]
fn extras_stay_with_a_record_until_it_goes() {
    let identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));
    let holder = Holder::new(
        RecordKey::from_bytes([7; 32]),
        Owner::from_bytes([1; 16]),
        identity,
    );
    let mut lease = Lease::new(&holder, FencingToken::from_u64(1));
    lease.extras = extras();
    let found = || Record::from_bytes(lease.to_bytes()).ok();

    let (_, renewed) = Fenced::renew(found(), &holder, Renewal::new(HOUR, HOUR), NOW);
    assert_eq!(written(renewed), extras());
    let (_, orphan) = Fenced::release(found(), &holder, Release::orphan(HOUR, None), NOW);
    assert_eq!(written(orphan), extras());
    let completion = Completion::new(Bytes::from_static(b"answer"), HOUR);
    let (_, completed) = Fenced::complete(found(), &holder, &completion, NOW);
    assert_eq!(written(completed), extras());
}
