//! Tests over files and calls recorded from real programs.
