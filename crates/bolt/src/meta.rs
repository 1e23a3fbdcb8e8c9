//! The two meta pages and which of them wins (formats 1.1).

use std::hash::Hasher;

use crate::page::{FLAG_META, PAGE_HEADER, Writer, u32_at, u64_at};
use crate::{Error, PageId, TxId};

/// First word of every meta.
pub(crate) const MAGIC: u32 = 0xED0C_DAED;
/// The only version of the format.
pub(crate) const VERSION: u32 = 2;
/// Bytes of a meta, behind the page header.
pub(crate) const META_SIZE: usize = 64;
/// Stands in a meta's freelist field when the list of free pages is not written.
pub(crate) const NO_FREELIST: PageId = PageId(u64::MAX);
/// Where the checksum stands: it covers all bytes of the meta before it.
const CHECKSUM_AT: usize = 56;

/// A decoded meta: the root of everything as of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) page_size: u32,
    pub(crate) flags: u32,
    pub(crate) root: PageId,
    pub(crate) sequence: u64,
    /// [`NO_FREELIST`] if it is not written.
    pub(crate) freelist: PageId,
    /// One past the highest page ever used.
    pub(crate) high_water: PageId,
    pub(crate) tx_id: TxId,
}

/// FNV-1a.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

impl Meta {
    /// Decodes the meta in a page (header and all) and validates it.
    pub(crate) fn read(page: &[u8]) -> Result<Meta, Error> {
        let Some(bytes) = page.get(PAGE_HEADER..PAGE_HEADER + META_SIZE) else {
            return Err(Error::InvalidDatabase);
        };
        if u32_at(bytes, 0) != MAGIC {
            return Err(Error::InvalidDatabase);
        }
        if u32_at(bytes, 4) != VERSION {
            return Err(Error::VersionMismatch);
        }
        if u64_at(bytes, CHECKSUM_AT) != checksum(&bytes[..CHECKSUM_AT]) {
            return Err(Error::Checksum);
        }
        Ok(Meta {
            page_size: u32_at(bytes, 8),
            flags: u32_at(bytes, 12),
            root: PageId(u64_at(bytes, 16)),
            sequence: u64_at(bytes, 24),
            freelist: PageId(u64_at(bytes, 32)),
            high_water: PageId(u64_at(bytes, 40)),
            tx_id: TxId(u64_at(bytes, 48)),
        })
    }

    /// The page that this meta belongs on.
    pub(crate) fn page(&self) -> PageId {
        PageId(self.tx_id.0 % 2)
    }

    /// The whole page as it is written: header, meta, zeros.
    pub(crate) fn to_page(self, page: PageId) -> Vec<u8> {
        let mut out = Writer::page(self.page_size as usize, page, FLAG_META, 0, 0);
        let start = out.len();
        out.u32(MAGIC);
        out.u32(VERSION);
        out.u32(self.page_size);
        out.u32(self.flags);
        out.u64(self.root.0);
        out.u64(self.sequence);
        out.u64(self.freelist.0);
        out.u64(self.high_water.0);
        out.u64(self.tx_id.0);
        let sum = checksum(out.since(start));
        out.u64(sum);
        out.finish(self.page_size as usize)
    }

    /// Bytes from the start of the file to the end of the last page in use.
    pub(crate) fn size(&self) -> u64 {
        self.high_water.0.saturating_mul(u64::from(self.page_size))
    }

    /// Whether the list of free pages is on disk.
    pub(crate) fn has_freelist(&self) -> bool {
        self.freelist != NO_FREELIST
    }
}

/// Which of two metas counts: the sound one with the larger number. If neither is sound it is
/// the first one's error.
pub(crate) fn choose(a: Result<Meta, Error>, b: Result<Meta, Error>) -> Result<Meta, Error> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(if b.tx_id > a.tx_id { b } else { a }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(first), Err(_)) => Err(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(tx: u64) -> Meta {
        Meta {
            page_size: 4096,
            flags: 0,
            root: PageId(3),
            sequence: 0,
            freelist: PageId(2),
            high_water: PageId(4),
            tx_id: TxId(tx),
        }
    }

    #[test]
    fn the_metas_of_a_new_file_have_the_known_checksums() {
        let sums: Vec<u64> = (0..2)
            .map(|tx| u64_at(&fresh(tx).to_page(PageId(tx)), 16 + 56))
            .collect();
        assert_eq!(sums, [0x0751_6e11_4689_fdee, 0x264c_351a_5179_480f]);
    }

    #[test]
    fn a_meta_reads_back_and_every_changed_byte_is_seen() {
        let meta = fresh(7);
        let page = meta.to_page(meta.page());
        assert_eq!(Meta::read(&page).unwrap(), meta);
        for at in PAGE_HEADER..PAGE_HEADER + META_SIZE {
            let mut bad = page.clone();
            bad[at] ^= 0x40;
            assert!(Meta::read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_sound_meta_with_the_larger_number_wins() {
        assert_eq!(choose(Ok(fresh(8)), Ok(fresh(7))).unwrap().tx_id, TxId(8));
        assert_eq!(choose(Ok(fresh(8)), Ok(fresh(9))).unwrap().tx_id, TxId(9));
        assert_eq!(
            choose(Err(Error::Checksum), Ok(fresh(9))).unwrap().tx_id,
            TxId(9)
        );
        let both = choose(Err(Error::VersionMismatch), Err(Error::Checksum));
        assert!(matches!(both, Err(Error::VersionMismatch)));
    }
}
