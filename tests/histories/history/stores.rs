//! What the nodes of a history keep their records in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_idempotency::store::{MemoryStore, SharedStore};
use tower_idempotency::testing::FaultStore;

use super::watched::{Faults, Life, Uplink, Watched};
use super::world::World;
use crate::dynamo::Dynamo;
use crate::wire::Wire;

#[derive(Clone)]
pub(crate) enum Kind {
    /// Memory, and no faults.
    Memory(Arc<Mutex<Option<SharedStore>>>),
    /// Memory that all nodes reach over a line that fails.
    Remote(MemoryStore),
    /// The same, under so many tiers of each node.
    Tiered(MemoryStore, usize),
    /// A DynamoDB, and the wires to it.
    Dynamo(Arc<Dynamo>, Arc<Mutex<Vec<Wire>>>),
}

impl Kind {
    pub(crate) fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    pub(crate) fn remote() -> Self {
        Self::Remote(MemoryStore::new())
    }

    pub(crate) fn tiered(tiers: usize) -> Self {
        Self::Tiered(MemoryStore::new(), tiers)
    }

    pub(crate) fn dynamo(dynamo: &Arc<Dynamo>) -> Self {
        Self::Dynamo(Arc::clone(dynamo), Arc::default())
    }

    /// The store of a node.
    pub(crate) fn store(&self, world: &World, node: usize, life: &Life) -> SharedStore {
        let to = |memory: &MemoryStore| uplink(memory.clone(), None, world, node, life);
        match self {
            Self::Memory(store) => {
                let mut store = store.lock().expect("nobody panics with it");
                let made = || SharedStore::new(watched(MemoryStore::new(), world));
                store.get_or_insert_with(made).clone()
            }
            Self::Remote(memory) => SharedStore::new(to(memory)),
            Self::Tiered(memory, 1) => SharedStore::new(MemoryStore::new().over(to(memory))),
            Self::Tiered(memory, _) => {
                let middle = MemoryStore::new().over(to(memory));
                SharedStore::new(MemoryStore::new().over(middle))
            }
            Self::Dynamo(dynamo, wires) => {
                let wire = Wire::new();
                let mut wires = wires.lock().expect("nobody panics with it");
                wires.push(wire.clone());
                let store = dynamo.store_over(&wire, Duration::from_millis(100));
                SharedStore::new(uplink(store, Some(wire), world, node, life))
            }
        }
    }

    pub(crate) fn heal(&self) {
        if let Self::Dynamo(_, wires) = self {
            for wire in wires.lock().expect("nobody panics with it").iter() {
                wire.heal();
            }
        }
    }
}

fn watched<St>(inner: St, world: &World) -> Watched<St> {
    Watched {
        inner,
        history: world.history.clone(),
        keys: Arc::clone(&world.keys),
    }
}

fn uplink<St>(
    inner: St,
    wire: Option<Wire>,
    world: &World,
    node: usize,
    life: &Life,
) -> Uplink<Watched<St>> {
    Uplink {
        store: FaultStore::new(watched(inner, world)),
        wire,
        node,
        life: life.clone(),
        faults: Faults {
            seed: world.plan.seed,
            percent: world.plan.faults,
            are_calm: world.plan.is_calm,
            latest: world.plan.latest(),
        },
        history: world.history.clone(),
        keys: Arc::clone(&world.keys),
        calls: Mutex::new(HashMap::new()),
    }
}
