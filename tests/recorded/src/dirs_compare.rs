//! What a real server answered, held against what our store answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use keelson_proto::ApiError;
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::authpb::Permission;
use keelson_proto::rpc::etcdserverpb::{RangeRequest, RangeResponse};
use keelson_proto::rpc::mvccpb::KeyValue;
use keelson_store::range::{self, PlanError, Progress, ReadAt};
use keelson_store::watch::{self, Fetched, Filters, Shard, Spec, State, StreamId};
use keelson_store::{Durable, EventRecord, Shared, hash};
use prost::Message as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Keys that are read and watched by themselves, at most.
const SINGLE_KEYS_MAX: usize = 64;

/// How an observation was made.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// `live` or `reopened`.
    pub answers: &'a Value,
    /// Whether the hash at the compact revision is comparable: a server that compacted remembers
    /// the hash that it made then, one that was started later hashes anew.
    pub compaction_hash: bool,
    /// Whether the hash of the file is comparable.
    pub file_hash: bool,
}

/// Compares everything that was observed, and says what differs.
#[must_use]
pub fn differences(shared: &Arc<Shared>, durable: &Durable, observed: Observed<'_>) -> Vec<String> {
    let answers = observed.answers;
    let checks: [(&str, Result<()>); 9] = [
        ("revisions", revisions(shared, answers)),
        ("hashes", hashes(shared, &observed)),
        ("Maintenance.Hash", file_hash(durable, &observed)),
        ("ranges", ranges(shared, answers)),
        ("watch", history(shared, answers)),
        ("leases", leases(shared, answers)),
        ("members", members(shared, answers)),
        ("alarms and versions", alarms(shared, answers)),
        ("auth", auth(shared, answers)),
    ];
    checks
        .into_iter()
        .filter_map(|(what, result)| Some(format!("{what}: {:#}", result.err()?)))
        .collect()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    ensure!(
        found == expected,
        "{what}: found {found:?}, expected {expected:?}"
    );
    Ok(())
}

fn number(value: &Value) -> Result<i64> {
    value
        .as_i64()
        .with_context(|| format!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a list of messages.
fn digest<'a>(messages: impl IntoIterator<Item = &'a KeyValue>) -> Result<String> {
    let mut digest = Sha256::new();
    for message in messages {
        let bytes = message.encode_to_vec();
        digest.update(u32::try_from(bytes.len())?.to_be_bytes());
        digest.update(&bytes);
    }
    Ok(hex(&digest.finalize()))
}

fn revisions(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    same("revision", shared.revision(), number(&answers["revision"])?)?;
    same(
        "compact revision",
        shared.compact_revision(),
        number(&answers["compact_revision"])?,
    )
}

fn hashes(shared: &Arc<Shared>, observed: &Observed<'_>) -> Result<()> {
    let hashes = list(&observed.answers["hashkv"]);
    ensure!(!hashes.is_empty(), "nothing to compare");
    for expected in hashes {
        let revision = number(&expected["revision"])?;
        if revision == shared.compact_revision() && !observed.compaction_hash {
            continue;
        }
        hash_at(shared, revision, expected).with_context(|| format!("revision {revision}"))?;
    }
    let latest = &observed.answers["hashkv_latest"];
    if latest["hash_revision"] == shared.compact_revision() && !observed.compaction_hash {
        return Ok(());
    }
    hash_at(shared, 0, latest).context("latest")
}

fn hash_at(shared: &Arc<Shared>, revision: i64, expected: &Value) -> Result<()> {
    let found = match hash::hash_kv(shared, revision) {
        Ok(found) => json!({
            "compact_revision": found.compact_revision,
            "hash": found.hash,
            "hash_revision": found.hash_revision,
        }),
        Err(PlanError::Refused(refused)) => json!({ "error": refused.to_string() }),
        Err(error) => bail!("{error}"),
    };
    if let Some(error) = expected["error"].as_str() {
        let found = found["error"].as_str().unwrap_or("an answer");
        ensure!(
            error.ends_with(found),
            "found {found:?}, expected {error:?}"
        );
        return Ok(());
    }
    let (mut found, mut expected) = (found, expected.clone());
    if let Some(fields) = expected.as_object_mut() {
        fields.remove("revision");
    }
    if expected["hash_revision"] == 0 {
        // 3.5 does not say it.
        found["hash_revision"] = json!(0);
    }
    same("hash", found, expected)
}

/// 3.5 knows no downgrades, and does not show what the role root may do.
fn answered_by_3_5(answers: &Value) -> bool {
    answers["status"]["downgradeInfo"].is_null()
}

fn file_hash(durable: &Durable, observed: &Observed<'_>) -> Result<()> {
    if !observed.file_hash {
        return Ok(());
    }
    same(
        "hash",
        i64::from(hash::hash(durable)?),
        number(&observed.answers["maintenance_hash"])?,
    )
}

fn range(shared: &Arc<Shared>, request: &RangeRequest) -> Result<RangeResponse> {
    let plan = range::plan(shared, request, ReadAt::Current)?;
    let len = plan.body_len();
    let mut emitter = plan.into_emitter(shared.clone());
    let mut body = BytesMut::new();
    while emitter.next_chunk(4096, &mut body)? == Progress::More {}
    same("length of the answer", body.len() as u64, len)?;
    Ok(RangeResponse::decode(Bytes::from(body))?)
}

/// All keys at a revision, 0 for the current one.
fn everything(revision: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        revision,
        ..RangeRequest::default()
    }
}

fn ranges(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let expected = list(&answers["ranges"]);
    ensure!(!expected.is_empty(), "nothing to compare");
    for expected in expected {
        let revision = number(&expected["revision"])?;
        let found = range(shared, &everything(revision))?;
        let place = |what| format!("{what} at {revision}");
        same(&place("count"), found.count, number(&expected["count"])?)?;
        // Long lists are there as their digest alone.
        if let Some(kvs) = expected["kvs"].as_array() {
            let keys: Vec<String> = found.kvs.iter().map(|kv| hex(&kv.key)).collect();
            let names: Vec<String> = kvs
                .iter()
                .filter_map(|kv| Some(kv["key_hex"].as_str()?.to_owned()))
                .collect();
            same(&place("keys"), keys, names)?;
        }
        same(
            &place("digest"),
            digest(&found.kvs)?.as_str(),
            expected["sha256"].as_str().unwrap_or_default(),
        )?;
        // The same records one by one.
        for kv in found.kvs.iter().take(SINGLE_KEYS_MAX) {
            let request = RangeRequest {
                key: kv.key.clone(),
                revision,
                ..RangeRequest::default()
            };
            same(
                &place("a key"),
                range(shared, &request)?.kvs,
                vec![kv.clone()],
            )?;
        }
    }
    let count = RangeRequest {
        count_only: true,
        ..everything(0)
    };
    same(
        "number of keys",
        range(shared, &count)?.count,
        number(&answers["key_count"])?,
    )
}

/// An event as a server sends it.
fn event(record: &EventRecord) -> Result<(&'static str, KeyValue)> {
    let mut kv = KeyValue::decode(record.record.bytes.clone())?;
    if record.record.tombstone {
        kv.mod_revision = record.revision.main;
        return Ok(("DELETE", kv));
    }
    same("mod revision", kv.mod_revision, record.revision.main)?;
    Ok(("PUT", kv))
}

/// Everything that a watcher gets that starts in the past.
fn watch(
    shared: &Arc<Shared>,
    key: &[u8],
    range_end: &[u8],
    start: i64,
) -> Result<Vec<(&'static str, KeyValue)>> {
    let mut shard = Shard::default();
    shard.open_at(shared.revision());
    let spec = Spec {
        key: key.into(),
        range_end: range_end.into(),
        filters: Filters::default(),
        start,
    };
    let handle = shard.add(StreamId(1), 1, spec);
    let mut events = Vec::new();
    while shard.state(handle) == Some(State::Lagging) {
        let jobs = shard.jobs(1);
        ensure!(!jobs.is_empty(), "a lagging watcher asks for history");
        for chunk in watch::fetch(shared, jobs, watch::FETCH_BYTES)? {
            let (fetched, upto) = match chunk.fetched {
                Fetched::Events { events, upto, .. } => (events, upto),
                Fetched::Compacted { revision } => bail!("compacted at {revision}"),
            };
            for record in &fetched {
                events.push(event(record)?);
            }
            shard.fetched(handle, upto, !fetched.is_empty());
        }
    }
    Ok(events)
}

fn history(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let expected = &answers["watch"];
    if expected.is_null() {
        return Ok(());
    }
    let start = number(&expected["start_revision"])?;
    let found = watch(shared, &[0], &[0], start)?;
    same(
        "count",
        i64::try_from(found.len())?,
        number(&expected["count"])?,
    )?;
    if let Some(events) = expected["events"].as_array() {
        let kinds: Vec<&str> = found.iter().map(|(kind, _)| *kind).collect();
        let expected: Vec<&str> = events
            .iter()
            .filter_map(|event| event["type"].as_str())
            .collect();
        same("kinds", kinds, expected)?;
    }
    same(
        "digest",
        digest(found.iter().map(|(_, kv)| kv))?.as_str(),
        expected["sha256"].as_str().unwrap_or_default(),
    )?;
    let mut by_key: BTreeMap<Bytes, Vec<(&str, KeyValue)>> = BTreeMap::new();
    for (kind, kv) in found {
        by_key.entry(kv.key.clone()).or_default().push((kind, kv));
    }
    for (key, events) in by_key.into_iter().take(SINGLE_KEYS_MAX) {
        same("one key", watch(shared, &key, &[], start)?, events)?;
    }
    let past = shared.compact_revision() - 1;
    if past > 0 {
        let compacted = watch(shared, &[0], &[0], past).is_err();
        ensure!(compacted, "a watch from a compacted revision is answered");
        let refused = range::plan(shared, &everything(past), ReadAt::Current);
        let is_compacted = matches!(refused, Err(PlanError::Refused(ApiError::Compacted)));
        ensure!(is_compacted, "a range at a compacted revision is answered");
    }
    Ok(())
}

fn leases(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let found: Vec<Value> = shared
        .leases()
        .iter()
        .map(|(id, lease)| {
            let keys: Vec<String> = lease.keys().iter().map(hex).collect();
            json!({ "id": id.0, "granted_ttl": lease.ttl(), "keys_hex": keys })
        })
        .collect();
    let expected: Vec<Value> = list(&answers["leases"])
        .iter()
        .map(|lease| {
            let keys = list(&lease["keys_hex"]);
            json!({ "id": lease["id"], "granted_ttl": lease["granted_ttl"], "keys_hex": keys })
        })
        .collect();
    same("leases", found, expected)
}

fn members(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let members = shared.members();
    let found: Vec<Value> = members
        .members()
        .map(|member| {
            json!({
                "clientURLs": member.client_urls,
                "id": member.id.0,
                "id_hex": member.id.to_string(),
                "isLearner": member.is_learner,
                "name": member.name,
                "peerURLs": member.peer_urls,
            })
        })
        .collect();
    let mut expected = list(&answers["members"]).to_vec();
    expected.sort_by_key(|member| member["id"].as_u64());
    for member in &mut expected {
        let urls = list(&member["clientURLs"]).to_vec();
        member["clientURLs"] = Value::from(urls);
    }
    same("members", found, expected)?;
    let voters: Vec<MemberId> = members.voters().map(|member| member.id).collect();
    same("voters", members.conf_state().voters, voters)
}

fn alarms(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let found: Vec<Value> = shared
        .alarms()
        .get(0)
        .iter()
        .map(|alarm| json!({ "alarm": alarm.alarm().as_str_name(), "member_id": alarm.member_id }))
        .collect();
    same("alarms", found, list(&answers["alarms"]).to_vec())?;
    let status = &answers["status"];
    let version = shared
        .storage_version()
        .map_or_else(String::new, |version| version.to_string());
    same(
        "storage version",
        version.as_str(),
        status["storageVersion"].as_str().unwrap_or_default(),
    )?;
    let downgrade = shared.members().downgrade();
    if answered_by_3_5(answers) {
        return same("downgrade", downgrade.enabled, false);
    }
    same(
        "downgrade",
        json!({ "enabled": downgrade.enabled, "targetVersion": downgrade.target_version }),
        status["downgradeInfo"].clone(),
    )
}

fn permission(permission: &Permission) -> Value {
    json!({
        "key_hex": hex(&permission.key),
        "range_end_hex": hex(&permission.range_end),
        "type": permission.perm_type().as_str_name(),
    })
}

fn auth(shared: &Arc<Shared>, answers: &Value) -> Result<()> {
    let auth = shared.auth();
    let mut users = serde_json::Map::new();
    for name in auth.users() {
        let roles = auth.user(name)?;
        let roles = if roles.is_empty() {
            Value::Null
        } else {
            json!(roles)
        };
        users.insert(name.to_owned(), roles);
    }
    let mut roles = serde_json::Map::new();
    for name in auth.roles() {
        let mut permissions: Vec<Value> = auth.role(name)?.iter().map(permission).collect();
        if name == "root" && answered_by_3_5(answers) {
            permissions.clear();
        }
        roles.insert(name.to_owned(), Value::from(permissions));
    }
    let found = json!({
        "auth_revision": auth.revision(),
        "enabled": auth.enabled(),
        "roles": roles,
        "users": users,
    });
    same("auth", found, answers["auth"].clone())
}

/// Whether everything that a server had promised its writers is there.
///
/// # Errors
///
/// What is not.
pub fn acknowledged(shared: &Arc<Shared>, promises: &Value) -> Result<()> {
    let promises = list(promises);
    ensure!(!promises.is_empty(), "nothing was promised");
    for promise in promises {
        let worker = number(&promise["worker"])?;
        let writes = number(&promise["last_acked"])?;
        ensure!(
            shared.revision() >= number(&promise["last_acked_revision"])?,
            "the last revision of worker {worker} is lost"
        );
        let events = watch_worker(shared, worker)?;
        let values: Vec<&Bytes> = events.iter().map(|(_, kv)| &kv.value).collect();
        for (write, value) in (0..=writes).zip(&values) {
            same(
                "a write",
                String::from_utf8_lossy(value).into_owned(),
                format!("worker {worker} write {write}"),
            )?;
        }
        let sent = number(&promise["last_sent"])?;
        let count = i64::try_from(values.len())?;
        ensure!(
            (writes + 1..=sent + 1).contains(&count),
            "worker {worker}: {count} writes, acknowledged up to {writes}, sent up to {sent}"
        );
    }
    Ok(())
}

fn watch_worker(shared: &Arc<Shared>, worker: i64) -> Result<Vec<(&'static str, KeyValue)>> {
    let key = format!("w{worker}/");
    let end = format!("w{worker}0");
    watch(shared, key.as_bytes(), end.as_bytes(), 1)
}
