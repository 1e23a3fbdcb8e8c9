//! Reads a recording: the flags of the server, then the steps with the lines they stand on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A recording.
#[derive(Debug)]
pub struct Script {
    /// The file, for reports.
    pub path: PathBuf,
    /// What it is about: the name of the script that made it.
    pub name: String,
    /// The recorded command line of the server, with the program's name first.
    pub server_args: Vec<String>,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// One line.
#[derive(Debug)]
pub struct Step {
    /// The number of the line, from 1.
    pub line: usize,
    /// What it says.
    pub action: Action,
}

/// What a line says.
#[derive(Debug)]
pub enum Action {
    /// One request, one answer.
    Unary(Unary),
    /// Something on a stream that was or is opened.
    Stream(StreamEvent),
    /// A plain HTTP request.
    Http(HttpRequest),
}

/// A unary call.
#[derive(Debug)]
pub struct Unary {
    /// The path of the method.
    pub rpc: String,
    /// Metadata that was sent.
    pub metadata: Vec<(String, String)>,
    /// The request, or nothing when the recording client never sent it.
    pub request: Option<Vec<u8>>,
    /// The request in JSON form.
    pub request_json: Value,
    /// The answer.
    pub answer: Answer,
    /// Whether the client set no deadline: the server itself gave up.
    pub no_deadline: bool,
}

/// How a call or stream ended.
#[derive(Debug)]
pub enum Answer {
    /// With a message, in JSON form.
    Message(Value),
    /// With a status other than OK.
    Error(Status),
}

/// A gRPC status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The number of the code; 0 is OK.
    pub code: u32,
    /// The text.
    pub message: String,
}

impl Status {
    /// Whether the recording client itself made this error: it gave up or was told to.
    #[must_use]
    pub fn is_from_the_client(&self) -> bool {
        const TEXTS: [&str; 3] = [
            "context canceled",
            "context deadline exceeded",
            "stream terminated by RST_STREAM",
        ];
        TEXTS.iter().any(|text| self.message.starts_with(text))
    }
}

/// An event on a stream.
#[derive(Debug)]
pub struct StreamEvent {
    /// The number of the stream in the file.
    pub stream: u64,
    /// The path of the method.
    pub rpc: String,
    /// What happened.
    pub kind: StreamKind,
}

/// What happened on a stream.
#[derive(Debug)]
pub enum StreamKind {
    /// It was opened with this metadata.
    Open(Vec<(String, String)>),
    /// The client sent a message.
    Send {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its JSON form.
        json: Value,
    },
    /// The server sent a message, in JSON form.
    Receive(Value),
    /// The client said that it sends no more.
    CloseSend,
    /// It ended; `quiet` says that the client had heard nothing for seconds.
    End {
        /// How; code 0 is OK.
        status: Status,
        /// Whether silence before the end is part of the recording.
        quiet: bool,
    },
}

/// A plain HTTP request and its answer.
#[derive(Debug)]
pub struct HttpRequest {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers of the request.
    pub headers: Vec<(String, String)>,
    /// Body of the request.
    pub body: Option<Vec<u8>>,
    /// The status of the answer.
    pub status: u16,
    /// The headers of the answer.
    pub response_headers: Vec<(String, String)>,
    /// The body of the answer.
    pub response_body: String,
}

impl Script {
    /// Reads a file.
    ///
    /// # Errors
    /// When a line is not what the recordings' README says.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line));
        let (_, first) = lines
            .next()
            .with_context(|| format!("{} is empty", path.display()))?;
        let first: Value = serde_json::from_str(first)?;
        let server_args = first["server_args"]
            .as_array()
            .context("the first line has no server_args")?;
        let name = first["script"]
            .as_str()
            .context("the first line has no script")?
            .to_owned();
        let server_args = server_args
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let mut steps = Vec::new();
        for (line, text) in lines {
            let context = || format!("{}:{line}", path.display());
            let value: Value = serde_json::from_str(text).with_context(context)?;
            steps.push(Step {
                line,
                action: action(&value).with_context(context)?,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            name,
            server_args,
            steps,
        })
    }
}

fn action(line: &Value) -> Result<Action> {
    if line.get("method").is_some() {
        return http(line).map(Action::Http);
    }
    let rpc = text(line, "rpc")?;
    if let Some(event) = line["event"].as_str() {
        let kind = match event {
            "open" => StreamKind::Open(metadata(line)),
            "send" => StreamKind::Send {
                bytes: request(line)?.context("no request")?,
                json: line["json"].clone(),
            },
            "recv" => StreamKind::Receive(line["json"].clone()),
            "close_send" => StreamKind::CloseSend,
            "end" => StreamKind::End {
                status: status(&line["error"]).unwrap_or(Status {
                    code: 0,
                    message: String::new(),
                }),
                quiet: line["note"]
                    .as_str()
                    .is_some_and(|note| note.starts_with("no message for")),
            },
            other => anyhow::bail!("unknown event {other:?}"),
        };
        let stream = line["stream"].as_u64().context("no stream number")?;
        return Ok(Action::Stream(StreamEvent { stream, rpc, kind }));
    }
    let answer = match status(&line["error"]) {
        Some(status) => Answer::Error(status),
        None => Answer::Message(
            line.get("response_json")
                .context("neither response nor error")?
                .clone(),
        ),
    };
    let request_json = line["request_json"].clone();
    let never_sent = matches!(&answer, Answer::Error(_))
        && line["request_hex"] == ""
        && request_json
            .as_object()
            .is_some_and(|fields| !fields.is_empty());
    let request = if never_sent { None } else { request(line)? };
    Ok(Action::Unary(Unary {
        rpc,
        metadata: metadata(line),
        request,
        request_json,
        answer,
        no_deadline: line["note"]
            .as_str()
            .is_some_and(|note| note.starts_with("no client deadline")),
    }))
}

fn http(line: &Value) -> Result<HttpRequest> {
    Ok(HttpRequest {
        method: text(line, "method")?,
        path: text(line, "path")?,
        headers: pairs(&line["request_headers"]),
        body: line["request_body"]
            .as_str()
            .map(|body| body.as_bytes().to_vec()),
        status: line["status"]
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .context("no status")?,
        response_headers: pairs(&line["response_headers"]),
        response_body: text(line, "response_body")?,
    })
}

fn text(line: &Value, name: &str) -> Result<String> {
    Ok(line[name]
        .as_str()
        .with_context(|| format!("no {name}"))?
        .to_owned())
}

pub(super) fn pairs(object: &Value) -> Vec<(String, String)> {
    let Some(object) = object.as_object() else {
        return Vec::new();
    };
    object
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn metadata(line: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, values) in line["metadata"].as_object().into_iter().flatten() {
        for value in values
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            found.push((name.clone(), value.to_owned()));
        }
    }
    found
}

fn status(error: &Value) -> Option<Status> {
    let code = error["code"].as_u64()?;
    Some(Status {
        code: u32::try_from(code).ok()?,
        message: error["message"].as_str()?.to_owned(),
    })
}

/// The bytes of the request. A long one is recorded as its head, its length and its hash; it is a key
/// and a value of one repeated byte, so that it can be made again.
fn request(line: &Value) -> Result<Option<Vec<u8>>> {
    if let Some(hex) = line["request_hex"].as_str() {
        return unhex(hex).map(Some);
    }
    let Some(head) = line["request_head_hex"].as_str() else {
        return Ok(None);
    };
    let length = line["request_len"]
        .as_u64()
        .and_then(|length| usize::try_from(length).ok())
        .context("no length")?;
    let mut bytes = unhex(head)?;
    let fill = *bytes.last().context("an empty head")?;
    let tail: &[u8] = if line["request_json"]["prev_kv"] == true {
        &[0x20, 1]
    } else {
        &[]
    };
    bytes.resize(length - tail.len(), fill);
    bytes.extend_from_slice(tail);
    let recorded = line["request_sha256"].as_str().context("no hash")?;
    ensure!(
        Sha256::digest(&bytes).as_slice() == unhex(recorded)?.as_slice(),
        "the long request cannot be made again from its head"
    );
    Ok(Some(bytes))
}

pub(super) fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.len().is_multiple_of(2) && text.is_ascii(),
        "no hex: {text}"
    );
    (0..text.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&text[at..at + 2], 16).with_context(|| format!("no hex: {text}"))
        })
        .collect()
}
