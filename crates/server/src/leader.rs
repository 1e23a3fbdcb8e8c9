//! Streams that want a leader (`hasleader: true`) end when there has been none for a while.
//!
//! # Source
//!
//! `monitorLeader` of etcd 3.7 (server/etcdserver/api/v3rpc/interceptor.go).

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::state::State;

/// Looks in a row that find no leader before streams end: opening one again costs more than refusing a
/// call does.
const MISSES: u32 = 3;

/// What streams that want a leader wait for.
#[derive(Debug, Default)]
pub(crate) struct LeaderLoss(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    misses: u32,
    /// Cancelled once the leader counts as lost; streams that begin later have another.
    lost: CancellationToken,
}

impl LeaderLoss {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a stream that begins now: cancelled when the leader is lost.
    pub(crate) fn token(&self) -> CancellationToken {
        self.lock().lost.clone()
    }

    /// Takes note of whether a leader is known; once an election timeout.
    pub(crate) fn look(&self, known: bool) {
        let mut inner = self.lock();
        if known {
            inner.misses = 0;
            return;
        }
        inner.misses = inner.misses.saturating_add(1);
        if inner.misses >= MISSES {
            std::mem::take(&mut inner.lost).cancel();
        }
    }
}

/// Looks without end.
pub(crate) async fn watch(state: &State) {
    loop {
        tokio::time::sleep(state.settings.election_timeout).await;
        state.leader_loss.look(state.node.has_leader());
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::etcdserverpb::watch_request::RequestUnion;
    use keelson_proto::rpc::etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
        WatchCreateRequest, WatchRequest, WatchResponse,
    };

    use super::*;
    use crate::Member;
    use crate::wire::{Both, Client, Status, start, within};

    #[test]
    fn a_leader_counts_as_lost_after_three_looks_in_a_row() {
        let loss = LeaderLoss::default();
        let stream = loss.token();
        for known in [false, false, true, false, false] {
            loss.look(known);
        }
        assert!(!stream.is_cancelled());
        loss.look(false);
        assert!(stream.is_cancelled());
        let next = loss.token();
        assert!(!next.is_cancelled());
        loss.look(false);
        assert!(next.is_cancelled(), "there is still none");
        let later = loss.token();
        for known in [true, false, false] {
            loss.look(known);
        }
        assert!(!later.is_cancelled());
    }

    fn lose_leader(member: &Member) {
        let loss = &member.state().leader_loss;
        let token = loss.token();
        // The member has its own look meanwhile, and there is a leader.
        while !token.is_cancelled() {
            loss.look(false);
        }
    }

    fn no_leader() -> Status {
        Status {
            code: 14,
            text: "etcdserver: no leader".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_watch_that_wants_a_leader_ends_when_it_is_lost_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let member = std::thread::spawn(move || start(&path)).join().unwrap();
        let url = &member.client_urls()[0];
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: "k".into(),
                ..WatchCreateRequest::default()
            })),
        };
        let watch = "/etcdserverpb.Watch/Watch";
        let mut wanting = Both::wanting(url, watch, ("hasleader", "true")).await;
        let mut other = Both::wanting(url, watch, ("hasleader", "false")).await;
        for stream in [&mut wanting, &mut other] {
            stream.send(&create);
            let created = within(stream.answers.next::<WatchResponse>()).await;
            assert!(created.unwrap().unwrap().created);
        }
        lose_leader(&member);
        let ended = within(wanting.answers.next::<WatchResponse>()).await;
        assert_eq!(ended.unwrap_err(), no_leader());
        other.send(&create);
        let created = within(other.answers.next::<WatchResponse>()).await;
        assert!(created.unwrap().unwrap().created);
        drop((wanting, other));
        std::thread::spawn(move || member.stop()).join().unwrap();
    }

    #[tokio::test]
    async fn a_keep_alive_that_wants_a_leader_ends_when_it_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let member = std::thread::spawn(move || start(&path)).join().unwrap();
        let url = &member.client_urls()[0];
        let grant = LeaseGrantRequest { ttl: 100, id: 7 };
        let client = Client::connect(url).await;
        let granted = client
            .call::<LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", &grant)
            .await;
        assert_eq!(granted.unwrap().id, 7);
        let keep_alive = "/etcdserverpb.Lease/LeaseKeepAlive";
        let mut stream = Both::wanting(url, keep_alive, ("hasleader", "true")).await;
        stream.send(&LeaseKeepAliveRequest { id: 7 });
        let kept = within(stream.answers.next::<LeaseKeepAliveResponse>()).await;
        assert_eq!(kept.unwrap().unwrap().ttl, 100);
        lose_leader(&member);
        let ended = within(stream.answers.next::<LeaseKeepAliveResponse>()).await;
        assert_eq!(ended.unwrap_err(), no_leader());
        drop((client, stream));
        std::thread::spawn(move || member.stop()).join().unwrap();
    }
}
