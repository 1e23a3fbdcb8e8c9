package differ

import (
	"bytes"
	"context"
	"io"
	"math/rand"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// source draws operations.
type source struct {
	*rand.Rand
	// revision is the last one that an answer named.
	revision int64
	// compacted is the last revision that was asked to be compacted to.
	compacted int64
	// keeps says that a transaction deletes nothing, and so may put without naming value or lease: etcd
	// ends when a key that is put so has been deleted by the same transaction.
	keeps bool
	// reborn are revisions in which one transaction may have deleted a key and put it again: a compaction to
	// exactly such a one takes the value from etcd's file and not from its index, and etcd ends when it reads it.
	reborn map[int64]bool
}

// keys are no more than eleven, with the sentinel twelve: etcd sorts more than that unstably.
var keys = []string{"a", "a\x00", "aa", "ab", "b", "c", "\x00", "\xff", "\xff\xff", "z/1", "z/2"}

func (s *source) oneIn(n int) bool { return s.Intn(n) == 0 }

func (s *source) key() []byte {
	if s.oneIn(60) {
		return nil
	}
	return []byte(keys[s.Intn(len(keys))])
}

func (s *source) end() []byte {
	switch s.Intn(6) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	default:
		return []byte(keys[s.Intn(len(keys))])
	}
}

func (s *source) value() []byte {
	switch s.Intn(8) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte{byte(s.Intn(256))}, s.Intn(40))
	default:
		return []byte{byte('0' + s.Intn(10))}
	}
}

// at is a revision to look at: often now, sometimes gone, sometimes to come.
func (s *source) at() int64 {
	switch s.Intn(10) {
	case 0:
		return s.revision + int64(s.Intn(3))
	case 1:
		return -1
	case 2:
		return s.compacted + int64(s.Intn(3)) - 1
	case 3, 4, 5:
		return s.Int63n(s.revision + 1)
	default:
		return 0
	}
}

func (s *source) bound() int64 {
	if s.oneIn(6) {
		return s.Int63n(s.revision+2) - 1
	}
	return 0
}

func (s *source) leaseID() int64 { return int64(s.Intn(6)) }

func (s *source) put() *pb.PutRequest {
	request := &pb.PutRequest{Key: s.key(), Value: s.value(), PrevKv: s.oneIn(3)}
	if s.oneIn(4) {
		request.Lease = s.leaseID()
	}
	if !s.keeps {
		return request
	}
	if s.oneIn(5) {
		request.IgnoreValue = true
		if !s.oneIn(5) {
			request.Value = nil
		}
	}
	if s.oneIn(5) {
		request.IgnoreLease = true
		if !s.oneIn(5) {
			request.Lease = 0
		}
	}
	return request
}

func (s *source) rangeRequest() *pb.RangeRequest {
	request := &pb.RangeRequest{Key: s.key(), RangeEnd: s.end(), Revision: s.at(), Serializable: s.oneIn(3)}
	if s.oneIn(3) {
		request.Limit = int64(s.Intn(7)) - 1
	}
	if s.oneIn(3) {
		request.SortOrder = pb.RangeRequest_SortOrder(s.Intn(3))
		request.SortTarget = pb.RangeRequest_SortTarget(s.Intn(5))
	}
	if s.oneIn(100) {
		request.SortOrder, request.SortTarget = pb.RangeRequest_SortOrder(s.Intn(5)-1), pb.RangeRequest_SortTarget(s.Intn(7)-1)
	}
	request.KeysOnly, request.CountOnly = s.oneIn(5), s.oneIn(6)
	request.MinModRevision, request.MaxModRevision = s.bound(), s.bound()
	request.MinCreateRevision, request.MaxCreateRevision = s.bound(), s.bound()
	return request
}

func (s *source) deleteRange() *pb.DeleteRangeRequest {
	request := &pb.DeleteRangeRequest{Key: s.key(), PrevKv: s.oneIn(2)}
	if s.oneIn(3) {
		request.RangeEnd = s.end()
	}
	return request
}

func (s *source) compare() *pb.Compare {
	c := &pb.Compare{
		Result: pb.Compare_CompareResult(s.Intn(4)), Target: pb.Compare_CompareTarget(s.Intn(5)), Key: s.key(),
	}
	if s.oneIn(3) {
		c.RangeEnd = s.end()
	}
	// Sometimes what is compared with does not belong to the target.
	target := c.Target
	if s.oneIn(15) {
		target = pb.Compare_CompareTarget(s.Intn(6))
	}
	number := s.Int63n(s.revision + 2)
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: s.Int63n(4)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: number}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: number}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: s.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: s.leaseID()}
	}
	return c
}

func (s *source) txn(depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range s.Intn(3) {
		txn.Compare = append(txn.Compare, s.compare())
	}
	txn.Success, txn.Failure = s.ops(depth), s.ops(depth)
	return txn
}

func (s *source) ops(depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	count := s.Intn(5)
	if s.oneIn(60) {
		count = 16 + s.Intn(2)
	}
	for range count {
		op := &pb.RequestOp{}
		switch n := s.Intn(10); {
		case n < 4:
			op.Request = &pb.RequestOp_RequestPut{RequestPut: s.put()}
		case n < 7:
			r := s.rangeRequest()
			if !s.oneIn(8) {
				r.Revision = 0
			}
			op.Request = &pb.RequestOp_RequestRange{RequestRange: r}
		case !s.keeps && (n < 9 || depth == 0):
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: s.deleteRange()}
		case depth == 0:
			op.Request = &pb.RequestOp_RequestRange{RequestRange: s.rangeRequest()}
		default:
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: s.txn(depth - 1)}
		}
		ops = append(ops, op)
	}
	return ops
}

func (s *source) watchCreate() *pb.WatchCreateRequest {
	create := &pb.WatchCreateRequest{Key: s.key(), RangeEnd: s.end(), PrevKv: s.oneIn(2), Fragment: s.oneIn(4)}
	if s.oneIn(2) {
		create.StartRevision = s.at()
	}
	if s.oneIn(4) {
		create.Filters = append(create.Filters, pb.WatchCreateRequest_FilterType(s.Intn(2)))
	}
	if s.oneIn(8) {
		create.WatchId = int64(s.Intn(12))
	}
	return create
}

func (s *source) operation() operation {
	switch n := s.Intn(100); {
	case n < 30:
		s.keeps = true
		return of(s.put(), func(ctx context.Context, to *side, r *pb.PutRequest) (proto.Message, error) {
			return answer(to.kv.Put(ctx, r))
		})
	case n < 50:
		return of(s.rangeRequest(), func(ctx context.Context, to *side, r *pb.RangeRequest) (proto.Message, error) {
			return answer(to.kv.Range(ctx, r))
		})
	case n < 55:
		request := s.rangeRequest()
		if request.SortOrder == pb.RangeRequest_NONE {
			// etcd sorts each piece of the stream by the target, and tells keys twice.
			request.SortTarget = pb.RangeRequest_KEY
		}
		return of(request, rangeStream)
	case n < 63:
		return of(s.deleteRange(), func(ctx context.Context, to *side, r *pb.DeleteRangeRequest) (proto.Message, error) {
			return answer(to.kv.DeleteRange(ctx, r))
		})
	case n < 83:
		s.keeps = s.oneIn(2)
		return of(s.txn(2), func(ctx context.Context, to *side, r *pb.TxnRequest) (proto.Message, error) {
			return answer(to.kv.Txn(ctx, r))
		})
	case n < 88:
		return of(&pb.LeaseGrantRequest{ID: s.leaseID() + 1, TTL: 10000 + s.Int63n(1000)},
			func(ctx context.Context, to *side, r *pb.LeaseGrantRequest) (proto.Message, error) {
				return answer(to.lease.LeaseGrant(ctx, r))
			})
	case n < 90:
		return of(&pb.LeaseRevokeRequest{ID: s.leaseID()}, func(ctx context.Context, to *side, r *pb.LeaseRevokeRequest) (proto.Message, error) {
			return answer(to.lease.LeaseRevoke(ctx, r))
		})
	case n < 93:
		return of(&pb.LeaseTimeToLiveRequest{ID: s.leaseID(), Keys: s.oneIn(2)},
			func(ctx context.Context, to *side, r *pb.LeaseTimeToLiveRequest) (proto.Message, error) {
				response, err := to.lease.LeaseTimeToLive(ctx, r)
				if err != nil {
					return nil, err
				}
				if response.TTL > 0 {
					response.TTL = 1
				}
				// etcd takes keys out of a map.
				sortBytes(response.Keys)
				return response, nil
			})
	case n < 95:
		return of(&pb.LeaseLeasesRequest{}, func(ctx context.Context, to *side, r *pb.LeaseLeasesRequest) (proto.Message, error) {
			response, err := to.lease.LeaseLeases(ctx, r)
			if err != nil {
				return nil, err
			}
			sortLeases(response.Leases)
			return response, nil
		})
	case n < 98:
		at := s.at()
		return of(&pb.HashKVRequest{Revision: at}, func(ctx context.Context, to *side, r *pb.HashKVRequest) (proto.Message, error) {
			return answer(to.maint.HashKV(ctx, r))
		})
	default:
		to := s.at()
		if !s.oneIn(4) {
			to = s.compacted + s.Int63n(max(1, s.revision-s.compacted))
		}
		if to == 0 {
			// etcd answers HashKV of the current revision with the hash of this compaction ever after: not copied.
			to = 1
		}
		for s.reborn[to] {
			to--
		}
		// Physical, so that what HashKV leaves out does not depend on how far the work is.
		return of(&pb.CompactionRequest{Revision: to, Physical: true}, func(ctx context.Context, to *side, r *pb.CompactionRequest) (proto.Message, error) {
			return answer(to.kv.Compact(ctx, r))
		})
	}
}

// note learns from a request that was answered, with the revision that its answer named.
func (s *source) note(request proto.Message, revision int64) {
	switch r := request.(type) {
	case *pb.CompactionRequest:
		if r.Revision <= s.revision {
			s.compacted = max(s.compacted, r.Revision)
		}
	case *pb.TxnRequest:
		if puts, deletes := writes(r); puts && deletes {
			s.reborn[revision] = true
		}
	}
}

// writes says whether a transaction may put, and whether it may delete, in any branch at any depth.
func writes(txn *pb.TxnRequest) (puts, deletes bool) {
	for _, op := range append(append([]*pb.RequestOp{}, txn.Success...), txn.Failure...) {
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			puts = true
		case *pb.RequestOp_RequestDeleteRange:
			deletes = true
		case *pb.RequestOp_RequestTxn:
			p, d := writes(r.RequestTxn)
			puts, deletes = puts || p, deletes || d
		}
	}
	return puts, deletes
}

func of[R proto.Message](request R, send func(context.Context, *side, R) (proto.Message, error)) operation {
	return operation{request, func(ctx context.Context, to *side) (proto.Message, error) { return send(ctx, to, request) }}
}

func answer[M proto.Message](message M, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return message, nil
}

// rangeStream puts the pieces of a stream together: where they are cut is not told.
func rangeStream(ctx context.Context, to *side, request *pb.RangeRequest) (proto.Message, error) {
	stream, err := to.kv.RangeStream(ctx, request)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for {
		piece, err := stream.Recv()
		if err == io.EOF {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		proto.Merge(whole, piece.RangeResponse)
	}
}
