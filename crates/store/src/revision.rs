//! Revisions and their form as keys of the `key` bucket.
//!
//! A revision names one change: `main` counts transactions that changed something, `sub` counts the changes inside one
//! of them. Its bucket key sorts by bytes as the revision sorts by number.
//!
//! # Source
//!
//! The `key` bucket of etcd 3.7 (`BytesToRev`, `BucketKey`).

use std::fmt;

use thiserror::Error;

/// Length in bytes of the bucket key of a value.
pub const BUCKET_KEY_BYTES: usize = 17;
/// Length in bytes of the bucket key of a tombstone.
pub const TOMBSTONE_KEY_BYTES: usize = 18;

const SEPARATOR_OFFSET: usize = 8;
const SUB_OFFSET: usize = 9;
const MARK_OFFSET: usize = 17;
const SEPARATOR: u8 = b'_';
const TOMBSTONE_MARK: u8 = b't';

const _: () = assert!(SUB_OFFSET + 8 == BUCKET_KEY_BYTES && MARK_OFFSET + 1 == TOMBSTONE_KEY_BYTES);

/// One change of the store: the number of its transaction, and its place inside it.
///
/// Reading *at* a revision sees every change whose revision is not above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The transaction: 2 for the first one of a store, dense from there on.
    pub main: i64,
    /// The change inside the transaction, from 0, in execution order.
    pub sub: u32,
}

impl Revision {
    /// Makes the revision of change `sub` of transaction `main`.
    #[must_use]
    pub const fn new(main: i64, sub: u32) -> Revision {
        Revision { main, sub }
    }

    /// The revision to read at for everything that transaction `main` and those before it have done.
    #[must_use]
    pub const fn end_of(main: i64) -> Revision {
        Revision {
            main,
            sub: u32::MAX,
        }
    }

    /// The revision to read at for everything that was done before this change: what a read inside a transaction sees
    /// when its next change would be this one.
    #[must_use]
    pub const fn before(self) -> Revision {
        match self.sub.checked_sub(1) {
            Some(sub) => Revision {
                main: self.main,
                sub,
            },
            None => Revision::end_of(self.main.saturating_sub(1)),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.main, self.sub)
    }
}

/// A key of the `key` bucket: 17 bytes, or 18 for a tombstone.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | main, big endian |
/// | 8 | 1 | `_` |
/// | 9 | 8 | sub, big endian |
/// | 17 | 1 | `t`, on tombstones only |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketKey {
    bytes: [u8; TOMBSTONE_KEY_BYTES],
    tombstone: bool,
}

impl BucketKey {
    /// Encodes a revision, with the mark of a tombstone when it is one.
    #[must_use]
    pub fn encode(revision: Revision, tombstone: bool) -> BucketKey {
        let mut bytes = [0; TOMBSTONE_KEY_BYTES];
        bytes[..SEPARATOR_OFFSET].copy_from_slice(&revision.main.to_be_bytes());
        bytes[SEPARATOR_OFFSET] = SEPARATOR;
        bytes[SUB_OFFSET..MARK_OFFSET].copy_from_slice(&u64::from(revision.sub).to_be_bytes());
        bytes[MARK_OFFSET] = TOMBSTONE_MARK;
        BucketKey { bytes, tombstone }
    }

    /// Decodes a bucket key into its revision and whether it is a tombstone's. Byte 8 is not looked at, as in etcd.
    ///
    /// # Errors
    ///
    /// Every variant of [`BucketKeyError`]: such a key means that the file is damaged or was not written by etcd.
    pub fn decode(bytes: &[u8]) -> Result<(Revision, bool), BucketKeyError> {
        let Some((head, mark)) = bytes.split_first_chunk::<BUCKET_KEY_BYTES>() else {
            return Err(BucketKeyError::Length { found: bytes.len() });
        };
        let tombstone = match mark {
            [] => false,
            [TOMBSTONE_MARK] => true,
            &[found] => return Err(BucketKeyError::Mark { found }),
            _ => return Err(BucketKeyError::Length { found: bytes.len() }),
        };
        let main = i64::from_be_bytes(*head.first_chunk().expect("17 bytes hold 8"));
        let sub = i64::from_be_bytes(*head.last_chunk().expect("17 bytes hold 8"));
        if main < 0 {
            return Err(BucketKeyError::Main { found: main });
        }
        let sub = u32::try_from(sub).map_err(|_| BucketKeyError::Sub { found: sub })?;
        Ok((Revision { main, sub }, tombstone))
    }

    /// The bytes that stand in the bucket.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        if self.tombstone {
            &self.bytes
        } else {
            &self.bytes[..BUCKET_KEY_BYTES]
        }
    }
}

impl AsRef<[u8]> for BucketKey {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Why bytes are no key of the `key` bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BucketKeyError {
    /// Neither 17 nor 18 bytes.
    #[error("revision key has {found} bytes, expected 17 or 18")]
    Length {
        /// Its length in bytes.
        found: usize,
    },
    /// The 18th byte is not `t`.
    #[error("revision key ends in byte {found:#04x}, expected 0x74")]
    Mark {
        /// The byte that stands there.
        found: u8,
    },
    /// A negative main revision.
    #[error("revision key has main revision {found}")]
    Main {
        /// The main revision.
        found: i64,
    },
    /// A sub revision that no transaction can reach.
    #[error("revision key has sub revision {found}")]
    Sub {
        /// The sub revision.
        found: i64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_keys_have_the_bytes_of_etcd() {
        let key = BucketKey::encode(Revision::new(0x0102, 3), false);
        assert_eq!(key.as_bytes(), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        let key = BucketKey::encode(Revision::new(2, 0), true);
        assert_eq!(key.as_bytes(), b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0t");
    }

    #[test]
    fn decode_inverts_encode_and_keeps_the_order() {
        let mut last: Option<BucketKey> = None;
        for main in [0, 1, 2, 255, 256, i64::MAX] {
            for sub in [0, 1, 255, 256, u32::MAX] {
                for tombstone in [false, true] {
                    let revision = Revision::new(main, sub);
                    let key = BucketKey::encode(revision, tombstone);
                    assert_eq!(BucketKey::decode(key.as_bytes()), Ok((revision, tombstone)));
                    if let Some(last) = last {
                        assert!(last.as_bytes() < key.as_bytes());
                    }
                    last = Some(key);
                }
            }
        }
    }

    #[test]
    fn damaged_bucket_keys_are_refused() {
        let good = BucketKey::encode(Revision::new(7, 1), true);
        let good = good.as_bytes();
        assert_eq!(
            BucketKey::decode(&good[..16]),
            Err(BucketKeyError::Length { found: 16 })
        );
        assert_eq!(
            BucketKey::decode(&[]),
            Err(BucketKeyError::Length { found: 0 })
        );
        let mut long = good.to_vec();
        long.push(b't');
        assert_eq!(
            BucketKey::decode(&long),
            Err(BucketKeyError::Length { found: 19 })
        );
        let mut bad = good.to_vec();
        bad[17] = b'x';
        assert_eq!(
            BucketKey::decode(&bad),
            Err(BucketKeyError::Mark { found: b'x' })
        );
        let mut bad = good.to_vec();
        bad[0] = 0xff;
        assert!(matches!(
            BucketKey::decode(&bad),
            Err(BucketKeyError::Main { .. })
        ));
        let mut bad = good.to_vec();
        bad[12] = 1;
        assert_eq!(
            BucketKey::decode(&bad),
            Err(BucketKeyError::Sub {
                found: (1 << 32) + 1
            })
        );
    }

    #[test]
    fn a_bucket_key_reads_whatever_its_separator() {
        let mut key = BucketKey::encode(Revision::new(7, 1), false)
            .as_bytes()
            .to_vec();
        key[8] = 0;
        assert_eq!(BucketKey::decode(&key), Ok((Revision::new(7, 1), false)));
    }

    #[test]
    fn before_a_change_is_the_change_in_front_of_it() {
        assert_eq!(Revision::new(5, 3).before(), Revision::new(5, 2));
        assert_eq!(Revision::new(5, 0).before(), Revision::end_of(4));
    }
}
