//! Plain requests to the listener for members: versions, membership, hashes, promotion, leases.
//!
//! What is under `/raft` is asked of the transport alone (`tests/peer.rs`). The recorded member had
//! been loaded with the same calls as a recorded data directory, so ours starts on that directory;
//! only the identity is another one.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;

use super::call;
use super::compare::{Learned, compare};
use super::schema::Schema;
use super::script::{HttpRequest, pairs, unhex};
use super::server::Server;

/// What the recorded member says of itself, and what the one of the directory does: the cluster, the
/// member, its peer address. The client's is announced anew at every start.
const IDENTITY: [(&str, &str); 3] = [
    ("ec7835e433d9e2c0", "a7ef944b95711739"),
    ("2185233399518806002", "15985099378392235387"),
    ("http://127.0.0.1:13380", "http://127.0.0.1:12380"),
];

/// Asks a member on that directory all that is in the file, and fails with a list of what differs.
///
/// # Errors
/// Every difference, or what kept the replay from happening.
pub fn replay_peer_port(path: &Path, archive: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut lines = text.lines().map(serde_json::from_str::<Value>);
        let first = lines.next().context("an empty file")??;
        let args: Vec<_> = first["server_args"]
            .as_array()
            .context("no server_args")?
            .iter()
            .filter_map(|arg| arg.as_str().map(str::to_owned))
            .collect();
        let schema =
            Schema::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/proto/proto"))?;
        let server = Server::start_on(&args, archive).await?;
        let (mut report, mut asked) = (String::new(), 0);
        for line in lines {
            let line = line?;
            let path = line["path"].as_str().context("no path")?;
            if path == "/raft" || path.starts_with("/raft/") {
                continue;
            }
            asked += 1;
            for difference in ask(&server, &schema, &line).await? {
                writeln!(report, "{} {path} {difference}", line["method"])?;
            }
        }
        ensure!(asked > 20, "only {asked} requests in {}", path.display());
        ensure!(
            report.is_empty(),
            "{report}\nthe server's log ends with:\n{}",
            server.log_tail()
        );
        Ok(())
    })
}

fn ours(recorded: &str) -> String {
    IDENTITY
        .iter()
        .fold(recorded.to_owned(), |text, (recorded, actual)| {
            text.replace(recorded, actual)
        })
}

async fn ask(server: &Server, schema: &Schema, line: &Value) -> Result<Vec<String>> {
    let text = |name: &str| line[name].as_str().context(format!("no {name}"));
    let body = unhex(text("request_body_hex")?)?;
    let request = HttpRequest {
        method: text("method")?.to_owned(),
        path: text("path")?.to_owned(),
        headers: pairs(&line["request_headers"])
            .into_iter()
            .map(|(name, value)| (name, ours(&value)))
            .collect(),
        body: Some(body),
        status: 0,
        response_headers: Vec::new(),
        response_body: String::new(),
    };
    let (status, headers, body) = call::http_bytes(server.peer_address(), &request).await?;
    let mut found = Vec::new();
    if line["status"] != status {
        found.push(format!("status: recorded {}, got {status}", line["status"]));
    }
    let recorded = text("response_body")?;
    // `/version` may say more than etcd's, and other addresses have other lengths.
    let other_length = ours(recorded) != recorded || request.path == "/version";
    for (name, value) in pairs(&line["response_headers"]) {
        let got = headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(&name))
            .map(|(_, value)| value.as_str());
        let varies = name == "date" || (name == "content-length" && other_length);
        if !varies && got != Some(&ours(&value)) {
            found.push(format!("{name}: recorded {value}, got {got:?}"));
        }
    }
    match line["response_body_hex"].as_str() {
        Some(hex) => found.extend(lease(schema, &request.path, &unhex(hex)?, &body)?),
        None if request.path == "/version" && status == 200 => {
            let (recorded, got): (Value, Value) = (
                serde_json::from_str(recorded)?,
                serde_json::from_slice(&body)?,
            );
            for (name, value) in recorded.as_object().context("no object")? {
                if &got[name] != value {
                    found.push(format!("{name}: recorded {value}, got {}", got[name]));
                }
            }
        }
        None if body != ours(recorded) => {
            found.push(format!("body: recorded {recorded:?}, got {body:?}"));
        }
        None => {}
    }
    Ok(found)
}

/// The answers about leases are protobuf, and what is left of a lease varies.
fn lease(schema: &Schema, path: &str, recorded: &[u8], got: &Bytes) -> Result<Vec<String>> {
    let (message, rpc) = match path {
        "/leases" => (
            ".etcdserverpb.LeaseKeepAliveResponse",
            "/etcdserverpb.Lease/LeaseKeepAlive",
        ),
        _ => (
            ".leasepb.LeaseInternalResponse",
            "/etcdserverpb.Lease/LeaseTimeToLive",
        ),
    };
    let (recorded, got) = (
        schema.to_json(message, recorded)?,
        schema.to_json(message, got)?,
    );
    let found = compare(rpc, &recorded, &got, false, &mut Learned::default());
    Ok(found
        .into_iter()
        .map(|difference| format!("{difference:?}"))
        .collect())
}
