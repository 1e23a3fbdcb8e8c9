//! Transactions: compare, check, execute.
//!
//! All conditions, those of nested transactions too, are evaluated against the state before the
//! transaction. Only the branches that will run are checked; if one operation of theirs cannot be
//! carried out, nothing is changed.
//!
//! # Source
//!
//! etcd v3.7.1 `server/etcdserver/txn/txn.go`.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use keelson_proto::ApiError;
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::change::{Change, Deleted};
use crate::index::{KeyRange, KeyState};
use crate::outcome::{OpOutcome, Outcome};
use crate::range::PlanError;
use crate::store::peek;
use crate::{Error, Revision, Shared, Store};

/// Which branches run: that of a transaction, and those of the transactions in it.
struct Path {
    succeeded: bool,
    inner: Vec<Path>,
}

/// Why a transaction or a put does not run.
pub(crate) enum Failure {
    /// It is refused; nothing was changed.
    Refused(ApiError),
    /// The file failed.
    Store(Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Refused(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

/// What a transaction did.
pub(crate) struct TxnDone {
    pub(crate) succeeded: bool,
    pub(crate) ops: Vec<OpOutcome>,
    pub(crate) revision: i64,
    /// The oldest revision that a range of it names, if any does.
    pub(crate) oldest_read: Option<i64>,
}

/// Runs a transaction.
pub(crate) fn run(store: &mut Store, txn: &TxnRequest, wanted: bool) -> Result<TxnDone, Failure> {
    let mut compared = 0;
    let path = decide(store, txn, &mut compared)?;
    let before = store.ops;
    store.ops.ranges += compared;
    store.ops.end_phase(before);
    check(store, txn, &path)?;
    let mut change = Change::begin(store);
    let ops = execute(&mut change, txn, &path, wanted)?;
    let revision = change.finish();
    Ok(TxnDone {
        succeeded: path.succeeded,
        ops,
        revision,
        oldest_read: oldest_read(txn, &path),
    })
}

/// Runs a transaction of ranges alone, which needs no entry, on what is published: an
/// [`Outcome::Txn`], as if it had been applied now. May wait for the disk.
///
/// # Errors
///
/// What a range asks for is not there ([`ApiError::FutureRev`], [`ApiError::Compacted`]), or the file
/// fails. A transaction that is not of ranges alone is [`ApiError::KeyNotFound`].
pub fn read_txn(shared: &Arc<Shared>, txn: &TxnRequest) -> Result<Outcome, PlanError> {
    let (revision, compacted, pin) = loop {
        let revision = shared.revision();
        let pin = shared.pin(revision);
        let compacted = shared.compact_revision();
        if compacted <= revision {
            break (revision, compacted, pin);
        }
    };
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(shared, revision, compare)? {
            succeeded = false;
            break;
        }
    }
    let mut ops = Vec::new();
    for op in branch(txn, succeeded) {
        let Some(Request::RequestRange(range)) = &op.request else {
            return Err(ApiError::KeyNotFound.into());
        };
        check_range(revision, compacted, range)?;
        ops.push(OpOutcome::Range {
            at: Revision::end_of(revision),
            header: revision,
        });
    }
    Ok(Outcome::Txn {
        revision,
        succeeded,
        ops,
        pin: Some(pin),
    })
}

/// The oldest revision that a range of the branches that run names, if any does.
fn oldest_read(txn: &TxnRequest, path: &Path) -> Option<i64> {
    let mut inner = path.inner.iter();
    let reads = branch(txn, path.succeeded)
        .iter()
        .filter_map(|op| match &op.request {
            Some(Request::RequestRange(range)) => Some(range.revision).filter(|main| *main > 0),
            Some(Request::RequestTxn(txn)) => oldest_read(txn, inner.next()?),
            _ => None,
        });
    reads.min()
}

fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// Adds to `compared` how many conditions were looked at.
fn decide(store: &Store, txn: &TxnRequest, compared: &mut u64) -> Result<Path, Error> {
    let mut succeeded = true;
    for compare in &txn.compare {
        *compared += 1;
        if !holds(&store.shared, store.revision, compare)? {
            succeeded = false;
            break;
        }
    }
    let nested = branch(txn, succeeded)
        .iter()
        .filter_map(|op| match &op.request {
            Some(Request::RequestTxn(txn)) => Some(decide(store, txn, compared)),
            _ => None,
        });
    Ok(Path {
        succeeded,
        inner: nested.collect::<Result<_, _>>()?,
    })
}

/// Whether a condition holds for every key of its range.
fn holds(shared: &Shared, revision: i64, compare: &Compare) -> Result<bool, Error> {
    let at = Revision::end_of(revision);
    let reader = shared.index();
    let range = KeyRange::new(&compare.key, &compare.range_end);
    let mut states: Vec<KeyState> = Vec::new();
    match range {
        KeyRange::Single(key) => states.extend(reader.get(key, at)),
        KeyRange::Range { .. } => reader.visit(range, at, None, &mut |found| {
            states.push(KeyState {
                rev: found.rev,
                create: found.create,
                version: found.version,
                stored_len: found.stored_len,
            });
            ControlFlow::Continue(())
        }),
    }
    if states.is_empty() {
        // A missing key has no value to compare with; its numbers are zero.
        let of_value = CompareTarget::try_from(compare.target) == Ok(CompareTarget::Value);
        return Ok(!of_value && accepts(compare, numbers(compare, None, 0)));
    }
    for state in &states {
        let ordering = match CompareTarget::try_from(compare.target) {
            Ok(CompareTarget::Value | CompareTarget::Lease) => {
                let Some(bytes) = shared.record(state.rev)? else {
                    return Err(Error::Missing {
                        what: "the record of a key that is alive",
                    });
                };
                let peeked = peek(&bytes)?;
                match &compare.target_union {
                    Some(TargetUnion::Value(value))
                        if compare.target == CompareTarget::Value as i32 =>
                    {
                        peeked.value.cmp(value)
                    }
                    _ if compare.target == CompareTarget::Value as i32 => peeked.value.cmp(&[]),
                    _ => numbers(compare, Some(state), peeked.lease),
                }
            }
            _ => numbers(compare, Some(state), 0),
        };
        if !accepts(compare, ordering) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares a number of a key with the operand. An operand of another kind counts as zero, an
/// unknown target as equal.
fn numbers(compare: &Compare, state: Option<&KeyState>, lease: i64) -> Ordering {
    let union = compare.target_union.as_ref();
    let (found, operand) = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => (
            state.map_or(0, |state| state.version),
            union.and_then(|union| match union {
                TargetUnion::Version(version) => Some(*version),
                _ => None,
            }),
        ),
        Ok(CompareTarget::Create) => (
            state.map_or(0, |state| state.create),
            union.and_then(|union| match union {
                TargetUnion::CreateRevision(revision) => Some(*revision),
                _ => None,
            }),
        ),
        Ok(CompareTarget::Mod) => (
            state.map_or(0, |state| state.rev.main),
            union.and_then(|union| match union {
                TargetUnion::ModRevision(revision) => Some(*revision),
                _ => None,
            }),
        ),
        Ok(CompareTarget::Lease) => (
            lease,
            union.and_then(|union| match union {
                TargetUnion::Lease(lease) => Some(*lease),
                _ => None,
            }),
        ),
        Ok(CompareTarget::Value) | Err(_) => return Ordering::Equal,
    };
    found.cmp(&operand.unwrap_or_default())
}

fn accepts(compare: &Compare, ordering: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

fn check(store: &Store, txn: &TxnRequest, path: &Path) -> Result<(), Failure> {
    let mut inner = path.inner.iter();
    for op in branch(txn, path.succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) => {
                check_range(store.revision, store.compact_revision, range)?;
            }
            Some(Request::RequestPut(put)) => check_put(store, put)?,
            Some(Request::RequestDeleteRange(_)) | None => {}
            Some(Request::RequestTxn(txn)) => {
                let path = inner
                    .next()
                    .expect("each nested transaction has been decided");
                check(store, txn, path)?;
            }
        }
    }
    Ok(())
}

/// A revision in a transaction: negative ones read the current state until the first compaction.
fn check_range(current: i64, compacted: i64, range: &RangeRequest) -> Result<(), ApiError> {
    match range.revision {
        0 => Ok(()),
        revision if revision > current => Err(ApiError::FutureRev),
        revision if revision < compacted => Err(ApiError::Compacted),
        _ => Ok(()),
    }
}

/// Whether a put can be carried out.
pub(crate) fn check_put(store: &Store, put: &PutRequest) -> Result<(), ApiError> {
    if put.lease != 0 && store.shared.leases().get(LeaseId(put.lease)).is_none() {
        return Err(ApiError::LeaseNotFound);
    }
    if (put.ignore_value || put.ignore_lease)
        && store
            .index
            .reader()
            .get(&put.key, Revision::end_of(store.revision))
            .is_none()
    {
        return Err(ApiError::KeyNotFound);
    }
    Ok(())
}

fn execute(
    change: &mut Change<'_>,
    txn: &TxnRequest,
    path: &Path,
    wanted: bool,
) -> Result<Vec<OpOutcome>, Error> {
    let ops = branch(txn, path.succeeded);
    let mut inner = path.inner.iter();
    let mut outcomes = Vec::with_capacity(if wanted { ops.len() } else { 0 });
    for op in ops {
        let outcome = match &op.request {
            Some(Request::RequestRange(_)) => {
                change.store.ops.ranges += 1;
                Some(OpOutcome::Range {
                    at: change.at(),
                    header: change.revision(),
                })
            }
            Some(Request::RequestPut(put)) => {
                let done = change.put(put)?;
                let prev = done.prev.filter(|_| put.prev_kv);
                Some(OpOutcome::Put {
                    revision: change.revision(),
                    prev,
                })
            }
            Some(Request::RequestDeleteRange(delete)) => {
                let Deleted { count, prevs } = change.delete_range(delete);
                Some(OpOutcome::Delete {
                    revision: change.revision(),
                    deleted: count,
                    prevs: if delete.prev_kv { prevs } else { Vec::new() },
                })
            }
            Some(Request::RequestTxn(txn)) => {
                let path = inner
                    .next()
                    .expect("each nested transaction has been decided");
                let ops = execute(change, txn, path, wanted)?;
                Some(OpOutcome::Txn {
                    succeeded: path.succeeded,
                    ops,
                })
            }
            None => None,
        };
        if wanted {
            outcomes.extend(outcome);
        }
    }
    Ok(outcomes)
}
