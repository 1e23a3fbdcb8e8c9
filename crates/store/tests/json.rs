//! JSON that was damaged - members, configurations, changes of them, v2 dumps: an error or a value,
//! never a panic, and no more stack than a thread has.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use keelson_proto::entry::{ConfChange, ConfChangeKind, ConfState};
use keelson_proto::ids::MemberId;
use keelson_store::member::{Change, Member, conf_state_from_json, conf_state_to_json};
use keelson_store::v2json::{self, Dump};
use proptest::prelude::*;

/// How long one test damages texts.
const TIME_BOX: Duration = Duration::from_secs(2);

fn member() -> Member {
    Member {
        id: MemberId(0xddd6_7b31_2462_fd7b),
        peer_urls: vec!["http://127.0.0.1:2380".into(), "http://<b>&:2380".into()],
        is_learner: true,
        name: "m\u{e9}1".into(),
        client_urls: vec!["http://127.0.0.1:2379".into()],
    }
}

fn conf_state() -> ConfState {
    ConfState {
        voters: vec![MemberId(1), MemberId(u64::MAX)],
        learners: vec![MemberId(3)],
        auto_leave: true,
        ..ConfState::default()
    }
}

fn dump() -> Vec<u8> {
    Dump {
        members: vec![v2json::Member {
            id: MemberId(7),
            name: "m".into(),
            peer_urls: vec!["http://a".into()],
            client_urls: vec!["http://b".into()],
            is_learner: false,
        }],
        removed: vec![MemberId(9)],
        cluster_version: Some("3.6.0".into()),
        index: 3,
    }
    .encode()
}

/// One way to damage a text: where (a share of its length), how much of it to take out, and what to
/// put there.
fn damage() -> impl Strategy<Value = (f64, usize, Vec<u8>)> {
    let text = |text: &'static str| Just(text.as_bytes().to_vec());
    let new = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        text("null"),
        text("[[[["),
        text("{\"a\":{"),
        text("\"\\ud800\""),
        text("-1"),
        text("18446744073709551616"),
        text("1e999"),
        text("\"id\":5,"),
        text(","),
        text("\""),
    ];
    (0.0..1.0, 0..6_usize, new)
}

fn hurt(text: &[u8], damages: &[(f64, usize, Vec<u8>)]) -> Vec<u8> {
    let mut text = text.to_vec();
    for (share, count, new) in damages {
        let at = (text.len() as f64 * share) as usize;
        let end = (at + count).min(text.len());
        text.splice(at..end, new.iter().copied()).for_each(drop);
    }
    text
}

/// Damages `text` until the time box ends. `read` says whether it was a value, and has to check
/// that such a value is one that can be written and read again.
fn drive(text: &[u8], read: impl Fn(&[u8]) -> bool) {
    assert!(read(text));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let damages = prop::collection::vec(damage(), 1..4);
    let (started, mut cases, mut refused) = (Instant::now(), 0, 0);
    while cases < 500 || started.elapsed() < TIME_BOX {
        let tree = damages.new_tree(&mut runner).unwrap();
        let damaged = hurt(text, &tree.current());
        refused += u32::from(!read(&damaged));
        cases += 1;
    }
    assert!(0 < refused && refused < cases, "{refused} of {cases}");
}

use proptest::strategy::ValueTree as _;

#[test]
fn damaged_members_are_refused_or_read() {
    drive(&member().to_json(), |text| match Member::from_json(text) {
        Ok(member) => {
            assert_eq!(Member::from_json(&member.to_json()).unwrap(), member);
            true
        }
        Err(_) => false,
    });
}

#[test]
fn damaged_changes_of_members_are_refused_or_read() {
    let kinds = [
        ConfChangeKind::AddNode,
        ConfChangeKind::AddLearnerNode,
        ConfChangeKind::UpdateNode,
    ];
    drive(&member().add_context(), |text| {
        kinds.iter().all(|kind| {
            let change = ConfChange {
                kind: *kind,
                member: member().id,
                context: text.to_vec().into(),
                ..ConfChange::default()
            };
            Change::decode(&change).is_ok()
        })
    });
}

#[test]
fn damaged_configurations_are_refused_or_read() {
    drive(
        &conf_state_to_json(&conf_state()),
        |text| match conf_state_from_json(text) {
            Ok(state) => {
                let again = conf_state_from_json(&conf_state_to_json(&state));
                assert_eq!(again.unwrap(), state);
                true
            }
            Err(_) => false,
        },
    );
}

#[test]
fn damaged_v2_dumps_are_refused_or_read() {
    drive(&dump(), |text| match Dump::decode(text) {
        Ok(dump) => {
            drop(Dump::decode(&dump.encode()).unwrap());
            true
        }
        Err(_) => false,
    });
}

#[test]
fn json_inside_one_another_does_not_spend_the_stack() {
    for opening in [
        "[",
        "{\"a\":",
        "{\"id\":[",
        "{\"Root\":{\"Children\":{\"x\":",
    ] {
        let deep = format!("{{\"x\":{}", opening.repeat(300_000));
        let deep = deep.as_bytes();
        assert!(Member::from_json(deep).is_err());
        assert!(conf_state_from_json(deep).is_err());
        assert!(Dump::decode(deep).is_err());
    }
}
