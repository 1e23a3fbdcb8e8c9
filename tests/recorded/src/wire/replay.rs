//! Plays a recording against a fresh server, step by step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::call::{self, Connection, Event, Stream};
use super::compare::{Difference, Learned, compare, same_text};
use super::fill::Fill;
use super::members;
use super::schema::Schema;
use super::script::{
    Action, Answer, HttpRequest, Script, Status, Step, StreamEvent, StreamKind, Unary,
};
use super::server::Server;
use super::snapshot::Snapshot;

/// Its answer is compared as a whole.
const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";

/// No answer after this long is a difference.
const PATIENCE: Duration = Duration::from_secs(60);

/// The deadline of calls that the recording client let run into one.
const SHORT_DEADLINE: Duration = Duration::from_secs(1);

/// Silence that the recording shows must last at least this long here (it was 4 s there).
const SILENCE: Duration = Duration::from_millis(1500);

/// What a cancelled call leaves behind is cleaned up by the server within this time.
const SETTLING: Duration = Duration::from_secs(30);

/// Differences shown in full; more are counted.
const SHOWN: usize = 200;

/// Replays one file of the recordings and fails with a list of what differs.
///
/// By default it stops at the first step that differs; with `KEEP_GOING=1` it goes on.
///
/// # Errors
/// Every difference, or what kept the replay from happening.
pub fn replay(path: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let script = Script::read(path)?;
        let schema =
            Schema::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/proto/proto"))?;
        let mut learned = Learned::default();
        let (server, others) = match script.name.as_str() {
            "learner" => members::learner(&script, &schema, &mut learned).await?,
            "follower" => members::follower(&script, &schema, &mut learned).await?,
            _ => (Server::start(&script.server_args).await?, Vec::new()),
        };
        let connection = Connection::open(server.address()).await?;
        let mut replay = Replay {
            schema,
            server,
            connection,
            _others: others,
            streams: BTreeMap::new(),
            learned,
            fill: Fill::default(),
            unsettled: false,
        };
        replay.run(&script).await
    })
}

struct Replay {
    schema: Schema,
    server: Server,
    /// Members that are not asked, but must run.
    _others: Vec<Server>,
    connection: Connection,
    streams: BTreeMap<u64, OpenStream>,
    learned: Learned,
    fill: Fill,
    /// A call was just cancelled, so the server may still be cleaning up after it.
    unsettled: bool,
}

struct OpenStream {
    stream: Stream,
    /// The last message sent, in JSON form.
    request: Value,
    snapshot: Snapshot,
}

impl Replay {
    async fn run(&mut self, script: &Script) -> Result<()> {
        let keep_going = std::env::var_os("KEEP_GOING").is_some_and(|value| value == "1");
        let file = script
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut report = String::new();
        let mut wrong = 0;
        let mut steps = 0;
        for step in &script.steps {
            steps += 1;
            let found = self
                .step(step)
                .await
                .with_context(|| format!("{file}:{}", step.line))?;
            if found.is_empty() {
                continue;
            }
            wrong += 1;
            if wrong <= SHOWN {
                describe(&mut report, &file, step, &found);
            }
            if !keep_going {
                break;
            }
        }
        if wrong == 0 {
            return Ok(());
        }
        let hint = if keep_going {
            ""
        } else {
            " (KEEP_GOING=1 shows the others)"
        };
        bail!(
            "{wrong} of {steps} steps of {} differ{hint}:\n\n{report}\nthe server's log ends with:\n{}",
            script.path.display(),
            self.server.log_tail()
        )
    }

    async fn step(&mut self, step: &Step) -> Result<Vec<Difference>> {
        match &step.action {
            Action::Unary(call) if ends_etcd(call) => self.survives(call).await,
            Action::Unary(call) if Fill::is_part(call) => {
                self.fill
                    .put(&self.connection, call, PATIENCE, &mut self.learned)
                    .await
            }
            Action::Unary(call) => self.unary(call).await,
            Action::Stream(event) => self.stream(event).await,
            Action::Http(request) => self.http(request).await,
        }
    }

    async fn unary(&mut self, call: &Unary) -> Result<Vec<Difference>> {
        let Some(request) = &call.request else {
            return Ok(Vec::new());
        };
        let request = &self.shifted(call, request);
        let unsettled = std::mem::take(&mut self.unsettled);
        let started = Instant::now();
        loop {
            let found = self.unary_once(call, request).await?;
            if found.is_empty() || !unsettled || started.elapsed() > SETTLING {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn unary_once(&mut self, call: &Unary, request: &[u8]) -> Result<Vec<Difference>> {
        let metadata = self.metadata(&call.metadata);
        let gave_up = !call.no_deadline
            && matches!(&call.answer, Answer::Error(status) if status.is_from_the_client());
        if gave_up {
            let outcome = self
                .connection
                .call(
                    &call.rpc,
                    &metadata,
                    request,
                    Some(SHORT_DEADLINE),
                    SHORT_DEADLINE,
                )
                .await;
            self.unsettled = true;
            // Giving up is right, and so is a server that says that the deadline passed.
            return Ok(match outcome {
                Err(_) => Vec::new(),
                Ok((_, status)) if status.code == 4 => Vec::new(),
                Ok((messages, status)) => whole(
                    "no answer before the deadline",
                    &format!("{} message(s), {}", messages.len(), text(&status)),
                ),
            });
        }
        let (messages, status) = match self
            .connection
            .call(&call.rpc, &metadata, request, None, PATIENCE)
            .await
        {
            Ok(outcome) => outcome,
            Err(error) => return Ok(whole(&answer_text(&call.answer), &format!("{error:#}"))),
        };
        match &call.answer {
            Answer::Error(expected) => Ok(compare_status(expected, &status)),
            Answer::Message(expected) => {
                let [message] = messages.as_slice() else {
                    return Ok(whole(
                        &answer_text(&call.answer),
                        &format!("{} messages, {}", messages.len(), text(&status)),
                    ));
                };
                self.message(&call.rpc, expected, message, &call.request_json)
            }
        }
    }

    /// A request that ends etcd: here it is refused, and the server goes on.
    async fn survives(&mut self, call: &Unary) -> Result<Vec<Difference>> {
        let request = call.request.as_deref().context("no request")?;
        let (_, status) = self
            .connection
            .call(&call.rpc, &[], request, None, PATIENCE)
            .await?;
        let refused = status.code != 0 && !status.message.starts_with("(no gRPC status)");
        let alive = self.server.is_running()?;
        // Etcd itself may die of it, as recorded.
        if (refused && alive) || self.server.is_etcd() {
            return Ok(Vec::new());
        }
        Ok(whole(
            "an error, and a server that goes on",
            &format!("{}, running: {alive}", text(&status)),
        ))
    }

    async fn stream(&mut self, event: &StreamEvent) -> Result<Vec<Difference>> {
        if let StreamKind::Open(metadata) = &event.kind {
            let stream = self
                .connection
                .stream(&event.rpc, &self.metadata(metadata), None)?;
            self.streams.insert(
                event.stream,
                OpenStream {
                    stream,
                    request: Value::Null,
                    snapshot: Snapshot::default(),
                },
            );
            return Ok(Vec::new());
        }
        // Some recordings end a stream twice: once for the silence, once for the cancel.
        let Some(open) = self.streams.get_mut(&event.stream) else {
            return Ok(Vec::new());
        };
        match &event.kind {
            StreamKind::Open(_) => {}
            StreamKind::Send { bytes, json } => {
                open.stream.send(bytes).await?;
                open.request = json.clone();
            }
            StreamKind::CloseSend => open.stream.close_send(),
            StreamKind::Receive(expected) if event.rpc == SNAPSHOT => {
                return self.snapshot(event.stream, expected).await;
            }
            StreamKind::Receive(expected) => {
                let request = open.request.clone();
                let got = tokio::time::timeout(PATIENCE, open.stream.next()).await;
                return match got {
                    Ok(Event::Message(message)) => {
                        self.message(&event.rpc, expected, &message, &request)
                    }
                    Ok(Event::End(status)) => Ok(whole(
                        &expected.to_string(),
                        &format!("the end: {}", text(&status)),
                    )),
                    Err(_) => Ok(whole(&expected.to_string(), "no message")),
                };
            }
            StreamKind::End { status, quiet } if status.is_from_the_client() => {
                let heard = if *quiet {
                    tokio::time::timeout(SILENCE, open.stream.next()).await.ok()
                } else {
                    None
                };
                self.streams.remove(&event.stream);
                if let Some(heard) = heard {
                    return Ok(whole("silence", &format!("{heard:?}")));
                }
            }
            StreamKind::End { status, .. } => {
                let got = tokio::time::timeout(PATIENCE, open.stream.next()).await;
                self.streams.remove(&event.stream);
                return Ok(match got {
                    Ok(Event::End(got)) => compare_status(status, &got),
                    Ok(Event::Message(message)) => {
                        whole(&text(status), &format!("a message: {message:?}"))
                    }
                    Err(_) => whole(&text(status), "no end"),
                });
            }
        }
        Ok(Vec::new())
    }

    /// Reads all parts where the recording has the file, and compares where it has the hash.
    async fn snapshot(&mut self, stream: u64, expected: &Value) -> Result<Vec<Difference>> {
        let open = self.streams.get_mut(&stream).context("no such stream")?;
        let output = &self
            .schema
            .method(SNAPSHOT)
            .context("not in the schema")?
            .output;
        while !open.snapshot.is_complete() {
            match tokio::time::timeout(PATIENCE, open.stream.next()).await {
                Ok(Event::Message(message)) => {
                    let part = self.schema.to_json(output, &message)?;
                    if let Err(error) = open.snapshot.take(expected, &part) {
                        return Ok(whole("a part of a snapshot", &format!("{error:#}")));
                    }
                }
                Ok(Event::End(status)) => return Ok(whole("a part of a snapshot", &text(&status))),
                Err(_) => return Ok(whole("a part of a snapshot", "no message")),
            }
        }
        Ok(open.snapshot.differences())
    }

    fn message(
        &mut self,
        rpc: &str,
        expected: &Value,
        message: &Bytes,
        request: &Value,
    ) -> Result<Vec<Difference>> {
        let method = self
            .schema
            .method(rpc)
            .with_context(|| format!("no method {rpc} in the schema"))?;
        let mut got = match self.schema.to_json(&method.output, message) {
            Ok(got) => got,
            Err(error) => {
                return Ok(whole(
                    &expected.to_string(),
                    &format!("{error:#}: {message:?}"),
                ));
            }
        };
        let mut expected = expected.clone();
        match rpc {
            // etcd 3.7.1 sorts each chunk of a stream by the target that was asked for and then loses
            // its place; the order is by key, so only the content is compared.
            "/etcdserverpb.KV/RangeStream" if request.get("sort_target").is_some() => {
                sort_kvs(&mut expected);
                sort_kvs(&mut got);
            }
            _ => {}
        }
        let chosen = matches!(
            request.get("ID").or_else(|| request.get("lease")),
            None | Some(Value::Null)
        );
        Ok(compare(rpc, &expected, &got, chosen, &mut self.learned))
    }

    async fn http(&mut self, request: &HttpRequest) -> Result<Vec<Difference>> {
        let (status, headers, body) = call::http(self.server.address(), request).await?;
        let mut found = Vec::new();
        if status != request.status {
            found.push(difference(
                "status",
                &request.status.to_string(),
                &status.to_string(),
            ));
        }
        let ours = if request.path == "/version" {
            without_own_fields(&body)?
        } else {
            body.clone()
        };
        for (name, value) in &request.response_headers {
            let got = headers
                .iter()
                .find(|(other, _)| other.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str());
            // A field more in the body makes it longer.
            let longer = name == "content-length" && ours != body;
            if got != Some(value) && !longer && name != "date" {
                found.push(difference(
                    &format!("header {name}"),
                    value,
                    got.unwrap_or("(not there)"),
                ));
            }
        }
        if !same_body(&request.response_body, &ours) {
            found.push(difference("body", &request.response_body, &body));
        }
        Ok(found)
    }

    /// The request with what is another value in this run: ids, the revision of a compaction.
    fn shifted(&self, call: &Unary, request: &[u8]) -> Vec<u8> {
        let revision = call.request_json["revision"]
            .as_str()
            .and_then(|text| text.parse::<i64>().ok());
        match (call.rpc.as_str(), revision) {
            ("/etcdserverpb.KV/Compact", Some(recorded))
                if self.learned.revision(recorded) != recorded =>
            {
                let physical = i32::from(call.request_json["physical"] == true);
                let revision = self.learned.revision(recorded).cast_unsigned();
                let mut bytes = Vec::new();
                prost::encoding::uint64::encode(1, &revision, &mut bytes);
                prost::encoding::int32::encode(2, &physical, &mut bytes);
                bytes
            }
            _ => self.learned.request(&call.request_json, request),
        }
    }

    fn metadata(&self, recorded: &[(String, String)]) -> Vec<(String, String)> {
        recorded
            .iter()
            .map(|(name, value)| (name.clone(), self.learned.translate(value).to_owned()))
            .collect()
    }
}

/// The recording of a call that 3.7.1 does not survive.
fn ends_etcd(call: &Unary) -> bool {
    matches!(&call.answer, Answer::Error(status) if status.message.starts_with("error reading from server"))
}

/// `/version` may say more than etcd's; what etcd says must be there, in its order.
fn without_own_fields(body: &str) -> Result<String> {
    let mut fields: serde_json::Map<String, Value> =
        serde_json::from_str(body).context(body.to_owned())?;
    let recorded = ["etcdserver", "etcdcluster", "storage"];
    if fields.len() == recorded.len() {
        return Ok(body.to_owned());
    }
    let kept = recorded.map(|name| {
        format!(
            "{}:{}",
            json!(name),
            fields.remove(name).unwrap_or_default()
        )
    });
    Ok(format!("{{{}}}", kept.join(",")))
}

/// The lines of a verbose health check come in any order, with the verdict last.
fn same_body(recorded: &str, got: &str) -> bool {
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if let Some((_, checks)) = lines.split_last_mut() {
            checks.sort();
        }
        lines
    };
    recorded == got || (recorded.starts_with("[+]") && sorted(recorded) == sorted(got))
}

fn sort_kvs(answer: &mut Value) {
    if let Some(kvs) = answer
        .pointer_mut("/range_response/kvs")
        .and_then(Value::as_array_mut)
    {
        kvs.sort_by_key(|kv| kv["key"].to_string());
    }
}

fn compare_status(expected: &Status, got: &Status) -> Vec<Difference> {
    let mut found = Vec::new();
    if expected.code != got.code {
        found.push(difference(
            "status.code",
            &expected.code.to_string(),
            &got.code.to_string(),
        ));
    }
    if !same_text(&expected.message, &got.message) && !is_a_second_later(expected, got) {
        found.push(difference(
            "status.message",
            &format!("{:?}", expected.message),
            &format!("{:?}", got.message),
        ));
    }
    found
}

/// A member's id is made of its addresses and the second, so the same addresses are refused for the
/// id in the same second, and for the addresses after it.
fn is_a_second_later(expected: &Status, got: &Status) -> bool {
    expected.message == "etcdserver: member ID already exist"
        && got.message == "etcdserver: Peer URLs already exists"
}

fn difference(path: &str, expected: &str, got: &str) -> Difference {
    Difference {
        path: path.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
    }
}

fn whole(expected: &str, got: &str) -> Vec<Difference> {
    vec![difference("", &clipped(expected), &clipped(got))]
}

fn text(status: &Status) -> String {
    format!("code {} {:?}", status.code, status.message)
}

fn answer_text(answer: &Answer) -> String {
    match answer {
        Answer::Message(message) => message.to_string(),
        Answer::Error(status) => text(status),
    }
}

fn clipped(text: &str) -> String {
    const LONGEST: usize = 600;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!(
            "{}... ({} bytes, sha256 {:x?})",
            &text[..at],
            text.len(),
            &Sha256::digest(text.as_bytes())[..4]
        ),
        None => text.to_owned(),
    }
}

fn describe(report: &mut String, file: &str, step: &Step, found: &[Difference]) {
    let (rpc, request) = match &step.action {
        Action::Unary(call) => (call.rpc.clone(), call.request_json.to_string()),
        Action::Stream(event) => (
            format!("{} stream {}", event.rpc, event.stream),
            stream_text(&event.kind),
        ),
        Action::Http(request) => (
            format!("{} {}", request.method, request.path),
            String::new(),
        ),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(report, "{file}:{} {rpc} {}", step.line, clipped(&request));
    for difference in found {
        let path = if difference.path.is_empty() {
            "(the whole)"
        } else {
            &difference.path
        };
        let _ = writeln!(
            report,
            "    {path}\n        expected {}\n        got      {}",
            difference.expected, difference.got
        );
    }
}

fn stream_text(kind: &StreamKind) -> String {
    match kind {
        StreamKind::Open(_) => "open".to_owned(),
        StreamKind::Send { json, .. } => format!("send {json}"),
        StreamKind::Receive(_) => "receive".to_owned(),
        StreamKind::CloseSend => "close".to_owned(),
        StreamKind::End { .. } => "end".to_owned(),
    }
}
