//! An embedded key-value engine over the bbolt file format.
