//! Raw requests of etcd 3.5 in the log, applied as the requests of v3 that they stand for.
//!
//! As in etcd 3.6: members' attributes and the cluster's version. What else may be there changes the v2
//! store, which no release since has; 3.6 stops at it, and so do we, unless it changes nothing.

use keelson_proto::entry::Entry;
use keelson_proto::raw_v2::RawRequest;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_proto::rpc::membershippb::{ClusterMemberAttrSetRequest, ClusterVersionSetRequest};
use smallvec::smallvec;

use crate::Store;
use crate::apply::stop;
use crate::member;
use crate::outcome::{Applied, Effect, Outcome};

const MEMBERS_PATH: &str = "/0/members/";
const ATTRIBUTES_PATH: &str = "/attributes";
const VERSION_PATH: &str = "/0/version";

/// Methods that change nothing, or nothing but what has expired.
const READS: [&str; 3] = ["GET", "QGET", "SYNC"];

/// What a raw request means for v3; `None` if nothing. The error says why it cannot be applied.
pub(crate) fn convert(raw: &RawRequest) -> Result<Option<InternalRaftRequest>, String> {
    let (method, path) = (raw.method(), raw.path());
    if READS.contains(&method) {
        return Ok(None);
    }
    let other = || format!("a request of the v2 API, {method} {path:?}, which is gone since 3.6");
    if method != "PUT" {
        return Err(other());
    }
    if path == VERSION_PATH {
        return Ok(Some(InternalRaftRequest {
            cluster_version_set: Some(ClusterVersionSetRequest {
                ver: raw.value().to_owned(),
            }),
            ..InternalRaftRequest::default()
        }));
    }
    let member_id = path
        .strip_prefix(MEMBERS_PATH)
        .and_then(|path| path.strip_suffix(ATTRIBUTES_PATH))
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .ok_or_else(other)?;
    let attributes = member::attributes_from_json(path, raw.value().as_bytes())
        .map_err(|error| error.to_string())?;
    Ok(Some(InternalRaftRequest {
        cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
            member_id,
            member_attributes: Some(attributes),
        }),
        ..InternalRaftRequest::default()
    }))
}

impl Store {
    /// Applies a raw request. The log is to be left behind soon: etcd 3.7 cannot read it.
    pub(crate) fn apply_raw(&mut self, entry: &Entry, raw: &RawRequest) -> Applied {
        let request = match convert(raw) {
            Ok(request) => request,
            Err(reason) => return stop(entry, &reason),
        };
        let applied = request.and_then(|request| self.apply_cluster(entry, &request));
        let mut applied = applied.unwrap_or(Applied {
            outcome: Outcome::Nothing,
            effects: smallvec![],
        });
        applied.effects.push(Effect::LeaveOldLog);
        applied
    }
}
