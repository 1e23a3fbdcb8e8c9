//! The recorded client traffic of etcd 3.7.1 replays with equal answers, one test a recording.
//!
//! The server is `keelson` from the folder that this test was built into (`cargo build -p keelson-cli`
//! first), or what `KEELSON_ETCD_BINARY` names. `KEEP_GOING=1` lists every difference.

use std::fmt;

use keelson_recorded::{data_folder, wire};

type Result = std::result::Result<(), Report>;

/// An error whose debug form, which is what a failed test prints, is the text itself.
struct Report(String);

impl fmt::Debug for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn replay(name: &str) -> Result {
    let outcome = data_folder().and_then(|folder| wire::replay(&folder.join("wire").join(name)));
    outcome.map_err(|error| Report(format!("{error:#}")))
}

#[test]
fn kv_calls_answer_as_recorded() -> Result {
    replay("kv.jsonl")
}

#[test]
fn watch_streams_answer_as_recorded() -> Result {
    replay("watch.jsonl")
}

#[test]
fn lease_calls_answer_as_recorded() -> Result {
    replay("lease.jsonl")
}

#[test]
fn maintenance_calls_answer_as_recorded() -> Result {
    replay("maintenance.jsonl")
}

#[test]
fn an_exceeded_quota_answers_as_recorded() -> Result {
    replay("quota.jsonl")
}

#[test]
fn auth_calls_answer_as_recorded() -> Result {
    replay("auth.jsonl")
}

#[test]
fn http_endpoints_answer_as_recorded() -> Result {
    replay("http.jsonl")
}

#[test]
fn lock_and_election_calls_answer_as_recorded() -> Result {
    replay("lock.jsonl")
}

#[test]
fn member_calls_and_a_lost_quorum_answer_as_recorded() -> Result {
    replay("cluster.jsonl")
}

#[test]
fn a_learner_answers_as_recorded() -> Result {
    replay("learner.jsonl")
}

#[test]
fn a_follower_answers_as_recorded() -> Result {
    replay("follower.jsonl")
}

#[test]
fn the_peer_port_of_a_loaded_member_answers_as_recorded() -> Result {
    let outcome = data_folder().and_then(|folder| {
        wire::replay_peer_port(
            &folder.join("wire/peer-port.jsonl"),
            &folder.join("etcd/3.7/basic/member.tar.gz"),
        )
    });
    outcome.map_err(|error| Report(format!("{error:#}")))
}

#[test]
fn what_ends_etcd_is_refused() -> Result {
    replay("crash.jsonl")
}
