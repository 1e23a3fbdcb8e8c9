//! The map of a file into memory: the only unsafe code of the crate.
#![expect(unsafe_code, reason = "a map of a file cannot be had without it")]

use std::fs::File;
use std::io;
use std::slice;

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::storage::View;

/// Bytes that memory gives at once.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// A shared read-only map. It may be longer than the file; the bytes past the file's end are
/// never touched because every transaction stays below its high-water mark, and the file is at
/// least that long (checked at open, kept by growth).
#[derive(Debug)]
pub(crate) struct FileMap {
    map: MmapRaw,
    len: u64,
}

impl FileMap {
    /// Maps the first `len` bytes of `file`; with `populate` they are read at once.
    pub(crate) fn new(file: &File, len: u64, populate: bool) -> io::Result<FileMap> {
        let bytes = usize::try_from(len)
            .map_err(|_| io::Error::new(io::ErrorKind::OutOfMemory, "too large to be mapped"))?;
        let mut options = MmapOptions::new();
        options.len(bytes);
        if populate {
            options.populate();
        }
        let map = options.map_raw_read_only(file)?;
        // A failed advice costs speed only.
        drop(map.advise(Advice::Random));
        Ok(FileMap { map, len })
    }

    /// Bytes that are mapped.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl View for FileMap {
    fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len as u64)?;
        if end > self.len {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        // SAFETY: `offset + len` lies inside of the map, which lives as long as `self`. The bytes
        // are those of a page below the caller's high-water mark, so the file has them (the
        // exclusive lock keeps other processes from cutting it, and the engine never cuts below a
        // live mark). A page that a transaction can reach is not written as long as the
        // transaction lives: changed pages go to free page numbers, and a number becomes free
        // only when no reader can reach it.
        Some(unsafe { slice::from_raw_parts(self.map.as_ptr().add(offset), len) })
    }

    #[cfg(target_arch = "x86_64")]
    fn will_read(&self, offset: u64, len: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let Some(start) = usize::try_from(offset).ok() else {
            return;
        };
        let end = start.saturating_add(len).min(self.map.len());
        for at in (start..end).step_by(LINE) {
            let at = self.map.as_ptr().wrapping_add(at);
            // SAFETY: a prefetch has no effect that a program can see, whatever its address: it
            // gives no value and no fault, and a page that is not in memory stays where it is.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn slices_stay_inside_of_the_map() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let map = FileMap::new(&file, 4096, false).unwrap();
        assert_eq!(map.slice(3, 4), Some(&b"3456"[..]));
        assert!(map.slice(4090, 7).is_none());
        assert!(map.slice(u64::MAX, 2).is_none());
    }

    #[test]
    fn a_hint_may_name_any_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let map = FileMap::new(&file, 1 << 20, false).unwrap();
        // Inside, behind the file's end where a read would be a signal, and outside of the map.
        for offset in [0, 3, 1 << 19, 1 << 20, u64::MAX] {
            map.will_read(offset, 100);
        }
        assert_eq!(map.slice(3, 4), Some(&b"3456"[..]));
    }
}
