//! Finding out what a file is, and making a new one (formats 1.1).

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::freelist::{self, Freelist, walk};
use crate::meta::{Meta, choose};
use crate::node::to_page;
use crate::options::Options;
use crate::page::Pages;
use crate::storage::{FileStorage, Storage};
use crate::{Damage, Error, PageId, TxId};

/// Bytes of the first look at a file.
const PROBE: usize = 4096;
const MIN_PAGE_SIZE: u32 = 1 << 10;
const MAX_PAGE_SIZE: u32 = 1 << 24;
/// Up to this size a file without a list of free pages is walked at the open: it takes
/// milliseconds.
const WALK_AT_OPEN: u64 = 8 << 20;

/// Opens and locks the file `path`.
pub(crate) fn open_file(path: &Path, options: &Options) -> Result<FileStorage, Error> {
    match FileStorage::open(path, options) {
        Ok(storage) => Ok(storage),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Error::Timeout),
        Err(error) => Err(Error::io(format!("open {}", path.display()))(error)),
    }
}

/// Makes the file of a new database.
pub(crate) fn create(path: &Path, options: &Options) -> Result<(), Error> {
    let failed = |what: &str| Error::io(format!("{what} {}", path.display()));
    let making = path.with_added_extension("tmp.new");
    let whole = Options {
        read_only: false,
        populate: false,
        initial_map_size: 0,
        ..options.clone()
    };
    let storage = open_file(&making, &whole)?;
    if path.exists() {
        // Somebody else has made it while this waited for the lock.
        return Ok(());
    }
    storage.set_len(0).map_err(failed("empty"))?;
    initialise(&storage, options)?;
    std::fs::rename(&making, path).map_err(failed("create"))?;
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory of"))
}

/// Writes the four pages of a new database (formats 1.1) and gives their length.
pub(crate) fn initialise(storage: &dyn Storage, options: &Options) -> Result<u64, Error> {
    let page_size = match options.page_size {
        Some(size) => size,
        None => u32::try_from(rustix::param::page_size()).unwrap_or(4096),
    };
    if !valid_page_size(page_size) {
        return Err(Error::PageSize(page_size));
    }
    let mut meta = Meta {
        page_size,
        flags: 0,
        root: PageId(3),
        sequence: 0,
        freelist: PageId(2),
        high_water: PageId(4),
        tx_id: TxId(0),
    };
    let mut bytes = meta.to_page(PageId(0));
    meta.tx_id = TxId(1);
    bytes.extend(meta.to_page(PageId(1)));
    bytes.extend(Freelist::new(options.freelist, &[]).to_page(PageId(2), 1, page_size));
    bytes.extend(to_page(Vec::new(), &[], true, PageId(3), 1, page_size));
    let failed = |what| Error::io(format!("{}: {what}", storage.name()));
    storage
        .write_at(0, &bytes)
        .map_err(failed("write of a new database"))?;
    storage
        .sync_data()
        .map_err(failed("sync of a new database"))?;
    Ok(bytes.len() as u64)
}

pub(crate) fn valid_page_size(size: u32) -> bool {
    size.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&size)
}

/// Finds the page size and the meta that counts (formats 1.1).
pub(crate) fn read_metas(
    storage: &dyn Storage,
    file_len: u64,
    options: &Options,
) -> Result<(Meta, u32), Error> {
    let page_size = find_page_size(storage, file_len, options)?;
    if file_len < 2 * u64::from(page_size) {
        return Err(Error::FileTooSmall { size: file_len });
    }
    let first = read_meta(storage, 0);
    let second = read_meta(storage, u64::from(page_size));
    let meta = choose(first, second)?;
    if meta.page_size != page_size {
        return Err(Error::PageSize(meta.page_size));
    }
    if meta.root.0 < 2 || meta.root >= meta.high_water {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.root, damage));
    }
    if meta.has_freelist() && (meta.freelist.0 < 2 || meta.freelist >= meta.high_water) {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.freelist, damage));
    }
    if meta
        .high_water
        .0
        .checked_mul(u64::from(page_size))
        .is_none()
    {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.page(), damage));
    }
    Ok((meta, page_size))
}

fn read_meta(storage: &dyn Storage, offset: u64) -> Result<Meta, Error> {
    let mut buf = [0; 80];
    let failed = Error::io(format!("{}: read of a meta page", storage.name()));
    let n = storage.read_at(offset, &mut buf).map_err(failed)?;
    Meta::read(&buf[..n])
}

fn find_page_size(storage: &dyn Storage, file_len: u64, options: &Options) -> Result<u32, Error> {
    if file_len < PROBE as u64 {
        // Too short for a first look; a small page's second meta can still be there.
        return second_meta_page_size(storage, file_len)?.ok_or(Error::InvalidDatabase);
    }
    let found = match read_meta(storage, 0) {
        Ok(meta) => Some(meta.page_size),
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(_) => second_meta_page_size(storage, file_len)?,
    };
    let size = match (found, options.page_size) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => u32::try_from(rustix::param::page_size()).unwrap_or(4096),
    };
    if valid_page_size(size) {
        Ok(size)
    } else {
        Err(Error::PageSize(size))
    }
}

/// The page size that a sound second meta gives, wherever it stands.
fn second_meta_page_size(storage: &dyn Storage, file_len: u64) -> Result<Option<u32>, Error> {
    for shift in 0..15 {
        let offset = u64::from(MIN_PAGE_SIZE) << shift;
        if offset + u64::from(MIN_PAGE_SIZE) >= file_len {
            break;
        }
        match read_meta(storage, offset) {
            Ok(meta) if valid_page_size(meta.page_size) => return Ok(Some(meta.page_size)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// What is free at an open: as the file says, or as the trees show; not known to who only reads, nor
/// where the trees are large and are walked in the background.
pub(crate) fn free_pages(
    meta: &Meta,
    pages: Pages<'_>,
    options: &Options,
) -> Result<Freelist, Error> {
    let kind = options.freelist;
    if options.read_only {
        return Ok(Freelist::unknown(kind));
    }
    if meta.has_freelist() {
        let listed = freelist::read_page(pages, meta.freelist)?;
        return Ok(Freelist::new(kind, &listed));
    }
    if options.walk_in_background && meta.size() > WALK_AT_OPEN {
        return Ok(Freelist::unknown(kind));
    }
    let found = walk::free_pages(pages, meta.root, &AtomicBool::new(false))?;
    Ok(Freelist::new(kind, &found.unwrap_or_default()))
}
