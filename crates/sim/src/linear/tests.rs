//! Histories that are linearizable, and some that are not.

use super::*;
use crate::history::{Expected, Response, Row};

fn put(key: &str, value: &str) -> Request {
    Request::Write(Write::Put {
        key: key.into(),
        value: value.into(),
        lease: 0,
    })
}

fn get(serializable: bool) -> Request {
    Request::Read {
        key: None,
        serializable,
    }
}

fn row(key: &str, value: &str, create: i64, modified: i64, version: i64) -> Row {
    Row {
        key: key.into(),
        value: value.into(),
        create_revision: create,
        mod_revision: modified,
        version,
        lease: 0,
    }
}

fn response(revision: i64) -> Response {
    Response {
        revision,
        deleted: 0,
        succeeded: false,
        rows: Vec::new(),
    }
}

fn done(request: Request, called: u64, at: u64, response: Response) -> Operation {
    Operation {
        client: 0,
        called,
        answer: Some((at, response)),
        request,
    }
}

fn lost(request: Request, called: u64) -> Operation {
    Operation {
        client: 0,
        called,
        answer: None,
        request,
    }
}

fn verdict(operations: Vec<Operation>) -> Verdict {
    let history = History {
        operations,
        ..History::default()
    };
    check(&history, Limits::default())
}

fn is_violation(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Violation(_))
}

fn read_of(value: &str, revision: i64) -> Response {
    Response {
        rows: vec![row("a", value, 2, revision, revision - 1)],
        ..response(revision)
    }
}

#[test]
fn answers_of_a_single_store_are_linearizable() {
    let swap = Request::Txn {
        key: b"a".to_vec(),
        expected: Expected::ModRevision(3),
        then: vec![Write::Delete { key: b"a".to_vec() }],
        otherwise: Vec::new(),
    };
    let history = vec![
        done(put("a", "1"), 0, 10, response(2)),
        done(put("a", "2"), 5, 20, response(3)),
        done(get(false), 21, 30, read_of("2", 3)),
        done(
            swap.clone(),
            31,
            40,
            Response {
                succeeded: true,
                ..response(4)
            },
        ),
        done(swap, 41, 50, response(4)),
        done(get(false), 51, 60, response(4)),
    ];
    assert_eq!(verdict(history), Verdict::Linearizable);
}

#[test]
fn a_read_of_the_past_is_found_unless_it_may_be() {
    let history = |serializable| {
        vec![
            done(put("a", "1"), 0, 10, response(2)),
            done(put("a", "2"), 11, 20, response(3)),
            done(get(serializable), 21, 30, read_of("1", 2)),
        ]
    };
    assert!(is_violation(&verdict(history(false))));
    assert_eq!(verdict(history(true)), Verdict::Linearizable);
}

#[test]
fn a_lost_write_and_a_doubled_one_are_found() {
    let twice = vec![
        done(put("a", "1"), 0, 10, response(2)),
        done(put("b", "2"), 11, 20, response(2)),
    ];
    assert!(is_violation(&verdict(twice)));
    let mut observed = BTreeMap::new();
    observed.insert(2, vec![Change::Put(row("a", "1", 2, 2, 1))]);
    observed.insert(3, vec![Change::Put(row("a", "1", 2, 3, 2))]);
    let history = History {
        operations: vec![done(put("a", "1"), 0, 10, response(2))],
        observed,
    };
    assert!(is_violation(&check(&history, Limits::default())));
}

#[test]
fn an_order_against_time_is_found() {
    let history = vec![
        done(put("a", "1"), 0, 10, response(3)),
        done(put("b", "2"), 11, 20, response(2)),
    ];
    assert!(is_violation(&verdict(history)));
}

#[test]
fn a_request_without_an_answer_may_have_happened_or_not() {
    let happened = vec![
        lost(put("a", "1"), 0),
        done(put("a", "2"), 20, 30, response(3)),
        done(get(false), 31, 40, read_of("2", 3)),
    ];
    assert_eq!(verdict(happened), Verdict::Linearizable);
    let not = vec![
        lost(put("b", "1"), 0),
        done(put("a", "1"), 20, 30, response(2)),
        done(
            get(false),
            31,
            40,
            Response {
                rows: vec![row("a", "1", 2, 2, 1)],
                ..response(2)
            },
        ),
    ];
    assert_eq!(verdict(not), Verdict::Linearizable);
    let too_late = vec![
        done(put("a", "2"), 20, 30, response(3)),
        lost(put("a", "1"), 31),
    ];
    assert!(is_violation(&verdict(too_late)));
}

#[test]
fn the_search_finds_who_wrote_what_nobody_was_answered_for() {
    let operations = vec![
        lost(put("a", "1"), 0),
        lost(put("a", "2"), 0),
        lost(put("b", "3"), 0),
        done(
            get(false),
            50,
            60,
            Response {
                rows: vec![row("a", "2", 2, 3, 2), row("b", "3", 4, 4, 1)],
                ..response(4)
            },
        ),
    ];
    assert_eq!(verdict(operations.clone()), Verdict::Linearizable);
    let mut wrong = operations;
    wrong.push(done(get(false), 61, 70, read_of("1", 2)));
    assert!(is_violation(&verdict(wrong)));
}

#[test]
fn a_search_that_is_too_long_is_given_up() {
    let mut operations: Vec<Operation> = (0..30)
        .map(|number| lost(put("a", &number.to_string()), 0))
        .collect();
    operations.push(done(get(false), 1, 2, read_of("none of them", 20)));
    let history = History {
        operations,
        ..History::default()
    };
    let limits = Limits {
        steps: 1_000,
        cached: 1_000,
    };
    assert_eq!(check(&history, limits), Verdict::Unknown);
}

/// All orders of all subsets of lost requests: slow, and plainly right.
fn by_hand(operations: &[Operation], model: &Model, used: &mut Vec<bool>) -> bool {
    let open = |used: &[bool]| {
        let mut left = operations.iter().zip(used);
        !left.any(|(operation, used)| operation.answer.is_some() && !used)
    };
    if open(used) {
        return true;
    }
    for number in 0..operations.len() {
        let operation = &operations[number];
        let too_early = operations.iter().zip(&*used).any(|(other, used)| {
            !used
                && other
                    .answer
                    .as_ref()
                    .is_some_and(|(at, _)| *at < operation.called)
        });
        if used[number] || too_early {
            continue;
        }
        let changes = model.changes_of(&operation.request);
        let fits = operation
            .answer
            .as_ref()
            .is_none_or(|(_, it)| model.agrees(&operation.request, it, &changes));
        if !fits {
            continue;
        }
        let mut next = model.clone();
        if !changes.is_empty() {
            next.apply(&changes);
        }
        used[number] = true;
        let found = by_hand(operations, &next, used);
        used[number] = false;
        if found {
            return true;
        }
    }
    false
}

#[test]
fn small_histories_get_the_verdict_of_trying_everything() {
    let mut random = crate::Random::new(5);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..400 {
        let count = random.index(4) + 2;
        let operations: Vec<Operation> = (0..count)
            .map(|number| {
                let called = random.below(20);
                let request = match random.below(3) {
                    0 => get(false),
                    1 => Request::Write(Write::Delete { key: b"a".to_vec() }),
                    _ => put("a", &number.to_string()),
                };
                if random.chance(300) {
                    return lost(request, called);
                }
                let revision = i64::try_from(random.between(1, 3)).unwrap();
                let mut answer = response(revision);
                answer.deleted = i64::try_from(random.below(2)).unwrap();
                if matches!(request, Request::Read { .. }) && random.chance(700) {
                    let value = random.index(count).to_string();
                    answer.rows = vec![row("a", &value, 2, revision, revision - 1)];
                }
                let at = called + random.below(20);
                done(request, called, at, answer)
            })
            .collect();
        let mut used = vec![false; operations.len()];
        let expected = by_hand(&operations, &Model::default(), &mut used);
        let found = verdict(operations.clone());
        assert_eq!(
            found == Verdict::Linearizable,
            expected,
            "{operations:?}: {found:?}"
        );
        let searched = search::check(&operations, Limits::default());
        assert_eq!(
            searched == Verdict::Linearizable,
            expected,
            "{operations:?}: {searched:?}"
        );
        if expected { good += 1 } else { bad += 1 }
    }
    assert!(good > 20 && bad > 20, "{good} good, {bad} bad");
}
