//! A snapshot on its way in.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use tokio::sync::mpsc;

use super::{FILE_BYTES, FILE_SUM, PART_BYTES, PARTS_WAITING, Sum, Transfer, human};
use crate::body::Body;
use crate::codec::{ENVELOPE_BYTES_MAX, within};
use crate::dial::Patience;
use crate::handler::{failure, no_content};
use crate::inbound::SnapshotRefused;
use crate::peers::Context;
use crate::stats::add;

/// The most pieces of a part: each may hold on to a whole buffer of the connection.
const PIECES_MAX: usize = 64;

/// What comes to whoever stores the file.
enum Arrival {
    /// A part, in the pieces that it came in.
    Data(Vec<Bytes>),
    End {
        sum: Option<String>,
    },
    Broken(io::Error),
}

/// The file as it arrives, for a thread that may block.
struct Arriving {
    arrivals: mpsc::Receiver<Arrival>,
    /// What is being read.
    piece: Bytes,
    /// What comes after it.
    pieces: std::vec::IntoIter<Bytes>,
    promised: Option<u64>,
    taken: u64,
    sum: Option<Sum>,
    over: bool,
}

impl Arriving {
    /// The end has come: whether the file is what was promised.
    fn check_end(&mut self, promised: Option<&str>) -> io::Result<usize> {
        let bad = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if let Some(promised) = self.promised
            && promised != self.taken
        {
            return bad(format!("{} bytes came of {promised}", self.taken));
        }
        if let Some(sum) = self.sum.take() {
            let found = sum.finish();
            match promised {
                Some(promised) if promised == found => {}
                Some(promised) => {
                    return bad(format!(
                        "the checksum is {found}, the sender's is {promised}"
                    ));
                }
                None => return bad("the checksum that was promised did not come".to_owned()),
            }
        }
        Ok(0)
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if let Some(piece) = self.pieces.next() {
                self.piece = piece;
                continue;
            }
            if self.over {
                return Ok(0);
            }
            match self.arrivals.blocking_recv() {
                Some(Arrival::Data(pieces)) => self.pieces = pieces.into_iter(),
                Some(Arrival::End { sum }) => {
                    self.check_end(sum.as_deref())?;
                    self.over = true;
                }
                Some(Arrival::Broken(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        if let Some(sum) = &mut self.sum {
            sum.update(&buffer[..count]);
        }
        self.taken += count as u64;
        Ok(count)
    }
}

/// Reads what goes before the file; gives the message, its length, and what was read of the file.
async fn envelope(body: &mut Incoming) -> Result<(Message, usize, BytesMut), String> {
    let mut read = BytesMut::new();
    let mut missing = 8;
    let mut length = None;
    loop {
        if read.len() >= missing {
            match length {
                None => {
                    let bytes = within(read.get_u64(), ENVELOPE_BYTES_MAX);
                    missing = bytes.map_err(|error| error.to_string())?;
                    length = Some(missing);
                    continue;
                }
                Some(length) => {
                    let bytes = read.split_to(length).freeze();
                    let message = Message::decode(bytes).map_err(|error| error.to_string())?;
                    return Ok((message, length, read));
                }
            }
        }
        match body.frame().await {
            None if read.is_empty() => return Err("EOF".to_owned()),
            None => return Err("unexpected EOF".to_owned()),
            Some(Err(error)) => return Err(crate::dial::root_cause(&error)),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
        }
    }
}

/// The same, for nothing but a snapshot; with the text that is answered otherwise.
async fn opened(
    context: &Context,
    body: &mut Incoming,
) -> Result<(Message, usize, BytesMut), String> {
    let local = context.config.member;
    let (message, length, rest) = envelope(body).await.map_err(|error| {
        add(&context.stats.bad_requests, 1);
        tracing::warn!("local-member-id" = %local, error, "failed to decode Raft message");
        format!("failed to decode raft message ({error})")
    })?;
    if message.kind != MessageKind::Snap {
        add(&context.stats.bad_requests, 1);
        tracing::warn!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = %message.from,
            "message-type" = ?message.kind,
            "unexpected Raft message type"
        );
        return Err("wrong raft message type".to_owned());
    }
    Ok((message, length, rest))
}

/// Takes a snapshot from a peer whose headers were found good.
pub(crate) async fn receive(
    context: &Arc<Context>,
    request: Request<Incoming>,
    patience: &Patience,
) -> Response<Body> {
    let local = context.config.member;
    let (head, mut body) = request.into_parts();
    let (message, length, rest) = match opened(context, &mut body).await {
        Ok(read) => read,
        Err(text) => return failure(StatusCode::BAD_REQUEST, &text),
    };
    let from = message.from;
    let index = message.snapshot.as_ref().map_or(0, |snap| snap.index.0);
    let stats = context.stats.of(from);
    add(&stats.received_bytes, length as u64);
    let mut transfer = Transfer::begin(&stats, |stats| &stats.snapshots_received);
    tracing::info!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = %from,
        "incoming-snapshot-index" = index,
        "incoming-snapshot-message-size-bytes" = length,
        "incoming-snapshot-message-size" = human(length as u64),
        "receiving database snapshot"
    );
    let (sender, arrivals) = mpsc::channel(PARTS_WAITING);
    let mut arriving = Arriving {
        arrivals,
        piece: rest.freeze(),
        pieces: Vec::new().into_iter(),
        promised: number(&head.headers),
        taken: 0,
        sum: promises_checksum(&head.headers).then(Sum::default),
        over: false,
    };
    let inbound = Arc::clone(&context.inbound);
    let store = tokio::task::spawn_blocking(move || {
        let result = inbound.receive_snapshot(message, &mut arriving);
        (result, arriving.taken)
    });
    forward(&mut body, sender).await;
    let _held = patience.hold();
    let (result, taken) = match store.await {
        Ok(done) => done,
        Err(error) => (Err(SnapshotRefused::Save(error.to_string())), 0),
    };
    if let Err(refused) = result {
        return not_taken(local, from, index, &refused);
    }
    transfer.succeeded = true;
    add(&stats.received_bytes, taken);
    tracing::info!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = %from,
        "incoming-snapshot-index" = index,
        "incoming-snapshot-size-bytes" = taken,
        "incoming-snapshot-size" = human(taken),
        "download-took" = ?transfer.start.elapsed(),
        "received and saved database snapshot"
    );
    no_content()
}

fn not_taken(
    local: MemberId,
    from: MemberId,
    index: u64,
    refused: &SnapshotRefused,
) -> Response<Body> {
    let (line, text) = match refused {
        SnapshotRefused::Save(_) => (
            "failed to save incoming database snapshot",
            format!("failed to save KV snapshot ({refused})"),
        ),
        SnapshotRefused::Message(_) => (
            "failed to process Raft message",
            format!("failed to process raft message ({refused})"),
        ),
    };
    tracing::warn!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = %from,
        "incoming-snapshot-index" = index,
        error = %refused,
        "{line}"
    );
    failure(StatusCode::INTERNAL_SERVER_ERROR, &text)
}

fn number(headers: &HeaderMap) -> Option<u64> {
    headers.get(FILE_BYTES)?.to_str().ok()?.parse().ok()
}

fn promises_checksum(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case(FILE_SUM.as_str()))
}

/// Gives what arrives to the thread that stores it, no faster than it is taken.
async fn forward(body: &mut Incoming, arrivals: mpsc::Sender<Arrival>) {
    let mut sum = None;
    let (mut part, mut bytes) = (Vec::new(), 0);
    let end = loop {
        match body.frame().await {
            None => break Arrival::End { sum },
            Some(Err(error)) => {
                let text = crate::dial::root_cause(&error);
                break Arrival::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    bytes += data.len();
                    part.push(data);
                }
                Err(frame) => {
                    let trailer = frame
                        .trailers_ref()
                        .and_then(|trailers| trailers.get(FILE_SUM));
                    sum = trailer
                        .and_then(|value| value.to_str().ok())
                        .map(str::to_owned);
                }
            },
        }
        if bytes >= PART_BYTES || part.len() >= PIECES_MAX {
            let full = Arrival::Data(std::mem::take(&mut part));
            bytes = 0;
            // Whoever stores it may have given up.
            if arrivals.send(full).await.is_err() {
                return;
            }
        }
    };
    if arrivals.send(Arrival::Data(part)).await.is_ok() {
        // As above.
        let _ = arrivals.send(end).await;
    }
}
