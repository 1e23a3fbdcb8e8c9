//! A proposal until it is committed: of a lone voter, and of a leader with two followers.

use bytes::Bytes;
use keelson_counts::{Table, count, uncounted};
use keelson_proto::entry::{ConfState, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::Message;
use keelson_raft::{APPEND_THREAD, APPLY_THREAD, Config, MemoryStorage, RawNode};

struct Cluster {
    members: Vec<RawNode<MemoryStorage>>,
    network: Vec<Message>,
}

impl Cluster {
    /// So many voters, the first of them leading.
    fn of(voters: u64) -> Cluster {
        let ids: Vec<_> = (1..=voters).map(MemberId).collect();
        let start = |id: &MemberId| {
            let storage = MemoryStorage::with_snapshot(Snapshot {
                conf_state: ConfState {
                    voters: ids.clone(),
                    ..ConfState::default()
                },
                index: LogIndex(3),
                term: Term(1),
                ..Snapshot::default()
            });
            let mut config = Config::new(*id);
            config.pre_vote = false;
            RawNode::new(config, storage, Box::new(|_| 0)).unwrap()
        };
        let mut cluster = Cluster {
            members: ids.iter().map(start).collect(),
            network: Vec::new(),
        };
        cluster.leader().campaign();
        cluster.settle();
        cluster
    }

    fn leader(&mut self) -> &mut RawNode<MemoryStorage> {
        self.members.first_mut().unwrap()
    }

    /// Lets everything happen that is to happen. What the test lends, storage and network, is not counted.
    fn settle(&mut self) {
        while self.members.iter().any(RawNode::has_ready) {
            for member in self.members.iter_mut().filter(|member| member.has_ready()) {
                for message in member.ready().messages {
                    let sent = match message.to {
                        APPEND_THREAD => write(member, message),
                        APPLY_THREAD => message.responses,
                        _ => uncounted(|| vec![message]),
                    };
                    uncounted(|| self.network.extend(sent));
                }
            }
            for message in uncounted(|| std::mem::take(&mut self.network)) {
                let place = usize::try_from(message.to.0 - 1).unwrap();
                self.members[place].step(message).unwrap();
            }
        }
    }

    /// Proposes, and sees it applied everywhere.
    fn propose(&mut self, data: Vec<Bytes>) {
        let proposed = data.len() as u64;
        let before = self.leader().applied();
        self.leader().propose_batch(data).unwrap();
        self.settle();
        assert_eq!(self.leader().applied().0, before.0 + proposed);
    }
}

/// Writes, and returns what is to be told of it, and to whom.
fn write(member: &mut RawNode<MemoryStorage>, message: Message) -> Vec<Message> {
    uncounted(|| {
        let state = HardState {
            term: message.term,
            vote: message.vote,
            commit: message.commit,
        };
        if !state.is_empty() {
            member.storage_mut().set_hard_state(state);
        }
        member.storage_mut().append(&message.entries);
    });
    message.responses
}

pub(super) fn add_to(table: &mut Table) {
    for (voters, members) in [(1, "one member"), (3, "three members")] {
        for proposals in [1, 64] {
            let mut cluster = Cluster::of(voters);
            let data = |_| vec![Bytes::from_static(b"data"); proposals];
            table.add(
                &format!("raft: {members}, proposals to applied, {proposals} at once"),
                count(data, |data| cluster.propose(data)),
            );
        }
    }
}
