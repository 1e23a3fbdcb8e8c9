//! A disk under log, `.snap` files and databases at once, which can be photographed as a power cut
//! would leave it.
//!
//! What a database holds lies in a storage of the engine's; its name is a file among the others, which
//! says the number of the storage: so names are created, renamed, lost and found again like all others.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use keelson_bolt::{Db, MemStorage, Options, Storage, View};
use keelson_store::{OpenOptions, Opened};
use keelson_wal::{Access, File, Files, MemFiles};

use crate::script::Random;

/// How far a member has come with a script, as its client knows.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Steps from the first one on that are in the state for sure.
    pub(crate) acknowledged: AtomicUsize,
    /// Steps that may be in the log.
    pub(crate) proposed: AtomicUsize,
}

/// The storages of databases, by number.
type Databases = BTreeMap<u64, MemStorage>;

/// What a disk may hold if the power goes.
#[derive(Clone)]
pub(crate) struct Image {
    files: MemFiles,
    databases: Databases,
}

/// An image, and what it must hold.
pub(crate) struct Photo {
    pub(crate) image: Image,
    /// Steps that must be there.
    pub(crate) acknowledged: usize,
    /// Steps that may be there.
    pub(crate) proposed: usize,
    /// Which one it is, and after what it was taken.
    pub(crate) label: String,
}

/// Takes photos, one in so many operations.
pub(crate) struct Camera {
    pub(crate) random: Random,
    pub(crate) one_in: u64,
    pub(crate) film: SyncSender<Photo>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) label: String,
}

struct Shutter {
    camera: Option<Camera>,
    operations: u64,
    databases: Databases,
    /// Names with this in them get no more space.
    full: Option<&'static str>,
}

/// The disk. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk {
    files: MemFiles,
    /// Held during each operation: the power goes between two.
    shutter: Arc<Mutex<Shutter>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Image {
    /// What a new machine has.
    pub(crate) fn empty() -> Image {
        let files = MemFiles::new();
        files.create_dir(Path::new("/data")).unwrap();
        files.sync_dir(Path::new("/")).unwrap();
        Image {
            files,
            databases: Databases::new(),
        }
    }
}

impl Disk {
    pub(crate) fn new(image: Image, camera: Option<Camera>) -> Disk {
        let shutter = Shutter {
            camera,
            operations: 0,
            databases: image.databases,
            full: None,
        };
        Disk {
            files: image.files,
            shutter: Arc::new(Mutex::new(shutter)),
        }
    }

    /// From now on there is no space for what has this in its name, or there is again. A write gets
    /// half of what it needs.
    pub(crate) fn fill(&self, names: Option<&'static str>) {
        self.shutter.lock().unwrap().full = names;
    }

    fn is_full(&self, name: &str) -> bool {
        let full = self.shutter.lock().unwrap().full;
        full.is_some_and(|names| name.contains(names))
    }

    /// Carries out an operation that changes the disk.
    fn change<T>(&self, what: &str, operation: impl FnOnce() -> T) -> T {
        let mut shutter = self.shutter.lock().unwrap();
        let result = operation();
        shutter.photograph(&self.files, what);
        result
    }

    /// As [`Disk::change`], for an operation that makes something durable: what was answered too
    /// early shows just before it.
    fn sync<T>(&self, what: &str, operation: impl FnOnce() -> T) -> T {
        let mut shutter = self.shutter.lock().unwrap();
        shutter.photograph(&self.files, &format!("before {what}"));
        let result = operation();
        shutter.photograph(&self.files, what);
        result
    }

    /// Whether there is a file of that name.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.files.exists(Path::new(path)).unwrap()
    }

    /// Opens the database and rebuilds the state from it.
    pub(crate) fn open_database(
        &self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Opened, keelson_store::Error> {
        keelson_store::open_on(Arc::new(self.clone()), path, options)
    }

    /// Makes a new database under a name of its own and renames it when it is whole, as
    /// `keelson_bolt::Db::open` does.
    fn create_database(&self, path: &Path, options: &Options) -> Result<(), keelson_bolt::Error> {
        let fresh = MemStorage::new();
        drop(Db::open_storage(Box::new(fresh.clone()), options.clone())?);
        let number = {
            let databases = &mut self.shutter.lock().unwrap().databases;
            let number = databases.keys().last().map_or(0, |last| last + 1);
            databases.insert(number, fresh);
            number
        };
        let making = path.with_added_extension("tmp.new");
        let file = self.change(&format!("create {}", making.display()), || {
            let file = self.files.create(&making, 0o600).unwrap();
            let number = number.to_be_bytes();
            file.write_at(0, &mut [IoSlice::new(&number)]).unwrap();
            file.sync().unwrap();
            file
        });
        drop(file);
        Files::rename(self, &making, path).unwrap();
        Files::sync_dir(self, path.parent().unwrap()).unwrap();
        Ok(())
    }
}

/// The number of the storage that a name stands for.
fn number_of(files: &MemFiles, path: &Path) -> u64 {
    let file = files.open(path, Access::Read).unwrap();
    let mut number = [0; 8];
    assert_eq!(file.read_at(0, &mut number).unwrap(), 8);
    u64::from_be_bytes(number)
}

/// The databases of a directory, by number.
fn named(files: &MemFiles, directory: &Path) -> Vec<u64> {
    let names = files.list(directory).unwrap_or_default();
    let databases = names.iter().filter(|name| name.starts_with("db"));
    databases
        .map(|name| number_of(files, &directory.join(name)))
        .collect()
}

impl keelson_store::Disk for Disk {
    fn open(&self, path: &Path, options: Options) -> Result<Db, keelson_bolt::Error> {
        if !self.files.exists(path).unwrap() {
            self.create_database(path, &options)?;
        }
        let number = number_of(&self.files, path);
        let engine = Engine {
            storage: self.shutter.lock().unwrap().databases[&number].clone(),
            disk: self.clone(),
            path: path.display().to_string(),
        };
        Db::open_storage(Box::new(engine), options)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Files::exists(self, path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Files::remove(self, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Files::rename(self, from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Files::sync_dir(self, path)
    }
}

impl Shutter {
    fn photograph(&mut self, files: &MemFiles, what: &str) {
        let operation = self.operations;
        self.operations += 1;
        let Some(camera) = &mut self.camera else {
            return;
        };
        if camera.random.below(camera.one_in) != 0 {
            return;
        }
        // What is acknowledged now must be in the image, so this is read first.
        let acknowledged = camera.progress.acknowledged.load(Ordering::SeqCst);
        let random = &mut camera.random;
        let files = files.crash(|bound| random.below(bound));
        let found = named(&files, Path::new("/data/member/snap"));
        let crashed = |number| (number, self.databases[&number].crash(&mut || random.next()));
        let databases = found.into_iter().map(crashed).collect();
        let image = Image { files, databases };
        let photo = Photo {
            image,
            acknowledged,
            proposed: camera.progress.proposed.load(Ordering::SeqCst),
            label: format!("{}, operation {operation}: {what}", camera.label),
        };
        // Nobody looks any more once somebody has found a fault.
        drop(camera.film.send(photo));
    }
}

impl Files for Disk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        if self.is_full(&path.display().to_string()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = self.change(&format!("create {}", path.display()), || {
            self.files.create(path, mode)
        })?;
        Ok(self.wrap(path, file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        Ok(self.wrap(path, self.files.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(&format!("create {}", path.display()), || {
            self.files.create_dir(path)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(&format!("rename {}", from.display()), || {
            self.files.rename(from, to)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(&format!("remove {}", path.display()), || {
            self.files.remove(path)
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(&format!("remove {}", path.display()), || {
            self.files.remove_dir(path)
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.files.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.files.exists(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync(&format!("sync {}", path.display()), || {
            self.files.sync_dir(path)
        })
    }
}

impl Disk {
    fn wrap(&self, path: &Path, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(OpenFile {
            file,
            disk: self.clone(),
            name: path.display().to_string(),
        })
    }
}

#[derive(Debug)]
struct OpenFile {
    file: Box<dyn File>,
    disk: Disk,
    name: String,
}

impl File for OpenFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        if self.disk.is_full(&self.name) {
            let half = slices.len() / 2;
            self.file.write_at(offset, &mut slices[..half])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.change(&format!("write {}", self.name), || {
            self.file.write_at(offset, slices)
        })
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        if self.disk.is_full(&self.name) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.change(&format!("allocate {}", self.name), || {
            self.file.allocate(size)
        })
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.disk.change(&format!("truncate {}", self.name), || {
            self.file.truncate(size)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk
            .sync(&format!("sync {}", self.name), || self.file.sync())
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

/// A database's part of the disk.
struct Engine {
    storage: MemStorage,
    disk: Disk,
    /// The name that it was opened by.
    path: String,
}

impl Engine {
    /// An operation's name.
    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.path)
    }
}

impl Storage for Engine {
    fn name(&self) -> String {
        self.storage.name()
    }

    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.storage.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.disk.is_full(&self.path) {
            self.storage.write_at(offset, &data[..data.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk
            .change(&self.doing("write"), || self.storage.write_at(offset, data))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.disk.is_full(&self.path) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk
            .change(&self.doing("resize"), || self.storage.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk
            .sync(&self.doing("sync"), || self.storage.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.disk
            .sync(&self.doing("sync"), || self.storage.sync_all())
    }

    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        self.storage.view(len)
    }

    fn map_len(&self, len: u64) -> u64 {
        self.storage.map_len(len)
    }
}
