//! What the layer costs, counted and not timed: allocations by path, memory held for each answer,
//! and the bytes of a recorded answer.

mod allocations;
mod frame;
mod memory;
mod support;
