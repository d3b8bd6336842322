//! What happens to the request that is dropped.

use super::door::Door;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Nobody had the key before.
    First,
    /// It waits for another request with the key, which runs in the same process, and shares the
    /// end of it.
    Waits,
    /// It waits for a run of another process, and claims the key when that has ended.
    WaitsElsewhere,
    /// A run of a node that has died is run again.
    Retake,
    /// A run of a node that has died is never run again.
    Hold,
    /// A run of a node that has died had its outcome, which is found.
    ReconcileFound,
    /// A run of a node that has died had not begun, which is found.
    ReconcileNotExecuted,
    /// The response is too long to be recorded.
    TooLong,
    /// The first run panics.
    Panics,
    /// The first run answers 500, which gives the key back.
    Answers500,
    /// The store takes the completion only at the third try, and does not say so.
    CompletionFails,
    /// The key has its answer.
    Replay,
}

impl Scenario {
    pub(crate) const ALL: [Self; 12] = [
        Self::First,
        Self::Waits,
        Self::WaitsElsewhere,
        Self::Retake,
        Self::Hold,
        Self::ReconcileFound,
        Self::ReconcileNotExecuted,
        Self::TooLong,
        Self::Panics,
        Self::Answers500,
        Self::CompletionFails,
        Self::Replay,
    ];

    /// Whether it is about more than HTTP.
    pub(crate) fn is_for(self, door: Door) -> bool {
        door == Door::Layer
            || !matches!(
                self,
                Self::ReconcileFound | Self::TooLong | Self::Answers500
            )
    }

    /// Whether another request runs when it comes.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Waits | Self::WaitsElsewhere)
    }

    pub(crate) fn needs_failures(self) -> bool {
        self == Self::CompletionFails
    }

    /// Whether a node died that held the key.
    pub(crate) fn has_orphan(self) -> bool {
        matches!(
            self,
            Self::Retake | Self::Hold | Self::ReconcileFound | Self::ReconcileNotExecuted
        )
    }

    /// At how many points a request waits on the quickest of the stores. Fewer, and the sweep has
    /// missed some.
    pub(crate) fn least_points(self, door: Door) -> usize {
        let of_executor = match self {
            Self::Hold | Self::Replay => 0,
            Self::Waits | Self::WaitsElsewhere => 1,
            Self::Panics => 2,
            Self::ReconcileNotExecuted => 5,
            _ => 4,
        };
        match (door, self) {
            (Door::Executor, _) => of_executor,
            (Door::Layer, Self::Hold | Self::Replay) => 5,
            (Door::Layer, Self::Waits | Self::WaitsElsewhere | Self::ReconcileFound) => 6,
            (Door::Layer, Self::Panics) => 7,
            (Door::Layer, Self::Answers500) => 10,
            (Door::Layer, Self::ReconcileNotExecuted | Self::TooLong) => 15,
            (Door::Layer, _) => 14,
        }
    }
}
