//! The keelson program.
