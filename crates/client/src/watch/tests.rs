use keelson_proto::rpc::mvccpb::KeyValue;

use super::*;

fn event(revision: i64) -> Event {
    Event {
        kv: Some(KeyValue {
            mod_revision: revision,
            ..KeyValue::default()
        }),
        ..Event::default()
    }
}

fn answer(revision: i64, events: &[i64], fragment: bool) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(pb::ResponseHeader {
            revision,
            ..pb::ResponseHeader::default()
        }),
        events: events.iter().copied().map(event).collect(),
        fragment,
        ..pb::WatchResponse::default()
    }
}

fn revisions(batch: &Batch) -> Vec<i64> {
    batch.events.iter().map(mod_revision).collect()
}

#[test]
fn a_watch_from_now_begins_after_the_revision_it_was_created_at() {
    let mut position = Position::new(0);
    position.stands_at(7);
    assert_eq!(position.next, 8);
    position.stands_at(20);
    assert_eq!(position.next, 8, "resuming does not skip what came between");
}

#[test]
fn events_move_the_resume_point_to_after_the_last_of_them_not_to_the_header() {
    let mut position = Position::new(3);
    let batch = position.take(answer(90, &[3, 3, 5], false)).unwrap();
    assert_eq!(revisions(&batch), [3, 3, 5]);
    assert_eq!(position.next, 6);
}

#[test]
fn progress_moves_the_resume_point_and_never_back() {
    let mut position = Position::new(3);
    let batch = position.take(answer(10, &[], false)).unwrap();
    assert_eq!(
        (batch.revision, batch.events.len(), position.next),
        (10, 0, 11)
    );
    position.take(answer(4, &[], false)).unwrap();
    assert_eq!(position.next, 11);
}

#[test]
fn progress_on_a_server_that_lags_does_not_promise_what_another_one_still_owed() {
    let mut position = Position::new(3);
    // The first server is at 9 and has sent the events up to 5 when its stream breaks.
    position.take(answer(9, &[5], false)).unwrap();
    position.stands_at(4);
    let batch = position.take(answer(4, &[], false)).unwrap();
    assert_eq!((batch.revision, position.next), (5, 6));
}

#[test]
fn events_that_were_delivered_before_are_dropped_and_are_no_progress() {
    let mut position = Position::new(6);
    assert_eq!(position.take(answer(50, &[4, 5], false)), None);
    assert_eq!(position.next, 6);
    let batch = position.take(answer(50, &[5, 6], false)).unwrap();
    assert_eq!(revisions(&batch), [6]);
}

#[test]
fn fragments_become_one_batch_and_count_only_when_whole() {
    let mut position = Position::new(2);
    assert_eq!(position.take(answer(9, &[2], true)), None);
    assert_eq!(position.take(answer(9, &[3, 4], true)), None);
    assert_eq!(position.next, 2);
    let batch = position.take(answer(9, &[4], false)).unwrap();
    assert_eq!(revisions(&batch), [2, 3, 4, 4]);
    assert_eq!(position.next, 5);
}

#[test]
fn half_a_batch_is_forgotten_when_the_stream_breaks() {
    let mut position = Position::new(2);
    position.take(answer(9, &[2], true));
    position.stands_at(9);
    let batch = position.take(answer(9, &[2, 3], false)).unwrap();
    assert_eq!(revisions(&batch), [2, 3]);
}

#[test]
fn a_compacted_resume_point_is_told_with_both_revisions() {
    let refused = pb::WatchResponse {
        canceled: true,
        compact_revision: 12,
        ..pb::WatchResponse::default()
    };
    let Error::WatchCompacted {
        needed,
        compact_revision,
    } = refusal(&refused, 5)
    else {
        panic!("not compacted");
    };
    assert_eq!((needed, compact_revision), (5, 12));
}
