//! One hot key.
