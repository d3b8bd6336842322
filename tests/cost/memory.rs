//! Memory that a recorded answer holds.

use std::convert::Infallible;

use allocation_counter::{AllocationInfo, measure};
use http::{Method, StatusCode};
use tower::{Layer, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Answer, Executor, Fingerprint, IdempotencyKey, IdempotencyLayer};

use crate::frame::text;
use crate::support::{ANSWER, BoxBody, KEY, Probe, answer, charge, request};

/// So many that most of the store's tables have just grown: the most for each of them.
const ANSWERS: u64 = 31_000;
/// Key, body, header text, fingerprint and status.
const RAW: usize = 36 + 200 + 145 + 32 + 2;

#[test]
fn an_answer_holds_this_many_times_its_bytes() {
    holds("kept", MemoryStore::new(), 650.0, 1.1);
}

#[test]
fn an_answer_in_a_near_tier_holds_this_many_times_its_bytes() {
    holds("cached", MemoryStore::evicting(1 << 30), 725.0, 8.1);
}

/// What is held beyond this is a loss; what is held less is written down here.
fn holds(name: &str, store: MemoryStore, most_bytes: f64, most_blocks: f64) {
    let headers = text(answer::<BoxBody>().headers());
    assert_eq!(KEY.len() + ANSWER.len() + headers + 32 + 2, RAW);
    let layer = IdempotencyLayer::new(store);
    let probe = Probe::new(layer.layer(service_fn(charge::<BoxBody>)));
    let held = measure(|| {
        for number in 0..ANSWERS {
            let key = format!("{}{number:05}", &KEY[..KEY.len() - 5]);
            let request = request::<BoxBody>(Method::POST, Some(&key));
            probe.allocations(request, StatusCode::OK);
        }
    });
    let (bytes, blocks) = each(&held);
    // glibc's malloc puts 8 bytes before each block, and rounds up to 16: some 16 bytes a block.
    let with_malloc = bytes + 16.0 * blocks;
    println!(
        "{name}: held for each answer of {RAW} bytes: {bytes:.0} bytes in {blocks:.2} blocks, {:.2} of raw, {:.2} with malloc's share",
        bytes / RAW as f64,
        with_malloc / RAW as f64,
    );
    assert!(bytes <= most_bytes, "{bytes} bytes");
    assert!(blocks <= most_blocks, "{blocks} blocks");
}

#[test]
fn a_recorded_answer_takes_no_more_memory_than_it_is_weighed_at() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let executor = Executor::new(MemoryStore::new());
    let mut frame = 0;
    let held = measure(|| {
        runtime.block_on(async {
            for number in 0..ANSWERS {
                let key = IdempotencyKey::new("charge", &format!("key-{number}"));
                let key = key.expect("the key is valid");
                let value = "a".repeat(300);
                frame = Answer::value(&value).expect("text is JSON").encode().len();
                let inputs = Fingerprint::of(["1200"]);
                let ran = executor
                    .run(&key, inputs, || async { Ok::<_, Infallible>(value) })
                    .await;
                assert!(ran.is_ok());
            }
        });
    });
    let (each, _) = each(&held);
    let weighed = (frame as u64 + MemoryStore::OVERHEAD) as f64;
    println!("bytes for each answer: {each:.0} held, {weighed} weighed, {frame} of them payload");
    assert!(each <= weighed, "{each} bytes are weighed at {weighed}");
    assert!(
        each >= weighed / 2.0,
        "{each} bytes are weighed at {weighed}"
    );
}

/// Bytes and blocks that are held for each answer.
fn each(held: &AllocationInfo) -> (f64, f64) {
    let answers = ANSWERS as f64;
    (
        held.bytes_current as f64 / answers,
        held.count_current as f64 / answers,
    )
}
