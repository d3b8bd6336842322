//! What a store of record is to do, one call after the other.

use std::collections::{HashMap, HashSet};

use super::event::{Claimed, Id, Stored, Written};
use super::plan::Plan;

pub(crate) struct Spec {
    skew: u64,
    /// Whether calls are seen in the order in which they were applied.
    is_exact: bool,
    record: Record,
    /// Owners whose last call may have been applied or not.
    in_doubt: HashSet<Id>,
    /// Owners whose lease lapsed and went to another.
    lapsed: HashSet<Id>,
    /// Who had the lease before, by those who took it over.
    taken_from: HashMap<Id, Id>,
    /// Which request is which, as far as its work began.
    contents: HashMap<Id, u64>,
    claimed: HashMap<Id, Id>,
}

#[derive(Clone, Debug)]
enum Record {
    Absent,
    InProgress {
        owner: Id,
        content: Id,
        token: u64,
        attempt: u32,
        /// `None`: it was given up.
        deadline: Option<u64>,
    },
    Completed {
        content: Id,
        body: String,
    },
}

type Step = Result<(), String>;

impl Spec {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            skew: u64::try_from(plan.skew.as_micros()).expect("it is short"),
            is_exact: plan.is_exact,
            record: Record::Absent,
            in_doubt: HashSet::new(),
            lapsed: HashSet::new(),
            taken_from: HashMap::new(),
            contents: HashMap::new(),
            claimed: HashMap::new(),
        }
    }

    pub(crate) fn lapsed(&self, owner: Id) -> bool {
        self.lapsed.contains(&owner)
    }

    /// Whose lease `owner` has taken over.
    pub(crate) fn taken_from(&self, owner: Id) -> Option<Id> {
        self.taken_from.get(&owner).copied()
    }

    /// Learns what the request says that `owner` claimed for.
    pub(crate) fn learn(&mut self, owner: Id, content: u64) {
        if let Some(claimed) = self.claimed.get(&owner) {
            self.contents.insert(*claimed, content);
        }
    }

    /// Whether the key has the answer of this request.
    pub(crate) fn is_completed_for(&self, content: u64) -> bool {
        matches!(
            &self.record,
            Record::Completed { content: of, .. } if self.contents.get(of) == Some(&content)
        )
    }

    /// Whether another request than this one has had the key.
    pub(crate) fn was_claimed_for_other(&self, content: u64) -> bool {
        let mut claimed = self.claimed.values();
        claimed.any(|claimed| self.contents.get(claimed) != Some(&content))
    }

    /// Whether the attempt may begin its work now.
    pub(crate) fn may_start(&self, owner: Id) -> Step {
        match &self.record {
            Record::InProgress { owner: holds, .. } if *holds == owner => Ok(()),
            _ if !self.is_exact => Ok(()),
            other => Err(format!("{owner:?} begins, and there is {other:?}")),
        }
    }

    pub(crate) fn step(&mut self, stored: &Stored) -> Step {
        let before = self.record.clone();
        let step = match stored {
            Stored::Claim {
                owner,
                content,
                now,
                takes_over,
                alive,
                gave,
            } => {
                let wanted = self.decide(*owner, *content, *now, *takes_over, alive);
                self.claim(*owner, *content, &wanted, gave)
            }
            Stored::Renew {
                owner,
                deadline,
                gave,
            } => self.renew(*owner, *deadline, *gave),
            Stored::Completing { .. } => Ok(()),
            Stored::Complete { owner, body, gave } => self.complete(*owner, body, *gave),
            Stored::Releasing { owner } => {
                if !self.is_exact {
                    self.in_doubt.insert(*owner);
                }
                Ok(())
            }
            Stored::Release {
                owner,
                is_free,
                gave,
            } => self.release(*owner, *is_free, *gave),
        };
        step.map_err(|wanted| format!("{stored:?} on {before:?}, not {wanted}"))
    }

    fn claim(&mut self, owner: Id, content: Id, wanted: &Wanted, gave: &Claimed) -> Step {
        let is_wanted = match (gave, wanted) {
            (Claimed::Acquired { token, attempt, .. }, Wanted::Lease(least, is)) => {
                token >= least && attempt == is
            }
            (Claimed::Acquired { token, .. }, Wanted::Own(own)) => token == own,
            (Claimed::Completed { body }, Wanted::Answer(recorded)) => body == recorded,
            (Claimed::InProgress, Wanted::InProgress)
            | (Claimed::Orphaned, Wanted::Orphaned)
            | (Claimed::Reused, Wanted::Reused) => true,
            _ => false,
        };
        if let Claimed::Acquired {
            token,
            attempt,
            deadline,
        } = gave
        {
            if let Record::InProgress { owner: before, .. } = &self.record
                && *before != owner
            {
                self.lapsed.insert(*before);
                self.taken_from.insert(owner, *before);
            }
            if !matches!(wanted, Wanted::Own(_)) {
                self.claimed.insert(owner, content);
                self.record = Record::InProgress {
                    owner,
                    content,
                    token: *token,
                    attempt: *attempt,
                    deadline: Some(*deadline),
                };
            }
        }
        match self.is_exact {
            true if !is_wanted => Err(format!("{wanted:?}")),
            true => Ok(()),
            false => self.may_be_given(owner, gave, wanted),
        }
    }

    /// When calls overlap, what must not be is known only where nothing else could have come in
    /// between.
    fn may_be_given(&self, owner: Id, gave: &Claimed, wanted: &Wanted) -> Step {
        match (gave, wanted) {
            (Claimed::Acquired { .. }, Wanted::InProgress | Wanted::Reused)
                if !self.in_doubt.contains(&owner) =>
            {
                Err(format!("{wanted:?}"))
            }
            (Claimed::Acquired { .. }, Wanted::Answer(_)) => Err(format!("{wanted:?}")),
            (Claimed::Completed { body }, Wanted::Answer(recorded)) if body != recorded => {
                Err(format!("{wanted:?}"))
            }
            _ => Ok(()),
        }
    }

    fn decide(&self, owner: Id, content: Id, now: u64, takes_over: bool, alive: &[Id]) -> Wanted {
        match &self.record {
            Record::Absent => Wanted::Lease(now, 1),
            Record::Completed { content: of, .. } if *of != content => Wanted::Reused,
            Record::Completed { body, .. } => Wanted::Answer(body.clone()),
            Record::InProgress {
                owner: holds,
                token,
                ..
            } if *holds == owner => Wanted::Own(*token),
            Record::InProgress { owner: holds, .. } if self.in_doubt.contains(holds) => {
                Wanted::Lease(0, 0)
            }
            Record::InProgress { content: of, .. } if *of != content => Wanted::Reused,
            Record::InProgress { owner: holds, .. } if alive.contains(holds) => Wanted::InProgress,
            Record::InProgress {
                deadline: Some(deadline),
                ..
            } if deadline + self.skew >= now => Wanted::InProgress,
            Record::InProgress { token, attempt, .. } if takes_over => {
                Wanted::Lease(token + 1, attempt + 1)
            }
            Record::InProgress { .. } => Wanted::Orphaned,
        }
    }

    /// A renewal never takes away from a lease what it has.
    fn renew(&mut self, by: Id, until: u64, gave: Written) -> Step {
        match &mut self.record {
            Record::InProgress {
                owner, deadline, ..
            } if *owner == by => {
                if gave == Written::Applied {
                    *deadline = (*deadline).max(Some(until));
                }
                self.wants(gave, Written::Applied)
            }
            _ => self.wants(gave, Written::LeaseLost),
        }
    }

    fn complete(&mut self, by: Id, answer: &str, gave: Written) -> Step {
        match &self.record {
            Record::InProgress { owner, content, .. } if *owner == by => {
                if gave == Written::Applied {
                    self.record = Record::Completed {
                        content: *content,
                        body: answer.to_owned(),
                    };
                }
                self.wants(gave, Written::Applied)
            }
            Record::Completed { body, .. } if body == answer => self.wants(gave, Written::Applied),
            _ => self.wants(gave, Written::LeaseLost),
        }
    }

    fn release(&mut self, by: Id, is_free: bool, gave: Written) -> Step {
        match &mut self.record {
            Record::InProgress {
                owner, deadline, ..
            } if *owner == by => {
                if gave == Written::Applied {
                    match is_free {
                        true => self.record = Record::Absent,
                        false => *deadline = None,
                    }
                    self.in_doubt.remove(&by);
                }
                self.wants(gave, Written::Applied)
            }
            // Repeated, it is as it was to be.
            Record::Absent if gave == Written::Applied => Ok(()),
            _ => self.wants(gave, Written::LeaseLost),
        }
    }

    fn wants(&self, gave: Written, wanted: Written) -> Step {
        match !self.is_exact || gave == wanted {
            true => Ok(()),
            false => Err(format!("{wanted:?}")),
        }
    }
}

/// What a claim is to give.
#[derive(Debug)]
enum Wanted {
    /// A lease with at least this token, as this attempt.
    Lease(u64, u32),
    /// The lease it has, with this token.
    Own(u64),
    Answer(String),
    InProgress,
    Orphaned,
    Reused,
}
