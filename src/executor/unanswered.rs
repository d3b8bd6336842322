//! Releasing a key whose claim was not answered.

use tracing::{Instrument, Span};

use super::Executor;
use super::begin::{Claimant, jittered};
use super::handle::Permit;
use super::store_faults::log_fault;
use crate::protocol::attempt::{Action, Event, Look, State, Step, Write};
use crate::protocol::key::RecordKey;
use crate::protocol::record::{Lease, Owner, Record};
use crate::runtime::{self, sleep};
use crate::store::{Release, Store};

impl<St: Store> Executor<St> {
    /// Looks whether a claim without an answer was granted, and releases the key if it was: its
    /// work was not begun. It counts among the runs, so that there are no more of these than runs
    /// may be, and a shutdown waits for them.
    pub(super) fn look_in_background(
        &self,
        claimant: &Claimant,
        step: Step,
        state: State,
        permit: Permit,
    ) {
        let executor = self.clone();
        let key = *claimant.key.record_key();
        let owner = claimant.owner;
        let looking = async move {
            let began = runtime::now();
            let (mut state, mut action) = (state, step.then);
            while let Action::Look { after } = action {
                sleep(jittered(after)).await;
                let event = Event::Looked {
                    found: executor.release_if_held(&key, owner).await,
                    looked_for: began.elapsed(),
                };
                action = executor.step(&mut state, event, &key).then;
            }
            drop(permit);
        };
        runtime::spawn(looking.instrument(Span::current()));
    }

    /// Releases a key if `owner` holds it.
    async fn release_if_held(&self, key: &RecordKey, owner: Owner) -> Look {
        let store = &self.shared.store;
        let now = self.now();
        let found = match self.bounded(store.get(key, now)).await {
            Ok(found) => found.map(|record| record.by_clock(now)),
            Err(_) => return Look::NoAnswer,
        };
        let lease = match found {
            Some(Record::InProgress(lease)) if lease.owner == owner => lease,
            _ => return Look::Nothing,
        };
        let holder = lease.holder();
        let releasing = store.release(&holder, self.undoing(&lease), self.now());
        match self.bounded(releasing).await {
            Ok(_) => Look::Released,
            Err(error) => {
                log_fault(key, &error, "a key was not released; trying again");
                Look::NoAnswer
            }
        }
    }

    /// How a key is released whose work was not begun.
    pub(super) fn undoing(&self, lease: &Lease) -> Release {
        match Write::undoing(lease.attempt) {
            Write::Orphan => self.as_orphan(lease.first_status),
            _ => Release::Free,
        }
    }
}
