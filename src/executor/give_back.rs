//! Giving back a key whose work was not begun.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::begin::{Claimant, jittered};
use super::faults::log_fault;
use super::runs::Permit;
use super::{Executor, after};
use crate::key::RecordKey;
use crate::policy::Orphan;
use crate::record::{Lease, Owner, Record};
use crate::store::{Release, Store};

/// The first pause between two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// For so many leases it is looked, at the most, whether a claim without an answer was granted.
const MOST_LEASES_LOOKED: u32 = 20;

impl<St: Store> Executor<St> {
    /// Looks whether a claim without an answer was granted, and gives the key back if it was: its
    /// work was not begun. It counts among the runs, so that there are no more of these than runs
    /// may be, and a shutdown waits for them.
    ///
    /// It looks until it has given the key back, or until a lease would have lapsed, since the
    /// claim may still be under way. Where a lapsed lease is held for good, it looks until the
    /// store has answered.
    pub(super) fn give_back_in_background(&self, claimant: &Claimant, permit: Permit) {
        let executor = self.clone();
        let key = *claimant.key.record_key();
        let owner = claimant.owner;
        tokio::spawn(async move {
            let settings = &executor.shared.settings;
            let lapsed = after(settings.lease.saturating_add(settings.clock_skew));
            let gives_up = match settings.orphan {
                Orphan::Hold => after(settings.lease.saturating_mul(MOST_LEASES_LOOKED)),
                _ => lapsed,
            };
            let mut pause = FIRST_PAUSE;
            loop {
                let found = executor.give_back(&key, owner).await;
                let now = Instant::now();
                let is_done = match found {
                    Found::GivenBack => true,
                    Found::Nothing => now >= lapsed,
                    Found::NoAnswer => false,
                };
                if is_done || now >= gives_up {
                    break;
                }
                sleep(jittered(pause)).await;
                pause = (settings.lease / 3).min(pause * 2);
            }
            drop(permit);
        });
    }

    /// Gives a key back if `owner` holds it.
    async fn give_back(&self, key: &RecordKey, owner: Owner) -> Found {
        let store = &self.shared.store;
        let now = self.now();
        let found = match self.bounded(store.get(key, now)).await {
            Ok(found) => found.map(|record| record.by_clock(now)),
            Err(_) => return Found::NoAnswer,
        };
        let lease = match found {
            Some(Record::InProgress(lease)) if lease.owner == owner => lease,
            _ => return Found::Nothing,
        };
        let holder = lease.holder();
        let releasing = store.release(&holder, self.undoing(&lease), self.now());
        match self.bounded(releasing).await {
            Ok(_) => Found::GivenBack,
            Err(error) => {
                log_fault(key, &error, "a key was not given back; trying again");
                Found::NoAnswer
            }
        }
    }

    /// How a key is given back whose work was not begun. What an attempt before may have left
    /// behind stays as it was.
    pub(super) fn undoing(&self, lease: &Lease) -> Release {
        match lease.attempt {
            1 => Release::Free,
            _ => self.as_orphan(lease.first_status),
        }
    }
}

/// What a look for a claim without an answer found.
enum Found {
    /// The claim was granted; the key is given back.
    GivenBack,
    /// The claim has not arrived, or another holds the key.
    Nothing,
    /// The store did not say, or did not take the key back.
    NoAnswer,
}
