//! The model as the checker wants it.

use stateright::{Model, Property};

use crate::adversary::Action;
use crate::properties;
use crate::setting::Setting;
use crate::state::State;
use crate::witness::Witness;

/// The model with its setting, and with what happened in it.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) setting: Setting,
    pub(crate) witness: Witness,
    look: Look,
}

/// Which properties are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Look {
    AtAll,
    OnlyAt(&'static str),
    NotAt(&'static str),
}

impl Checked {
    pub(crate) fn new(setting: Setting, look: Look) -> Self {
        Self {
            setting,
            witness: Witness::default(),
            look,
        }
    }

    pub(crate) fn looks_at(&self, property: &str) -> bool {
        match self.look {
            Look::AtAll => true,
            Look::OnlyAt(only) => property == only,
            Look::NotAt(other) => property != other,
        }
    }
}

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.setting.adversary)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.perform(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
