//! What is written and outlives the process that wrote it: digests, frames, their versions.

pub(crate) mod answer;
pub(crate) mod digest;
pub(crate) mod extras;
pub(crate) mod leb128;
pub(crate) mod scratch;
pub(crate) mod version;
