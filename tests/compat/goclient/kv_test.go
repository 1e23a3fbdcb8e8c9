package goclient

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestPutGetDelete(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	equal(t, "a fresh store's revision", must(c.Get(ctx, "a"))(t).Header.Revision, 1)
	equal(t, "first put", put(t, c, "a", "1"), 2)
	put(t, c, "b", "1")
	response := must(c.Put(ctx, "a", "2", clientv3.WithPrevKV()))(t)
	equal(t, "previous", show(response.PrevKv), "a=1 2/2/1")
	response = must(c.Put(ctx, "new", "1", clientv3.WithPrevKV()))(t)
	equal(t, "previous of a new key", show(response.PrevKv), "none")
	lease := must(c.Grant(ctx, 600))(t).ID
	put(t, c, "a", "3", clientv3.WithLease(lease))
	put(t, c, "a", "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease))
	put(t, c, "a", "4", clientv3.WithIgnoreLease())
	got := must(c.Get(ctx, "a"))(t)
	equal(t, "kept lease", got.Kvs[0].Lease, int64(lease))
	equal(t, "value and revisions", fmt.Sprintf("%s %d/%d/%d", got.Kvs[0].Value, got.Kvs[0].CreateRevision, got.Kvs[0].ModRevision, got.Kvs[0].Version), "4 2/8/5")
	put(t, c, "a", "5")
	equal(t, "a put without lease detaches", must(c.Get(ctx, "a"))(t).Kvs[0].Lease, 0)

	deleted := must(c.Delete(ctx, "a", clientv3.WithPrevKV()))(t)
	equal(t, "deleted", fmt.Sprint(deleted.Deleted, deleted.Header.Revision, " ", showAll(deleted.PrevKvs)), "1 10 a=5 2/9/6")
	nothing := must(c.Delete(ctx, "missing", clientv3.WithPrefix()))(t)
	equal(t, "deleting nothing", fmt.Sprint(nothing.Deleted, nothing.Header.Revision), "0 10")
	put(t, c, "a", "again")
	equal(t, "re-created", showAll(must(c.Get(ctx, "a"))(t).Kvs), "a=again 11/11/1")
	put(t, c, "\x00\xff", "\x00")
	put(t, c, "empty", "")
	all := must(c.Get(ctx, "\x00", clientv3.WithFromKey()))(t)
	equal(t, "all keys", fmt.Sprintf("%q", keys(all.Kvs)), fmt.Sprintf("%q", "\x00\xff a b empty new"))
	rest := must(c.Delete(ctx, "b", clientv3.WithFromKey()))(t)
	equal(t, "deleted from a key on", rest.Deleted, 3)
}

func TestRangeOptions(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	for i, key := range []string{"k/c", "k/a", "k/e", "k/b", "k/d"} { // revisions 2..6
		put(t, c, key, fmt.Sprint(9-i))
	}
	put(t, c, "k/a", "0") // 7
	put(t, c, "z", "z")   // 8
	get := func(options ...clientv3.OpOption) *clientv3.GetResponse {
		t.Helper()
		return must(c.Get(ctx, "k/", append([]clientv3.OpOption{clientv3.WithPrefix()}, options...)...))(t)
	}
	for _, test := range []struct {
		name    string
		options []clientv3.OpOption
		want    string
		count   int64
		more    bool
	}{
		{"prefix", nil, "k/a k/b k/c k/d k/e", 5, false},
		{"limit", []clientv3.OpOption{clientv3.WithLimit(2)}, "k/a k/b", 5, true},
		{"limit equal to the count", []clientv3.OpOption{clientv3.WithLimit(5)}, "k/a k/b k/c k/d k/e", 5, false},
		{"count only", []clientv3.OpOption{clientv3.WithCountOnly()}, "", 5, false},
		{"old revision", []clientv3.OpOption{clientv3.WithRev(4)}, "k/a k/c k/e", 3, false},
		{"first revision", []clientv3.OpOption{clientv3.WithRev(1)}, "", 0, false},
		{"descending", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "k/e k/d k/c k/b k/a", 5, false},
		{"by value", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}, "k/a k/d k/b k/e k/c", 5, false},
		{"by create revision", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend)}, "k/c k/a k/e k/b k/d", 5, false},
		{"by mod revision, newest first", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(2)}, "k/a k/d", 5, true},
		{"by version", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(1)}, "k/a", 5, true},
		{"min mod revision", []clientv3.OpOption{clientv3.WithMinModRev(5)}, "k/a k/b k/d", 5, false},
		{"max mod revision", []clientv3.OpOption{clientv3.WithMaxModRev(4)}, "k/c k/e", 5, false},
		{"min create revision", []clientv3.OpOption{clientv3.WithMinCreateRev(4)}, "k/b k/d k/e", 5, false},
		{"max create revision and limit", []clientv3.OpOption{clientv3.WithMaxCreateRev(4), clientv3.WithLimit(2)}, "k/a k/c", 5, true},
		{"serializable", []clientv3.OpOption{clientv3.WithSerializable()}, "k/a k/b k/c k/d k/e", 5, false},
	} {
		got := get(test.options...)
		equal(t, test.name, fmt.Sprintf("%q %d %v", keys(got.Kvs), got.Count, got.More), fmt.Sprintf("%q %d %v", test.want, test.count, test.more))
		equal(t, test.name+": the revision is the current one", got.Header.Revision, 8)
	}
	equal(t, "keys only", showAll(get(clientv3.WithKeysOnly(), clientv3.WithLimit(1)).Kvs), "k/a= 3/7/2")
	r := stubs(c)
	// A target without an order sorts ascending, but after the limit (and one more) has cut.
	unordered := must(r.Range(ctx, &pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), Limit: 3, SortTarget: pb.RangeRequest_MOD}))(t)
	equal(t, "sorted after the limit", keys(unordered.Kvs), "k/c k/b k/d")
	negative := must(r.Range(ctx, &pb.RangeRequest{Key: []byte("k/a"), Revision: -1, Limit: -1}))(t)
	equal(t, "negative revision and limit", showAll(negative.Kvs), "k/a=0 3/7/2")
	empty := must(r.Range(ctx, &pb.RangeRequest{Key: []byte("k/b"), RangeEnd: []byte("k/a")}))(t)
	equal(t, "an empty interval", len(empty.Kvs), 0)
}

func TestRangeStream(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	r := stubs(c)
	value := strings.Repeat("v", 20_000)
	for i := range 300 {
		put(t, c, fmt.Sprintf("s/%03d", i), value)
	}
	read := func(request *pb.RangeRequest) (kvs []*mvccpb.KeyValue, last *pb.RangeResponse, chunks int, err error) {
		t.Helper()
		stream := must(r.RangeStream(ctx, request))(t)
		for {
			response, err := stream.Recv()
			if err == io.EOF {
				return kvs, last, chunks, nil
			}
			if err != nil {
				return nil, nil, 0, err
			}
			if last != nil && last.Header != nil {
				t.Error("a chunk after the one with the header")
			}
			last = response.RangeResponse
			kvs = append(kvs, last.Kvs...)
			chunks++
		}
	}
	request := func() *pb.RangeRequest { return &pb.RangeRequest{Key: []byte("s/"), RangeEnd: []byte("s0")} }
	plain := must(c.Get(ctx, "s/", clientv3.WithPrefix()))(t)
	kvs, last, chunks, err := read(request())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the keys of a plain range", keys(kvs), keys(plain.Kvs))
	equal(t, "the last value", string(kvs[299].Value) == value, true)
	equal(t, "count, more, revision", fmt.Sprint(last.Count, last.More, last.Header.Revision), "300 false 301")
	if chunks < 3 {
		t.Errorf("%d chunks for six megabytes", chunks)
	}
	limited := request()
	limited.Limit = 25
	kvs, last, _, err = read(limited)
	equal(t, "limited", fmt.Sprint(len(kvs), last.GetCount(), last.GetMore(), err), "25 300 true <nil>")
	old := request()
	old.Revision = 12
	kvs, last, _, err = read(old)
	equal(t, "at an old revision", fmt.Sprint(len(kvs), last.GetCount(), err), "11 11 <nil>")
	count := request()
	count.CountOnly = true
	kvs, last, chunks, err = read(count)
	equal(t, "count only", fmt.Sprint(len(kvs), last.GetCount(), chunks, err), "0 300 1 <nil>")
	none := &pb.RangeRequest{Key: []byte("missing")}
	kvs, last, chunks, err = read(none)
	equal(t, "nothing", fmt.Sprint(len(kvs), last.GetCount(), chunks, last.GetHeader().GetRevision(), err), "0 0 1 301 <nil>")

	descending, filtered, future := request(), request(), request()
	descending.SortOrder = pb.RangeRequest_DESCEND
	filtered.MaxCreateRevision = 9
	future.Revision = 1000
	_, _, _, err = read(descending)
	refused(t, "descending", err, codes.Unimplemented, "RangeStream does not support custom sort orders")
	_, _, _, err = read(filtered)
	refused(t, "filtered", err, codes.Unimplemented, "RangeStream does not support revision filters")
	_, _, _, err = read(future)
	refused(t, "future", err, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision")
	_, _, _, err = read(&pb.RangeRequest{})
	refused(t, "without key", err, codes.InvalidArgument, "etcdserver: key is not provided")
	must(c.Compact(ctx, 50))(t)
	_, _, _, err = read(old)
	refused(t, "compacted", err, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted")
	whole := must(clientv3.GetStreamToGetResponse(must(c.GetStream(ctx, "s/", clientv3.WithPrefix()))(t)))(t)
	equal(t, "through the client library", fmt.Sprint(len(whole.Kvs), whole.Count, whole.Header.Revision), "300 300 301")
}

func TestCompaction(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	for i := range 10 {
		put(t, c, "a", fmt.Sprint(i)) // 2..11
	}
	must(c.Delete(ctx, "a"))(t) // 12
	put(t, c, "b", "1")         // 13
	must(c.Compact(ctx, 8, clientv3.WithCompactPhysical()))(t)
	equal(t, "exactly the compacted revision", showAll(must(c.Get(ctx, "a", clientv3.WithRev(8)))(t).Kvs), "a=6 2/8/7")
	_, err := c.Get(ctx, "a", clientv3.WithRev(7))
	equal(t, "below it, the typed error", err == rpctypes.ErrCompacted, true)
	_, err = c.Compact(ctx, 8)
	equal(t, "the same again", err == rpctypes.ErrCompacted, true)
	_, err = c.Compact(ctx, 14)
	equal(t, "the future", err == rpctypes.ErrFutureRev, true)
	must(c.Compact(ctx, 13))(t)
	equal(t, "deleted keys are gone", must(c.Get(ctx, "", clientv3.WithPrefix()))(t).Count, 1)
	hash := must(c.HashKV(ctx, c.Endpoints()[0], 0))(t)
	equal(t, "hash of what is left", fmt.Sprint(hash.CompactRevision, hash.HashRevision), "13 13")
}

func TestKVErrors(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	r := stubs(c)
	for range 5 {
		put(t, c, "a", "1") // 2..6
	}
	must(c.Compact(ctx, 4))(t)
	const (
		noKey      = "etcdserver: key is not provided"
		sortOption = "etcdserver: invalid sort option"
		compacted  = "etcdserver: mvcc: required revision has been compacted"
		future     = "etcdserver: mvcc: required revision is a future revision"
		duplicate  = "etcdserver: duplicate key given in txn request"
		tooMany    = "etcdserver: too many operations in txn request"
	)
	onRange := func(r0 *pb.RangeRequest) error { _, err := r.Range(ctx, r0); return err }
	onPut := func(p *pb.PutRequest) error { _, err := r.Put(ctx, p); return err }
	onTxn := func(x *pb.TxnRequest) error { _, err := r.Txn(ctx, x); return err }
	a := []byte("a")
	var many []*pb.RequestOp
	var compares []*pb.Compare
	for i := range 129 {
		many = append(many, putOp(fmt.Sprint("many", i), "x"))
		compares = append(compares, &pb.Compare{Key: a, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}})
	}
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"range without key", onRange(&pb.RangeRequest{}), codes.InvalidArgument, noKey},
		{"range with an unknown order", onRange(&pb.RangeRequest{Key: a, SortOrder: 3}), codes.InvalidArgument, sortOption},
		{"range with an unknown target", onRange(&pb.RangeRequest{Key: a, SortTarget: 5}), codes.InvalidArgument, sortOption},
		{"range at a compacted revision", onRange(&pb.RangeRequest{Key: a, Revision: 3}), codes.OutOfRange, compacted},
		{"range at a future revision", onRange(&pb.RangeRequest{Key: a, Revision: 7}), codes.OutOfRange, future},
		{"put without key", onPut(&pb.PutRequest{Value: a}), codes.InvalidArgument, noKey},
		{"put with value and ignore_value", onPut(&pb.PutRequest{Key: a, Value: a, IgnoreValue: true}), codes.InvalidArgument, "etcdserver: value is provided"},
		{"put with lease and ignore_lease", onPut(&pb.PutRequest{Key: a, Lease: 1, IgnoreLease: true}), codes.InvalidArgument, "etcdserver: lease is provided"},
		{"put with ignore_value on no key", onPut(&pb.PutRequest{Key: []byte("none"), IgnoreValue: true}), codes.InvalidArgument, "etcdserver: key not found"},
		{"put with ignore_lease on no key", onPut(&pb.PutRequest{Key: []byte("none"), IgnoreLease: true}), codes.InvalidArgument, "etcdserver: key not found"},
		{"put with an unknown lease", onPut(&pb.PutRequest{Key: a, Lease: 4711}), codes.NotFound, "etcdserver: requested lease not found"},
		{"a request that is too large", onPut(&pb.PutRequest{Key: a, Value: make([]byte, 1572864)}), codes.InvalidArgument, "etcdserver: request is too large"},
		{"a message that is too large", onPut(&pb.PutRequest{Key: a, Value: make([]byte, 2097152)}), codes.ResourceExhausted, "grpc: received message larger than max (2097160 vs. 2097152)"},
		{"delete without key", func() error { _, err := r.DeleteRange(ctx, &pb.DeleteRangeRequest{}); return err }(), codes.InvalidArgument, noKey},
		{"compact again", func() error { _, err := r.Compact(ctx, &pb.CompactionRequest{Revision: 4}); return err }(), codes.OutOfRange, compacted},
		{"compact the future", func() error { _, err := r.Compact(ctx, &pb.CompactionRequest{Revision: 99}); return err }(), codes.OutOfRange, future},
		{"txn with too many operations", onTxn(&pb.TxnRequest{Success: many}), codes.InvalidArgument, tooMany},
		{"txn with too many in failure", onTxn(&pb.TxnRequest{Failure: many}), codes.InvalidArgument, tooMany},
		{"txn with too many compares", onTxn(&pb.TxnRequest{Compare: compares}), codes.InvalidArgument, tooMany},
		{"nested txn beyond the limit", onTxn(success(append(many[:127:127], txnOp(success(many[127:]...)))...)), codes.InvalidArgument, tooMany},
		{"txn with a key twice", onTxn(success(putOp("x", "1"), putOp("x", "2"))), codes.InvalidArgument, duplicate},
		{"txn with a put in a deleted range", onTxn(success(deleteOp("a", "z"), putOp("m", "2"))), codes.InvalidArgument, duplicate},
		{"nested txn with a key twice", onTxn(success(putOp("x", "1"), txnOp(success(putOp("x", "2"))))), codes.InvalidArgument, duplicate},
		{"txn put without key", onTxn(success(putOp("", "1"))), codes.InvalidArgument, noKey},
		{"txn range without key", onTxn(success(rangeOp(&pb.RangeRequest{}))), codes.InvalidArgument, noKey},
		{"txn delete without key", onTxn(success(deleteOp("", ""))), codes.InvalidArgument, noKey},
		{"txn compare without key", onTxn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}), codes.InvalidArgument, noKey},
		{"txn with an empty operation", onTxn(success(&pb.RequestOp{})), codes.InvalidArgument, "etcdserver: key not found"},
		{"txn range with an unknown order", onTxn(success(rangeOp(&pb.RangeRequest{Key: a, SortOrder: 9}))), codes.InvalidArgument, sortOption},
		{"txn range at a compacted revision", onTxn(success(rangeOp(&pb.RangeRequest{Key: a, Revision: 2}))), codes.OutOfRange, compacted},
		{"txn range at a future revision", onTxn(success(putOp("half", "1"), rangeOp(&pb.RangeRequest{Key: a, Revision: 99}))), codes.OutOfRange, future},
		{"txn put with an unknown lease", onTxn(success(&pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: a, Lease: 7}}})), codes.NotFound, "etcdserver: requested lease not found"},
		{"txn put with ignore_value on no key", onTxn(success(&pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("none"), IgnoreValue: true}}})), codes.InvalidArgument, "etcdserver: key not found"},
	} {
		refused(t, test.name, test.err, test.code, test.text)
	}
	equal(t, "a failed txn leaves nothing", must(c.Get(ctx, "half"))(t).Count, 0)
	equal(t, "and no revision", must(c.Get(ctx, "a"))(t).Header.Revision, 6)
	// Exactly at the limits.
	must(c.Put(ctx, "large", string(bytes.Repeat([]byte{'l'}, 1_572_000))))(t)
	must(r.Txn(ctx, &pb.TxnRequest{Success: many[:128]}))(t)

	conn := c.ActiveConnection()
	unknown := func(method string) error { return conn.Invoke(ctx, method, &pb.RangeRequest{}, &pb.RangeResponse{}) }
	refused(t, "unknown method", unknown("/etcdserverpb.KV/NoSuch"), codes.Unimplemented, "unknown method NoSuch for service etcdserverpb.KV")
	refused(t, "unknown service", unknown("/etcdserverpb.NoSuch/Range"), codes.Unimplemented, "unknown service etcdserverpb.NoSuch")
	err := conn.Invoke(ctx, "/etcdserverpb.KV/Put", []byte{0xff, 0xff, 0xff}, &pb.PutResponse{}, grpc.ForceCodec(bytesCodec{}))
	refused(t, "no protobuf", err, codes.Internal, "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data")
	equal(t, "and the connection lives", status.Code(unknown("/x.Y/Z")), codes.Unimplemented)
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string                  { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal([]byte, any) error   { return nil }
