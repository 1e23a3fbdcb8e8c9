//! Ranges: planned from the index alone, emitted from stored bytes.

mod emit;
mod plan;
mod sort;
#[cfg(test)]
mod tests;

pub use emit::{EmitError, Emitter, Progress, held_record};
pub use plan::{Plan, PlanError, ReadAt, plan, reads_values};

/// The bytes of a protobuf varint.
pub(crate) fn varint_len(value: u64) -> u64 {
    let bits = 64 - u64::from((value | 1).leading_zeros());
    bits.div_ceil(7)
}

/// Fields of `RangeResponse`, as protobuf tags.
const TAG_KVS: u8 = 0x12;
const TAG_MORE: u8 = 0x18;
const TAG_COUNT: u8 = 0x20;
