//! Requests in a form that reads well. Each is a thin shell around the wire type, which every call
//! takes as well.

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb as pb;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::request_op::Request;

/// The end of a span that has none: every key from its begin on.
const NO_END: &[u8] = b"\0";

/// One key, or keys in a half-open interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
}

impl Span {
    /// Only `key`.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Span {
        Span {
            key: key.into(),
            range_end: Bytes::new(),
        }
    }

    /// The keys from `begin` to before `end`.
    #[must_use]
    pub fn range(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> Span {
        Span {
            key: begin.into(),
            range_end: end.into(),
        }
    }

    /// The keys from `begin` on.
    #[must_use]
    pub fn from(begin: impl Into<Bytes>) -> Span {
        Span::range(begin, NO_END)
    }

    /// The keys that begin with `prefix`; all keys if it is empty.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Span {
        let prefix = prefix.into();
        if prefix.is_empty() {
            return Span::all();
        }
        let end = prefix.iter().rposition(|&byte| byte < u8::MAX).map_or_else(
            || Bytes::from_static(NO_END),
            |last| {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                Bytes::from(end)
            },
        );
        Span::range(prefix, end)
    }

    /// All keys.
    #[must_use]
    pub fn all() -> Span {
        Span::range(NO_END, NO_END)
    }
}

/// What a result is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum SortBy {
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// Which way a result is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Order {
    Ascending,
    Descending,
}

macro_rules! wraps {
    ($shell:ident, $wire:ty) => {
        impl From<$shell> for $wire {
            fn from(shell: $shell) -> $wire {
                shell.0
            }
        }
    };
}

macro_rules! over_spans {
    ($shell:ident) => {
        impl $shell {
            /// Of one key.
            #[must_use]
            pub fn key(key: impl Into<bytes::Bytes>) -> $shell {
                $shell::span(Span::key(key))
            }

            /// Of the keys from `begin` to before `end`.
            #[must_use]
            pub fn range(begin: impl Into<bytes::Bytes>, end: impl Into<bytes::Bytes>) -> $shell {
                $shell::span(Span::range(begin, end))
            }

            /// Of the keys that begin with `prefix`.
            #[must_use]
            pub fn prefix(prefix: impl Into<bytes::Bytes>) -> $shell {
                $shell::span(Span::prefix(prefix))
            }

            /// Of all keys.
            #[must_use]
            pub fn all() -> $shell {
                $shell::span(Span::all())
            }
        }
    };
}
pub(crate) use over_spans;
pub(crate) use wraps;

/// A read.
#[derive(Clone, Debug, Default)]
pub struct Get(pb::RangeRequest);

wraps!(Get, pb::RangeRequest);
over_spans!(Get);

impl Get {
    /// Of the keys of `span`.
    #[must_use]
    pub fn span(span: Span) -> Get {
        Get(pb::RangeRequest {
            key: span.key,
            range_end: span.range_end,
            ..pb::RangeRequest::default()
        })
    }

    /// At most this many keys; 0: all.
    #[must_use]
    pub fn limit(mut self, limit: i64) -> Get {
        self.0.limit = limit;
        self
    }

    /// As of `revision`; 0: now.
    #[must_use]
    pub fn revision(mut self, revision: i64) -> Get {
        self.0.revision = revision;
        self
    }

    /// What the serving member has, without asking whether it is the latest.
    #[must_use]
    pub fn serializable(mut self) -> Get {
        self.0.serializable = true;
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Get {
        self.0.keys_only = true;
        self
    }

    /// Only the number of keys.
    #[must_use]
    pub fn count_only(mut self) -> Get {
        self.0.count_only = true;
        self
    }

    /// Sorted; without this, by key.
    #[must_use]
    pub fn sorted(mut self, by: SortBy, order: Order) -> Get {
        let target = match by {
            SortBy::Key => SortTarget::Key,
            SortBy::Version => SortTarget::Version,
            SortBy::CreateRevision => SortTarget::Create,
            SortBy::ModRevision => SortTarget::Mod,
            SortBy::Value => SortTarget::Value,
        };
        let order = match order {
            Order::Ascending => SortOrder::Ascend,
            Order::Descending => SortOrder::Descend,
        };
        self.0.sort_target = target.into();
        self.0.sort_order = order.into();
        self
    }
}

/// A write of one key.
#[derive(Clone, Debug, Default)]
pub struct Put(pb::PutRequest);

wraps!(Put, pb::PutRequest);

impl Put {
    /// `value` under `key`.
    #[must_use]
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put(pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..pb::PutRequest::default()
        })
    }

    /// Deleted when the lease ends; 0: no lease.
    #[must_use]
    pub fn lease(mut self, id: i64) -> Put {
        self.0.lease = id;
        self
    }

    /// Answers with the key as it was before.
    #[must_use]
    pub fn prev_kv(mut self) -> Put {
        self.0.prev_kv = true;
        self
    }

    /// Keeps the value that the key has (and then none may be given).
    #[must_use]
    pub fn ignore_value(mut self) -> Put {
        self.0.ignore_value = true;
        self
    }

    /// Keeps the lease that the key has (and then none may be given).
    #[must_use]
    pub fn ignore_lease(mut self) -> Put {
        self.0.ignore_lease = true;
        self
    }
}

/// A deletion.
#[derive(Clone, Debug, Default)]
pub struct Delete(pb::DeleteRangeRequest);

wraps!(Delete, pb::DeleteRangeRequest);
over_spans!(Delete);

impl Delete {
    /// Of the keys of `span`.
    #[must_use]
    pub fn span(span: Span) -> Delete {
        Delete(pb::DeleteRangeRequest {
            key: span.key,
            range_end: span.range_end,
            prev_kv: false,
        })
    }

    /// Answers with the keys as they were before.
    #[must_use]
    pub fn prev_kv(mut self) -> Delete {
        self.0.prev_kv = true;
        self
    }
}

/// How a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// A condition of a transaction.
#[derive(Clone, Debug)]
pub struct Compare(pb::Compare);

wraps!(Compare, pb::Compare);

impl Compare {
    fn new(span: Span, relation: Relation, target: CompareTarget, operand: TargetUnion) -> Compare {
        let result = match relation {
            Relation::Equal => CompareResult::Equal,
            Relation::NotEqual => CompareResult::NotEqual,
            Relation::Greater => CompareResult::Greater,
            Relation::Less => CompareResult::Less,
        };
        Compare(pb::Compare {
            result: result.into(),
            target: target.into(),
            key: span.key,
            range_end: span.range_end,
            target_union: Some(operand),
        })
    }

    /// On the number of writes since the key was created; 0: the key does not exist.
    #[must_use]
    pub fn version(span: Span, relation: Relation, operand: i64) -> Compare {
        Compare::new(
            span,
            relation,
            CompareTarget::Version,
            TargetUnion::Version(operand),
        )
    }

    /// On the revision at which the key was created; 0: the key does not exist.
    #[must_use]
    pub fn create_revision(span: Span, relation: Relation, operand: i64) -> Compare {
        Compare::new(
            span,
            relation,
            CompareTarget::Create,
            TargetUnion::CreateRevision(operand),
        )
    }

    /// On the revision of the last write; 0: the key does not exist.
    #[must_use]
    pub fn mod_revision(span: Span, relation: Relation, operand: i64) -> Compare {
        Compare::new(
            span,
            relation,
            CompareTarget::Mod,
            TargetUnion::ModRevision(operand),
        )
    }

    /// On the value; false if the key does not exist.
    #[must_use]
    pub fn value(span: Span, relation: Relation, operand: impl Into<Bytes>) -> Compare {
        Compare::new(
            span,
            relation,
            CompareTarget::Value,
            TargetUnion::Value(operand.into()),
        )
    }

    /// On the lease.
    #[must_use]
    pub fn lease(span: Span, relation: Relation, operand: i64) -> Compare {
        Compare::new(
            span,
            relation,
            CompareTarget::Lease,
            TargetUnion::Lease(operand),
        )
    }
}

/// An operation of a transaction.
#[derive(Clone, Debug)]
pub struct Op(pb::RequestOp);

wraps!(Op, pb::RequestOp);

impl Op {
    fn new(request: Request) -> Op {
        Op(pb::RequestOp {
            request: Some(request),
        })
    }
}

impl From<Get> for Op {
    fn from(get: Get) -> Op {
        Op::new(Request::RequestRange(get.0))
    }
}

impl From<Put> for Op {
    fn from(put: Put) -> Op {
        Op::new(Request::RequestPut(put.0))
    }
}

impl From<Delete> for Op {
    fn from(delete: Delete) -> Op {
        Op::new(Request::RequestDeleteRange(delete.0))
    }
}

impl From<Txn> for Op {
    fn from(txn: Txn) -> Op {
        Op::new(Request::RequestTxn(txn.0))
    }
}

/// A transaction: if all conditions hold one list of operations, else the other.
#[derive(Clone, Debug, Default)]
pub struct Txn(pb::TxnRequest);

wraps!(Txn, pb::TxnRequest);

impl Txn {
    /// Without conditions, which hold, and without operations.
    #[must_use]
    pub fn new() -> Txn {
        Txn::default()
    }

    /// One more condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Txn {
        self.0.compare.push(compare.0);
        self
    }

    /// One more operation if the conditions hold.
    #[must_use]
    pub fn then(mut self, op: impl Into<Op>) -> Txn {
        self.0.success.push(op.into().0);
        self
    }

    /// One more operation if they do not.
    #[must_use]
    pub fn otherwise(mut self, op: impl Into<Op>) -> Txn {
        self.0.failure.push(op.into().0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_string_of_its_length() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"ab\xff", b"ac"),
            (b"\xff\xff", b"\0"),
            (b"a\xff\xff", b"b"),
        ] {
            let span = Span::prefix(prefix);
            assert_eq!((&span.key[..], &span.range_end[..]), (prefix, end));
        }
        assert_eq!(Span::prefix(""), Span::all());
    }
}
