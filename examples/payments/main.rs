//! A payment API in the shape of Stripe's, which charges a card once however often it is asked.
//!
//! ```text
//! cargo run --example payments
//! ```
//!
//! Keys and answers are in DynamoDB, with a memory store as near tier over it. The DynamoDB is
//! embedded and keeps its data in a file, so a restart keeps the keys; `--endpoint-url` names
//! another one, which several servers may share, if they share the `--ledger`, too.
//!
//! The README shows a charge that is sent twice, and one that is sent again while it runs; with
//! `--wait 5`, the second one waits for its answer instead of being refused.
//!
//! What can be charged, after Stripe's test tokens:
//!
//! | `source` | what happens |
//! |---|---|
//! | `tok_visa` | it is charged |
//! | `tok_slow` | it is charged after 2 s, also when the client has hung up by then |
//! | `tok_chargeDeclined` | 402: an answer like any other, so it is recorded |
//! | `tok_error` | 500, and nothing is charged: not recorded, so a retry runs |
//! | `tok_panic` | a panic before the charge: `--orphan` says what the key is worth |
//! | `tok_panicAfterCharge` | a panic after it: each retry charges again, unless `--orphan` is `hold` or `reconcile` |
//!
//! Stripe's own client libraries work against it: the address is their API base, and any API
//! key will do.

mod app;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    app::run(&app::Flags::parse(), |routes| routes).await
}
