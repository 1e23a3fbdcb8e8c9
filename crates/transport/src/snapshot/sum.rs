//! The checksum of a file that goes from one member to another.

use sha2::{Digest as _, Sha256};

/// How many bytes one CRC stands for.
const PIECE_BYTES: usize = 64 << 10;

/// SHA-256 over the CRC-32C, big-endian, of each 64 KiB of a file; the last piece may be shorter.
///
/// It finds what goes wrong on the way, at a tenth of the cost of a SHA-256 over all bytes: pieces that are
/// missing, doubled or out of place, all damage to a piece that lies within four bytes, and any other but
/// for one in four thousand million. It is no proof against somebody who means to deceive: TLS is.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pieces: Sha256,
    crc: u32,
    /// Bytes of the piece that is not complete.
    begun: usize,
}

impl Sum {
    /// Takes in what follows.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.begun));
            self.crc = crc32c::crc32c_append(self.crc, now);
            self.begun += now.len();
            if self.begun == PIECE_BYTES {
                self.end_piece();
            }
            bytes = rest;
        }
    }

    /// The sum, in hex.
    pub(super) fn finish(mut self) -> String {
        if self.begun > 0 {
            self.end_piece();
        }
        let sum = self.pieces.finalize();
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn end_piece(&mut self) {
        self.pieces.update(self.crc.to_be_bytes());
        (self.crc, self.begun) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &[&[u8]]) -> String {
        let mut sum = Sum::default();
        for part in parts {
            sum.update(part);
        }
        sum.finish()
    }

    #[test]
    fn a_sum_is_the_hash_of_the_sums_of_its_pieces() {
        let mut hash = Sha256::new();
        hash.update(crc32c::crc32c(&[7; PIECE_BYTES]).to_be_bytes());
        hash.update(crc32c::crc32c(&[7; 100]).to_be_bytes());
        let expected: String = hash
            .finalize()
            .iter()
            .map(|it| format!("{it:02x}"))
            .collect();
        assert_eq!(sum(&[&[7; PIECE_BYTES + 100]]), expected);
        assert_eq!(sum(&[]), sum(&[&[]]));
    }

    #[test]
    fn a_sum_does_not_depend_on_how_the_bytes_came() {
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 5)
            .map(|at| (at % 251) as u8)
            .collect();
        let whole = sum(&[&bytes]);
        for size in [1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1] {
            let parts: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(sum(&parts), whole, "{size}");
        }
    }

    #[test]
    fn a_sum_tells_of_a_changed_bit_and_of_pieces_out_of_place() {
        let (one, other) = (vec![1; PIECE_BYTES], vec![2; PIECE_BYTES]);
        let whole = sum(&[&one, &other]);
        assert_ne!(sum(&[&other, &one]), whole);
        assert_ne!(sum(&[&one]), whole);
        assert_ne!(sum(&[&one, &other, &other]), whole);
        let mut damaged = other.clone();
        damaged[PIECE_BYTES - 1] ^= 1;
        assert_ne!(sum(&[&one, &damaged]), whole);
    }
}
