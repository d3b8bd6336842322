//! Clients, and a store, that mean harm: nothing panics, memory stays within what the settings say,
//! and each refusal is the documented one.
//!
//! Compressed bodies are no case of their own: the layer never unpacks one.

mod bombs;
mod buffers;

mod collisions;
mod crowd;
mod full;
mod lies;
mod nonsense;
mod slow;
mod support;
