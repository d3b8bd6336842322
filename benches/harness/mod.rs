//! What the bench of this crate and that of its peers share: lanes that are timed in turns, the
//! requests they are sent, and the floor they are held against.
//!
//! A machine that others use, or whose clock changes, moves every figure in nanoseconds. So all
//! lanes of a case take turns, a fraction of a millisecond each, in an order that chance gives for
//! each round, and what is reported is the median of the ratios within each round.

pub(crate) mod floor;
mod frame;
pub(crate) mod load;
pub(crate) mod report;
pub(crate) mod rounds;
