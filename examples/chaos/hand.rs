//! The hand that breaks things, as far along in the storm as the seed says.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::clients::Clients;
use crate::fleet::{Fleet, locked};
use crate::storm::Storm;
use crate::wire::State;

const LOOKS_EVERY: Duration = Duration::from_millis(5);

/// One blow.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill(Duration),
    Stop(Duration),
    Wire {
        all: bool,
        state: State,
        for_: Duration,
    },
    RestartStore(Duration),
}

impl Blow {
    const fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "nodes killed",
            Self::Stop(_) => "nodes stopped past their lease",
            Self::Wire {
                state: State::Cut, ..
            } => "wires to the store cut",
            Self::Wire {
                state: State::Frozen,
                ..
            } => "wires to the store frozen",
            Self::Wire { .. } => "wires to the store slowed down",
            Self::RestartStore(_) => "stores killed",
        }
    }
}

/// What was done, by name.
pub(crate) type Blows = BTreeMap<&'static str, usize>;

/// When each blow falls, counted in payments made before it.
fn plan(storm: &Storm, rng: &mut Rng) -> Vec<(usize, Blow)> {
    let mut plan = Vec::new();
    let mut spread = |count: usize, rng: &mut Rng, blow: &mut dyn FnMut(&mut Rng) -> Blow| {
        for number in 0..count {
            let part = (number as f64 + rng.f64()) / count as f64;
            plan.push(((part * storm.requests as f64) as usize, blow(rng)));
        }
    };
    let past_its_lease = storm.lease + storm.clock_skew;
    let millis = |rng: &mut Rng, from: u64, to: Duration| {
        Duration::from_millis(rng.u64(from..from.max(to.as_millis() as u64) + 1))
    };
    spread(storm.kills, rng, &mut |rng| {
        Blow::Kill(millis(rng, 10, Duration::from_secs(1)))
    });
    spread(storm.stops(), rng, &mut |rng| {
        Blow::Stop(past_its_lease + millis(rng, 100, Duration::from_secs(1)))
    });
    // Shorter than a lease: a node that lives must keep what it holds.
    let longest = storm.lease / 4;
    spread(storm.store_faults, rng, &mut |rng| {
        let for_ = millis(rng, 20, longest);
        let slow = State::Slow(millis(rng, 5, longest / 10));
        match rng.u8(..10) {
            0 => Blow::RestartStore(for_ / 2),
            kind => Blow::Wire {
                all: rng.u8(..4) == 0,
                state: [State::Cut, State::Frozen, slow][usize::from(kind % 3)],
                for_,
            },
        }
    });
    plan.sort_by_key(|(after, _)| *after);
    plan
}

/// Strikes until the storm is over, and until everything is well again.
pub(crate) async fn strike(
    storm: &Storm,
    fleet: Arc<Fleet>,
    clients: &Clients,
    blows: &Mutex<Blows>,
) -> Result<()> {
    let mut rng = Rng::with_seed(storm.seed);
    let broken = Arc::new(Mutex::new(HashSet::new()));
    let mut falling = JoinSet::new();
    for (after, blow) in plan(storm, &mut rng) {
        let victim = loop {
            let well: Vec<_> = (0..storm.nodes)
                .filter(|number| !locked(&broken).contains(number))
                .collect();
            // One is left to itself, or nobody would be there to take over.
            if clients.paid() >= after && well.len() > 1 {
                break well[rng.usize(..well.len())];
            }
            sleep(LOOKS_EVERY).await;
        };
        locked(&broken).insert(victim);
        *locked(blows).entry(blow.name()).or_default() += 1;
        let (fleet, broken) = (Arc::clone(&fleet), Arc::clone(&broken));
        falling.spawn(async move {
            let struck = match blow {
                Blow::Kill(down) => fleet.kill(victim, down).await,
                Blow::Stop(pause) => fleet.stop(victim, pause).await,
                Blow::RestartStore(down) => fleet.restart_store(down).await,
                Blow::Wire { all, state, for_ } => {
                    fleet.unwire((!all).then_some(victim), state, for_).await;
                    Ok(())
                }
            };
            locked(&broken).remove(&victim);
            struck
        });
        while let Some(struck) = falling.try_join_next() {
            struck??;
        }
    }
    while let Some(struck) = falling.join_next().await {
        struck??;
    }
    Ok(())
}
