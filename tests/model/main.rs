//! The protocol of claims, leases and records, checked in every order in which things can happen
//! within bounds, with [`stateright`].
//!
//! # What is modelled
//!
//! One key; a store; two nodes; two or three requests for the key, each sent to either node, the
//! later ones standing for retries. What an attempt does is said by the machine that the executor
//! drives, `attempt::State::on`, and by nothing else: whether it claims again, waits, asks, starts,
//! writes, tries again or gives up, and what its client gets. The nodes here carry that out, as the
//! executor does:
//!
//! * a claim that is not answered is made again by the same owner, and if that is not answered
//!   either, it is looked for and released;
//! * it may renew its lease at any time until its end is recorded;
//! * one that waits for a run on its own node gets the end of that run, and claims again only if the
//!   run was dropped; of those on a node that wait for a run elsewhere, one claims again.
//!
//! The store applies each call in one atomic step. What a claim gets, whether a write is let
//! through, what a renewal does, and when a lease has lapsed, is said by the crate's own `decide`,
//! `is_owned_by`, `renewed` and `has_lapsed`: the functions that `MemoryStore` calls.
//! (`DynamoDbStore` calls the first one, and says the others in its conditions.) A claim tells
//! `decide` which attempts are alive on its node, unless it comes late. With `Reconcile`
//! there is a ledger that refuses whoever comes with a lower fencing token than it has seen, in an
//! effect or in a question.
//!
//! The adversary lets time go by between any two steps, so that a node is paused for as long as it
//! likes; crashes a node, with all its attempts; gives up a call that may then be applied at any
//! later time or never, or has it applied and a copy of it once more at any later time; lets clients
//! hang up; lets handlers end without an answer; sets the second node's clock ahead by all of the
//! skew, in some settings back again; clears expired records away.
//!
//! # Bounds
//!
//! Time is whole ticks: a lease lasts 2, the skew is 1, time goes on for 4, which is enough for a
//! takeover by either clock, or for 7, which is enough for two. Three requests at most; what the
//! adversary may do how often is written at each check in `checks.rs`. Within that, every state that
//! can be reached is looked at; the number of states is printed, and what has to be come by is
//! asserted, so that no check is empty. Wider bounds take minutes:
//!
//! ```text
//! cargo test --test model -- --ignored --nocapture
//! ```
//!
//! # Properties
//!
//! They are in `properties.rs`, and `bugs.rs` seeds the mistakes that show that each of them can be
//! broken. What they say of a key holds until its record expires; after that, it is another key.
//! Three come with a condition that the model found to be needed:
//!
//! * No node can look at its lease and start its handler in one step. A node that is stopped
//!   between the two starts late, beside the one that took over. Under `Hold` nobody takes over;
//!   otherwise this is what fencing tokens are for.
//! * With `Reconcile`, the work is done once if the ledger fences by token when it is asked, and not
//!   only when it is written to: the question must keep the older attempt from acting on it later.
//! * An answer that was given before it was recorded can be followed by another one, with `Retake`
//!   alone. With `Hold` there is no other, and with `Reconcile` it is the same if the ledger gives
//!   the answer that the handler gave.
//!
//! A claim that comes late, after its own attempt has ended, leaves a lease that nobody holds. With
//! `Retake` it lapses; with `Hold` the key is then refused as one of unknown outcome although
//! nothing was done. It is never run twice.
//!
//! # What is not modelled
//!
//! Several keys, other callers and requests, the near tier, responses that are not stored, an operator who
//! removes records, the record under an earlier name, limits on runs, on execution and on retries, how
//! long pauses are (`src/protocol/attempt/tests.rs` looks at those), a clock that is further off than
//! the skew allows (that one is shown to break the first property), and a store that is not atomic
//! or loses what it took.

mod adversary;
mod bugs;
mod checked;
mod checks;
mod node;
mod properties;
mod run;
mod setting;
mod state;
mod store;
mod witness;
