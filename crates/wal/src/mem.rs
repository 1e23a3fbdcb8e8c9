//! A disk in memory that remembers what is durable and what a crash may take.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::files::{Access, File, Files};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

const ROOT: usize = 0;

/// Something that changed the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A file was created or emptied.
    Create(PathBuf),
    /// Bytes were written by one call.
    Write {
        /// The file's name when it was opened.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A file was given another size.
    Resize {
        /// The file's name when it was opened.
        path: PathBuf,
        /// Its size now.
        size: u64,
    },
    /// A file's content was made durable.
    Sync(PathBuf),
    /// A name was given to a directory.
    CreateDir(PathBuf),
    /// A name was changed.
    Rename(PathBuf, PathBuf),
    /// A name was removed.
    Remove(PathBuf),
    /// The names of a directory were made durable.
    SyncDir(PathBuf),
}

/// Files in memory, with a journal and a model of what a crash leaves.
///
/// Clones share the same disk. Nothing is durable but what was synced: [`MemFiles::crash`] makes
/// a disk on which everything else was kept, lost or torn, as a source of random numbers decides.
#[derive(Clone, Debug, Default)]
pub struct MemFiles {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct World {
    nodes: Vec<Node>,
    events: Vec<Event>,
    changes: u64,
    fail_from: Option<u64>,
    handles: u64,
}

#[derive(Clone, Debug)]
enum Node {
    Dir(Dir),
    File(Content),
}

#[derive(Clone, Debug, Default)]
struct Dir {
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<NameChange>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link { name: String, node: usize },
    Unlink { name: String },
    Rename { from: String, to: String },
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    lock: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Size(usize),
}

impl Default for World {
    fn default() -> World {
        World {
            nodes: vec![Node::Dir(Dir::default())],
            events: Vec::new(),
            changes: 0,
            fail_from: None,
            handles: 0,
        }
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link { name, node } => {
            names.insert(name.clone(), *node);
        }
        NameChange::Unlink { name } => {
            names.remove(name);
        }
        // The old name is gone already when it was replaced before.
        NameChange::Rename { from, to } => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

fn write_into(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

fn apply_change(target: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, bytes } => write_into(target, *offset, bytes),
        Change::Size(size) => target.resize(*size, 0),
    }
}

fn number(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl Content {
    fn change(&mut self, change: Change) {
        apply_change(&mut self.bytes, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply_change(&mut self.durable, &change);
        }
    }

    /// Each sector of each unsynced write is there or not.
    fn crash(&self, random: &mut dyn FnMut(u64) -> u64) -> Content {
        let mut bytes = self.durable.clone();
        // One time in three everything is lost, one in three all is kept, else it is mixed.
        let fate = random(3);
        for change in &self.pending {
            match change {
                Change::Size(_) => {
                    if fate == 1 || (fate == 2 && random(2) == 0) {
                        apply_change(&mut bytes, change);
                    }
                }
                Change::Write {
                    offset,
                    bytes: written,
                } => {
                    let mut done = 0;
                    while done < written.len() {
                        let at = offset + done;
                        let piece = (SECTOR_BYTES - at % SECTOR_BYTES).min(written.len() - done);
                        if fate == 1 || (fate == 2 && random(2) == 0) {
                            write_into(&mut bytes, at, &written[done..done + piece]);
                        }
                        done += piece;
                    }
                }
            }
        }
        Content {
            durable: bytes.clone(),
            bytes,
            pending: Vec::new(),
            lock: None,
        }
    }
}

impl Dir {
    fn change(&mut self, change: NameChange) {
        apply_name(&mut self.names, &change);
        self.pending.push(change);
    }

    /// Names change in order, as a journalling file system keeps them: some of the last are lost.
    fn crash(&self, random: &mut dyn FnMut(u64) -> u64) -> Dir {
        let mut names = self.durable.clone();
        let kept = random(self.pending.len() as u64 + 1);
        for change in self.pending.iter().take(kept as usize) {
            apply_name(&mut names, change);
        }
        Dir {
            durable: names.clone(),
            names,
            pending: Vec::new(),
        }
    }
}

impl World {
    /// Notes a change. `Ok(true)` means go on, `Ok(false)` that this change reaches the disk's
    /// buffers but is answered with an error.
    fn note(&mut self, event: Event) -> io::Result<bool> {
        let this = self.changes;
        self.changes += 1;
        match self.fail_from {
            Some(from) if this > from => Err(failure()),
            Some(from) if this == from => Ok(false),
            _ => {
                self.events.push(event);
                Ok(true)
            }
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = ROOT;
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let name = name.to_string_lossy();
                    at = *self
                        .dir(at)?
                        .names
                        .get(name.as_ref())
                        .ok_or(io::ErrorKind::NotFound)?;
                }
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            }
        }
        Ok(at)
    }

    /// The directory that a path's last name is in, and that name.
    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        Ok((parent, name.to_string_lossy().into_owned()))
    }

    fn dir(&self, node: usize) -> io::Result<&Dir> {
        match &self.nodes[node] {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn dir_mut(&mut self, node: usize) -> io::Result<&mut Dir> {
        match &mut self.nodes[node] {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn content(&mut self, node: usize) -> io::Result<&mut Content> {
        match &mut self.nodes[node] {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn link(&mut self, place: (usize, String), node: Node) -> io::Result<usize> {
        let (parent, name) = place;
        let id = self.nodes.len();
        self.nodes.push(node);
        self.dir_mut(parent)?
            .change(NameChange::Link { name, node: id });
        Ok(id)
    }
}

fn failure() -> io::Error {
    io::Error::other("the disk has failed")
}

fn answer(good: bool) -> io::Result<()> {
    if good { Ok(()) } else { Err(failure()) }
}

impl MemFiles {
    /// An empty disk.
    #[must_use]
    pub fn new() -> MemFiles {
        MemFiles::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A panic elsewhere leaves the maps whole: no change is made in several steps.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changed the disk so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.world().events.clone()
    }

    /// How many changes were attempted so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.world().changes
    }

    /// From the change with this number on, every change fails. The first one to fail reaches the
    /// disk's buffers all the same: a crash may keep it.
    pub fn fail_from(&self, change: u64) {
        self.world().fail_from = Some(change);
    }

    /// A disk as it may be found after a crash at this moment: what was synced, and any part of
    /// the rest, writes torn at sectors. `random(n)` gives a number below `n`.
    #[must_use]
    pub fn crash(&self, mut random: impl FnMut(u64) -> u64) -> MemFiles {
        let world = self.world();
        let nodes = world
            .nodes
            .iter()
            .map(|node| match node {
                Node::Dir(dir) => Node::Dir(dir.crash(&mut random)),
                Node::File(content) => Node::File(content.crash(&mut random)),
            })
            .collect();
        MemFiles {
            world: Arc::new(Mutex::new(World {
                nodes,
                ..World::default()
            })),
        }
    }

    /// Puts a file there, durable at once, with the directories that lead to it.
    ///
    /// # Errors
    ///
    /// A directory is in the way, or a file where a directory must be.
    pub fn insert(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        let mut world = self.world();
        let mut at = ROOT;
        let parent = path.parent().unwrap_or(Path::new(""));
        for component in parent.components() {
            if let Component::Normal(name) = component {
                let name = name.to_string_lossy().into_owned();
                at = match world.dir(at)?.names.get(&name) {
                    Some(node) => *node,
                    None => world.link((at, name), Node::Dir(Dir::default()))?,
                };
            }
        }
        let (_, name) = world.place(path)?;
        if let Some(node) = world.dir(at)?.names.get(&name).copied() {
            world.content(node)?;
        }
        let content = Content {
            durable: bytes.clone(),
            bytes,
            ..Content::default()
        };
        world.link((at, name), Node::File(content))?;
        for node in &mut world.nodes {
            if let Node::Dir(dir) = node {
                dir.durable.clone_from(&dir.names);
                dir.pending.clear();
            }
        }
        Ok(())
    }

    /// A file's content.
    ///
    /// # Errors
    ///
    /// There is no such file.
    pub fn bytes(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut world = self.world();
        let node = world.find(path)?;
        Ok(world.content(node)?.bytes.clone())
    }

    fn handle(&self, world: &mut World, path: &Path, node: usize, access: Access) -> Box<dyn File> {
        world.handles += 1;
        Box::new(MemFile {
            files: self.clone(),
            path: path.to_owned(),
            node,
            access,
            handle: world.handles,
        })
    }
}

impl Files for MemFiles {
    fn create(&self, path: &Path, _mode: u32) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        let place = world.place(path)?;
        let found = world.dir(place.0)?.names.get(&place.1).copied();
        if let Some(node) = found {
            world.content(node)?;
        }
        let good = world.note(Event::Create(path.to_owned()))?;
        let node = match found {
            Some(node) => {
                world.content(node)?.change(Change::Size(0));
                node
            }
            None => world.link(place, Node::File(Content::default()))?,
        };
        answer(good)?;
        Ok(self.handle(&mut world, path, node, Access::Write))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        let node = world.find(path)?;
        world.content(node)?;
        Ok(self.handle(&mut world, path, node, access))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let place = world.place(path)?;
        if world.dir(place.0)?.names.contains_key(&place.1) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let good = world.note(Event::CreateDir(path.to_owned()))?;
        world.link(place, Node::Dir(Dir::default()))?;
        answer(good)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.find(from)?;
        let (parent, from_name) = world.place(from)?;
        let (other, to_name) = world.place(to)?;
        if parent != other {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if let Some(node) = world.dir(parent)?.names.get(&to_name).copied() {
            world.content(node)?;
        }
        let good = world.note(Event::Rename(from.to_owned(), to.to_owned()))?;
        world.dir_mut(parent)?.change(NameChange::Rename {
            from: from_name,
            to: to_name,
        });
        answer(good)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(path)?;
        world.content(node)?;
        let (parent, name) = world.place(path)?;
        let good = world.note(Event::Remove(path.to_owned()))?;
        world.dir_mut(parent)?.change(NameChange::Unlink { name });
        answer(good)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(path)?;
        world.dir(node)?;
        let (parent, name) = world.place(path)?;
        let good = world.note(Event::Remove(path.to_owned()))?;
        world.dir_mut(parent)?.change(NameChange::Unlink { name });
        answer(good)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        let node = world.find(path)?;
        Ok(world.dir(node)?.names.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.world().find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(path)?;
        world.dir(node)?;
        answer(world.note(Event::SyncDir(path.to_owned()))?)?;
        let dir = world.dir_mut(node)?;
        dir.durable.clone_from(&dir.names);
        dir.pending.clear();
        Ok(())
    }
}

#[derive(Debug)]
struct MemFile {
    files: MemFiles,
    path: PathBuf,
    node: usize,
    access: Access,
    handle: u64,
}

impl MemFile {
    fn writable(&self) -> io::Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn resize(&self, world: &mut World, size: u64) -> io::Result<()> {
        let good = world.note(Event::Resize {
            path: self.path.clone(),
            size,
        })?;
        let size = number(size)?;
        world.content(self.node)?.change(Change::Size(size));
        answer(good)
    }
}

impl File for MemFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.files.world().content(self.node)?.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut world = self.files.world();
        let bytes = &world.content(self.node)?.bytes;
        let rest = bytes.get(number(offset)?..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.writable()?;
        let bytes = slices.iter().flat_map(|slice| slice.iter()).copied();
        let bytes: Vec<u8> = bytes.collect();
        let mut world = self.files.world();
        let good = world.note(Event::Write {
            path: self.path.clone(),
            offset,
            length: bytes.len() as u64,
        })?;
        let offset = number(offset)?;
        world
            .content(self.node)?
            .change(Change::Write { offset, bytes });
        answer(good)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.writable()?;
        let mut world = self.files.world();
        if world.content(self.node)?.bytes.len() as u64 >= size {
            return Ok(());
        }
        self.resize(&mut world, size)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.writable()?;
        self.resize(&mut self.files.world(), size)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.files.world();
        answer(world.note(Event::Sync(self.path.clone()))?)?;
        world.content(self.node)?.sync();
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut world = self.files.world();
        let lock = &mut world.content(self.node)?.lock;
        match lock {
            Some(holder) => Ok(*holder == self.handle),
            None => {
                *lock = Some(self.handle);
                Ok(true)
            }
        }
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut world = self.files.world();
        if let Node::File(content) = &mut world.nodes[self.node]
            && content.lock == Some(self.handle)
        {
            content.lock = None;
        }
    }
}
