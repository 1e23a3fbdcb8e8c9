//! Reading records out of segments, bounded, checksum by checksum.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::entry::{Entry, HardState};
use keelson_proto::ids::LogIndex;

use crate::Error;
use crate::files::{Access, File, Files};
use crate::frame::{LENGTH_BYTES, Raw, chain, is_torn, parse_length};
use crate::record::{Kind, Metadata, Record, SnapshotMark};
use crate::segment::{self, Segment, SegmentName};

/// No record is larger: protobuf messages end below 2 GiB.
const RECORD_BYTES_MAX: u64 = (1 << 31) - 1;
/// How much is asked of the file at once.
const READ_BYTES: usize = 256 << 10;

/// A record and where it lies; its checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The segment that it is in.
    pub segment: SegmentName,
    /// Where the frame begins.
    pub offset: u64,
    /// The record's length, without length word and padding.
    pub length: u64,
    /// The bytes after the record.
    pub padding: u8,
    /// The record's kind, as its number; [`Kind::of`] knows those that exist.
    pub kind: i64,
    /// The running checksum.
    pub crc: u32,
    /// The record's content.
    pub data: Bytes,
}

impl Frame {
    /// Decodes the content.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedKind`] and [`Error::Undecodable`].
    pub fn record(&self) -> Result<Record, Error> {
        let data = self.data.clone();
        let record = match Kind::of(self.kind) {
            Some(Kind::Metadata) => Metadata::decode(data).map(Record::Metadata),
            Some(Kind::Entry) => Entry::decode(data).map(Record::Entry),
            Some(Kind::State) => HardState::decode(&data).map(Record::State),
            Some(Kind::Crc) => Ok(Record::Crc(self.crc)),
            Some(Kind::Snapshot) => SnapshotMark::decode(data)
                .map(|(mark, conf_state)| Record::Snapshot(mark, conf_state)),
            None => {
                return Err(Error::UnexpectedKind {
                    file: self.segment.to_string(),
                    offset: self.offset,
                    kind: self.kind,
                });
            }
        };
        record.map_err(|source| Error::Undecodable {
            file: self.segment.to_string(),
            offset: self.offset,
            source,
        })
    }
}

/// A segment that is read from front to back.
#[derive(Debug)]
struct Source {
    name: SegmentName,
    path: PathBuf,
    file: Arc<dyn File>,
    size: u64,
    /// Where the next frame begins.
    offset: u64,
    buffer: Vec<u8>,
    /// Where the buffer's first byte lies in the file.
    buffered_at: u64,
}

impl Source {
    fn new(segment: Segment, dir: &Path) -> Result<Source, Error> {
        let path = dir.join(segment.name.to_string());
        let size = segment.file.size().map_err(Error::failed("stat", &path))?;
        Ok(Source {
            name: segment.name,
            path,
            file: segment.file,
            size,
            offset: 0,
            buffer: Vec::new(),
            buffered_at: 0,
        })
    }

    /// Copies bytes out of the file; false when it ends before them.
    fn read(&mut self, mut at: u64, mut out: &mut [u8]) -> Result<bool, Error> {
        while !out.is_empty() {
            let skip = at.checked_sub(self.buffered_at);
            let have = skip.and_then(|skip| self.buffer.get(usize::try_from(skip).ok()?..));
            match have {
                Some(have) if !have.is_empty() => {
                    let count = have.len().min(out.len());
                    let (now, rest) = out.split_at_mut(count);
                    now.copy_from_slice(&have[..count]);
                    out = rest;
                    at += count as u64;
                }
                _ => {
                    self.buffer.resize(READ_BYTES, 0);
                    let count = self.file.read_at(at, &mut self.buffer);
                    let count = count.map_err(Error::failed("read", &self.path))?;
                    self.buffer.truncate(count);
                    self.buffered_at = at;
                    if count == 0 {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Reads a payload. Memory grows with what is really there, whatever the length claims.
    fn payload(&mut self, at: u64, length: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut payload = Vec::new();
        let mut done = 0;
        while done < length {
            let step = (length - done).min(READ_BYTES.max(payload.len()) as u64);
            payload.resize((done + step) as usize, 0);
            if !self.read(at + done, &mut payload[done as usize..])? {
                return Ok(None);
            }
            done += step;
        }
        Ok(Some(payload))
    }

    fn file_name(&self) -> String {
        self.name.to_string()
    }

    fn torn_frame(&self) -> Error {
        Error::TornFrame {
            file: self.file_name(),
            offset: self.offset,
        }
    }

    /// The next length word; `None` where the segment ends or was not written yet.
    fn length_word(&mut self) -> Result<Option<u64>, Error> {
        if self.offset == self.size {
            return Ok(None);
        }
        let mut word = [0; LENGTH_BYTES as usize];
        if self.size - self.offset < LENGTH_BYTES || !self.read(self.offset, &mut word)? {
            return Err(self.torn_frame());
        }
        Ok(Some(u64::from_le_bytes(word)).filter(|word| *word != 0))
    }

    /// The rules of etcd 3.7 on how long a record may be, and a limit that none reaches.
    fn check_length(&self, length: u64, padding: u8) -> Result<(), Error> {
        let left = self.size - self.offset;
        if length + u64::from(padding) > left {
            return Err(Error::TornLength {
                file: self.file_name(),
                offset: self.offset,
                length,
                padding,
                size: self.size,
            });
        }
        if length > RECORD_BYTES_MAX {
            return Err(Error::TooLarge {
                file: self.file_name(),
                offset: self.offset,
                length,
            });
        }
        Ok(())
    }
}

/// Walks the records of a log in order, checks each against the checksum chain, and stops at the
/// first error or at the end.
#[derive(Debug)]
pub struct Reader {
    sources: VecDeque<Source>,
    crc: u32,
    /// Where the last segment's last good record ended.
    end: u64,
}

impl Reader {
    /// Reads, without locks, from the segment that covers an index on.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NoSegment`], [`Error::SequenceGap`], [`Error::Failed`].
    pub fn open(files: &dyn Files, dir: &Path, index: LogIndex) -> Result<Reader, Error> {
        Reader::open_named(files, dir, segment::select(files, dir, index)?)
    }

    /// Reads, without locks, all segments that there are.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] and [`Error::Failed`].
    pub fn open_all(files: &dyn Files, dir: &Path) -> Result<Reader, Error> {
        Reader::open_named(files, dir, segment::list(files, dir)?)
    }

    fn open_named(files: &dyn Files, dir: &Path, names: Vec<SegmentName>) -> Result<Reader, Error> {
        let mut segments = Vec::new();
        for name in names {
            let path = dir.join(name.to_string());
            let file = files
                .open(&path, Access::Read)
                .map_err(Error::failed("open", &path))?
                .into();
            segments.push(Segment { name, file });
        }
        Reader::over(segments, dir)
    }

    /// Reads segments that are open already.
    pub(crate) fn over(segments: Vec<Segment>, dir: &Path) -> Result<Reader, Error> {
        let sources = segments
            .into_iter()
            .map(|segment| Source::new(segment, dir))
            .collect::<Result<_, Error>>()?;
        Ok(Reader {
            sources,
            crc: 0,
            end: 0,
        })
    }

    /// The running checksum after the last record.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Where the last record ended, in its segment; 0 in a segment without any.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.sources
            .front()
            .map_or(self.end, |source| source.offset)
    }

    /// The next record; `None` at the end. After an error there is nothing more to be had, but
    /// [`Reader::offset`] still says where the last good record ended.
    ///
    /// # Errors
    ///
    /// Torn records ([`Error::is_torn`]), [`Error::CrcMismatch`], [`Error::ChainBroken`],
    /// [`Error::Unparsable`], [`Error::TooLarge`], [`Error::Failed`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let result = self.advance();
        if result.is_err() {
            self.end = self.offset();
            self.sources.clear();
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Frame>, Error> {
        let (word, is_last) = loop {
            let is_last = self.sources.len() == 1;
            let Some(source) = self.sources.front_mut() else {
                return Ok(None);
            };
            match source.length_word()? {
                Some(word) => break (word, is_last),
                None => {
                    self.end = source.offset;
                    self.sources.pop_front();
                }
            }
        };
        let source = self
            .sources
            .front_mut()
            .expect("the word was read from this source");
        let (length, padding) = parse_length(word);
        source.check_length(length, padding)?;
        let at = source.offset + LENGTH_BYTES;
        let Some(payload) = source.payload(at, length + u64::from(padding))? else {
            return Err(source.torn_frame());
        };
        let payload = Bytes::from(payload);
        let Ok(raw) = Raw::decode(payload.slice(..length as usize)) else {
            return Err(if is_last && is_torn(&payload, at) {
                source.torn_frame()
            } else {
                Error::Unparsable {
                    file: source.file_name(),
                    offset: source.offset,
                }
            });
        };
        let is_seed = raw.kind == Kind::Crc.number();
        let computed = if is_seed {
            self.crc
        } else {
            chain(self.crc, &raw.data)
        };
        let (file, offset, expected) = (source.file_name(), source.offset, raw.crc);
        // A reader that has seen nothing takes any seed: older segments may be gone.
        if is_seed && computed != 0 && computed != expected {
            return Err(Error::ChainBroken {
                file,
                offset,
                expected,
                computed,
            });
        }
        if !is_seed && computed != expected {
            return Err(if is_last && is_torn(&payload, at) {
                Error::TornSector { file, offset }
            } else {
                Error::CrcMismatch {
                    file,
                    offset,
                    expected,
                    computed,
                }
            });
        }
        self.crc = expected;
        source.offset = at + length + u64::from(padding);
        Ok(Some(Frame {
            segment: source.name,
            offset,
            length,
            padding,
            kind: raw.kind,
            crc: expected,
            data: raw.data,
        }))
    }
}
