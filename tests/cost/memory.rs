//! Memory that a recorded answer holds.

use std::convert::Infallible;

use allocation_counter::measure;
use http::{Method, StatusCode};
use tower::{Layer, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Answer, Executor, Fingerprint, IdempotencyKey, IdempotencyLayer};

use crate::frame::text;
use crate::support::{ANSWER, BoxBody, KEY, Probe, answer, charge, request};

/// Tables grow by doubling, so what is held for an answer depends on how many there are: these are
/// two doublings.
const ANSWERS: [u64; 12] = [
    15_000, 17_000, 20_000, 23_000, 27_000, 31_000, 35_000, 40_000, 46_000, 52_000, 56_000, 60_000,
];
/// Key, body, header text, fingerprint and status.
const RAW: usize = 36 + 200 + 145 + 32 + 2;

#[test]
fn an_answer_holds_this_many_times_its_bytes() {
    holds("kept", MemoryStore::new(), &ANSWERS, 595.0, 1.1);
}

#[test]
fn an_answer_in_a_near_tier_holds_this_many_times_its_bytes() {
    holds(
        "cached",
        MemoryStore::evicting(1 << 30),
        &[31_000],
        725.0,
        8.1,
    );
}

/// What is held beyond this is a loss; what is held less is written down here.
fn holds(name: &str, store: MemoryStore, counts: &[u64], most_bytes: f64, most_blocks: f64) {
    let headers = text(answer::<BoxBody>().headers());
    assert_eq!(KEY.len() + ANSWER.len() + headers + 32 + 2, RAW);
    let layer = IdempotencyLayer::new(store);
    let probe = Probe::new(layer.layer(service_fn(charge::<BoxBody>)));
    let (mut bytes, mut blocks) = (0.0_f64, 0.0_f64);
    let (mut all, mut number) = ((0, 0), 0);
    for &answers in counts {
        let held = measure(|| {
            while number < answers {
                let key = format!("{}{number:05}", &KEY[..KEY.len() - 5]);
                let request = request::<BoxBody>(Method::POST, Some(&key));
                probe.allocations(request, StatusCode::OK);
                number += 1;
            }
        });
        all = (all.0 + held.bytes_current, all.1 + held.count_current);
        let each = |all: i64| all as f64 / answers as f64;
        println!("{name}: {answers} answers: {:.0} bytes each", each(all.0));
        bytes = bytes.max(each(all.0));
        blocks = blocks.max(each(all.1));
    }
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
    let (mut frame, mut held, mut number) = (0, 0, 0);
    for answers in ANSWERS {
        let more = measure(|| {
            runtime.block_on(async {
                while number < answers {
                    let key = IdempotencyKey::new("charge", &format!("key-{number}"));
                    let key = key.expect("the key is valid");
                    let value = "a".repeat(300);
                    frame = Answer::value(&value).expect("text is JSON").encode().len();
                    let inputs = Fingerprint::of(["1200"]);
                    let ran = executor
                        .run(&key, inputs, || async { Ok::<_, Infallible>(value) })
                        .await;
                    assert!(ran.is_ok());
                    number += 1;
                }
            });
        });
        held += more.bytes_current;
        let each = held as f64 / answers as f64;
        let weighed = (frame as u64 + MemoryStore::OVERHEAD) as f64;
        println!(
            "{answers} answers: {each:.0} bytes are held for each, {weighed} weighed, {frame} of them payload"
        );
        assert!(each <= weighed, "{each} bytes are weighed at {weighed}");
        assert!(
            each >= weighed / 2.0,
            "{each} bytes are weighed at {weighed}"
        );
    }
}
