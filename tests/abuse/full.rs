//! More keys than there is room for.
