//! Data directories of real servers, opened by our store: no consensus, no server.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_proto::rpc::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use keelson_store::{
    Answer, Committer, Durable, Effect, JobProgress, OpenOptions, Quota, Slice, Store,
};
use keelson_wal::{RealFiles, Replay, SnapshotMark};
use serde_json::Value;
use tempfile::TempDir;

/// Runs of zeros of this length are left out when a file is unpacked: segments are mostly zeros.
const HOLE_BYTES: usize = 64 << 10;

/// Reads a JSON file, or its compressed form.
///
/// # Errors
///
/// There is neither, or it is not JSON.
pub fn json(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    if path.exists() {
        File::open(path)?.read_to_end(&mut text)?;
    } else {
        let packed = path.with_added_extension("gz");
        let file = File::open(&packed).with_context(|| packed.display().to_string())?;
        GzDecoder::new(file).read_to_end(&mut text)?;
    }
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// A copy of a data directory that can be changed.
#[derive(Debug)]
pub struct Directory {
    root: TempDir,
}

impl Directory {
    /// Unpacks `member.tar.gz`.
    ///
    /// # Errors
    ///
    /// A missing or damaged archive.
    pub fn unpack(archive: &Path) -> Result<Directory> {
        let file = File::open(archive).with_context(|| archive.display().to_string())?;
        let root = tempfile::tempdir()?;
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = root.path().join(entry.path()?);
            if entry.header().entry_type().is_dir() {
                std::fs::create_dir_all(&path)?;
            } else {
                let parent = path.parent().context("files are in directories")?;
                std::fs::create_dir_all(parent)?;
                copy_sparse(&mut entry, &path)?;
            }
        }
        Ok(Directory { root })
    }

    /// Where it is: the data directory of a server.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.path().join("member/snap/db")
    }

    /// What the log holds from the last snapshot on that it has a record of.
    ///
    /// # Errors
    ///
    /// A damaged log.
    pub fn log(&self) -> Result<Replay> {
        let dir = self.root.path().join("member/wal");
        let marks = keelson_wal::valid_snapshots(&RealFiles, &dir)?;
        let at = marks.last().copied().unwrap_or_default();
        let replay = keelson_wal::read(&RealFiles, &dir, at)?;
        replay.require_snapshot()?;
        Ok(replay)
    }

    /// What the log holds from the first entry on.
    ///
    /// # Errors
    ///
    /// A damaged log, or one whose first segments are gone.
    pub fn whole_log(&self) -> Result<Replay> {
        let dir = self.root.path().join("member/wal");
        Ok(keelson_wal::read(
            &RealFiles,
            &dir,
            SnapshotMark::default(),
        )?)
    }
}

fn copy_sparse(from: &mut impl Read, path: &Path) -> Result<()> {
    let mut to = File::create(path)?;
    let mut chunk = Vec::with_capacity(HOLE_BYTES);
    let mut len = 0;
    loop {
        chunk.clear();
        let count = from.take(HOLE_BYTES as u64).read_to_end(&mut chunk)? as u64;
        if count == 0 {
            break;
        }
        if chunk.iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(len))?;
            to.write_all(&chunk)?;
        }
        len += count;
    }
    to.set_len(len)?;
    Ok(())
}

/// Unpacks a file of one part; `cut` bytes at its end are left out.
///
/// # Errors
///
/// A missing or damaged file.
pub fn unpack_file(packed: &Path, to: &Path, cut: usize) -> Result<()> {
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(packed).with_context(|| packed.display().to_string())?)
        .read_to_end(&mut bytes)?;
    let len = bytes.len().checked_sub(cut).context("a short file")?;
    std::fs::write(to, &bytes[..len])?;
    Ok(())
}

/// A store with both of its sides in one thread.
pub struct Instance {
    /// The state.
    pub store: Store,
    /// The file.
    pub committer: Committer,
    path: PathBuf,
}

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    }
}

impl Instance {
    /// Opens a database, or makes a new one.
    ///
    /// # Errors
    ///
    /// What the store says of the file, and warnings that no recorded file gives reason to.
    pub fn open(path: &Path) -> Result<Instance> {
        let opened = keelson_store::open(path, &options())?;
        ensure!(
            opened.missing_leases == 0,
            "{} keys hang on leases that are not there",
            opened.missing_leases
        );
        ensure!(opened.stray_tombstones == 0, "stray tombstones");
        Ok(Instance {
            store: opened.store,
            committer: opened.committer,
            path: path.to_owned(),
        })
    }

    /// Applies the entries that the file does not hold yet, and carries compactions to their end
    /// where the server began them. Returns how many entries were applied.
    ///
    /// # Errors
    ///
    /// A failing store, or an entry that it stops at.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<usize> {
        let applied = self.store.applied().0;
        let mut count = 0;
        for entry in entries.iter().filter(|entry| entry.index > applied) {
            let done = self.store.apply(entry, Answer::Unwanted)?;
            for effect in &done.effects {
                match effect {
                    Effect::Stop(reason) => bail!("{reason}"),
                    Effect::Commit => self.finish_compactions()?,
                    _ => {}
                }
            }
            count += 1;
        }
        Ok(count)
    }

    /// Applies what a lone member says of itself when it has started.
    ///
    /// # Errors
    ///
    /// A failing store, or answers without a member.
    pub fn publish(&mut self, answers: &Value) -> Result<()> {
        let member = &answers["members"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let urls = member["clientURLs"].as_array();
        let attributes = Attributes {
            name: text(&member["name"]),
            client_urls: urls.into_iter().flatten().map(text).collect(),
        };
        let set = ClusterMemberAttrSetRequest {
            member_id: member["id"].as_u64().context("a member has an id")?,
            member_attributes: Some(attributes),
        };
        let request = InternalRaftRequest {
            cluster_member_attr_set: Some(set),
            ..InternalRaftRequest::default()
        };
        let (index, term) = self.store.applied();
        let entry = Entry {
            kind: EntryKind::Normal,
            term: term.max(Term(1)),
            index: index.next(),
            data: request::encode(&request),
        };
        self.apply(&[entry]).map(drop)
    }

    /// Writes everything that was applied.
    ///
    /// # Errors
    ///
    /// A failing file.
    pub fn commit(&mut self) -> Result<Durable> {
        let sealed = self.store.seal();
        Ok(self.committer.commit(&sealed)?)
    }

    /// Carries every compaction to its end.
    ///
    /// # Errors
    ///
    /// A failing file, or a pin that nobody holds.
    pub fn finish_compactions(&mut self) -> Result<()> {
        if !self.store.is_compacting() {
            return Ok(());
        }
        self.commit()?;
        loop {
            match self.store.compact_slice() {
                Slice::Idle => return Ok(()),
                Slice::More => {}
                Slice::Held => bail!("a pin holds the compaction back"),
                Slice::Pruned(job) => {
                    self.committer.begin_compaction(job);
                    while let JobProgress::More = self.committer.continue_compaction()? {}
                    self.store.compaction_finished();
                }
            }
        }
    }

    /// Commits everything and starts again from the file.
    ///
    /// # Errors
    ///
    /// A failing file.
    pub fn restart(mut self) -> Result<Instance> {
        self.commit()?;
        let path = self.path.clone();
        let before = self.store.applied();
        drop(self);
        let instance = Instance::open(&path)?;
        ensure!(
            instance.store.applied() == before,
            "the file is at another entry than was committed"
        );
        Ok(instance)
    }
}

/// The entries of a log that count as committed. All of them do if the only voter wrote it: it
/// needs nobody else to agree.
#[must_use]
pub fn committed(replay: &Replay, store: &Store) -> Vec<Entry> {
    let known = replay.hard_state.map_or(LogIndex(0), |state| state.commit);
    let lone = store.conf_state().voters.len() <= 1;
    let entries = replay.entries.iter();
    entries
        .filter(|entry| lone || entry.index <= known.max(store.applied().0))
        .cloned()
        .collect()
}
