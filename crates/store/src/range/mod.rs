//! Ranges: planned from the index alone, emitted from stored bytes.

mod emit;
mod plan;
mod sort;

pub use emit::{EmitError, Emitter, Progress};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_measured_as_they_are_written() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut out = Vec::new();
            prost::encoding::encode_varint(value, &mut out);
            assert_eq!(varint_len(value), out.len() as u64, "{value}");
        }
    }
}
