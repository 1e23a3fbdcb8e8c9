package goclient

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTxn(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	put(t, c, "a", "1") // 2
	put(t, c, "b", "1") // 3
	response := must(c.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
		Then(clientv3.OpPut("a", "2", clientv3.WithPrevKV()), clientv3.OpGet("a"), clientv3.OpDelete("b", clientv3.WithPrevKV()), clientv3.OpPut("c", "1")).
		Else(clientv3.OpPut("a", "wrong")).Commit())(t)
	equal(t, "taken branch and revision", fmt.Sprint(response.Succeeded, response.Header.Revision), "true 4")
	parts := response.Responses
	equal(t, "put", fmt.Sprint(parts[0].GetResponsePut().Header, " ", show(parts[0].GetResponsePut().PrevKv)), fmt.Sprint(&pb.ResponseHeader{Revision: 4}, " a=1 2/2/1"))
	equal(t, "an operation sees the ones before it", showAll(parts[1].GetResponseRange().Kvs), "a=2 2/4/2")
	equal(t, "delete", fmt.Sprint(parts[2].GetResponseDeleteRange().Deleted, " ", showAll(parts[2].GetResponseDeleteRange().PrevKvs)), "1 b=1 3/3/1")
	equal(t, "all under one revision", showAll(must(c.Get(ctx, "", clientv3.WithPrefix()))(t).Kvs), "a=2 2/4/2, c=1 4/4/1")

	other := must(c.Txn(ctx).If(clientv3.Compare(clientv3.Version("a"), ">", 2)).
		Then(clientv3.OpPut("a", "no")).Else(clientv3.OpGet("a")).Commit())(t)
	equal(t, "else; a read keeps the revision", fmt.Sprint(other.Succeeded, other.Header.Revision), "false 4")
	empty := must(c.Txn(ctx).Commit())(t)
	equal(t, "an empty txn", fmt.Sprint(empty.Succeeded, empty.Header.Revision, len(empty.Responses)), "true 4 0")
	past := must(c.Txn(ctx).Then(clientv3.OpGet("a", clientv3.WithRev(2)), clientv3.OpPut("d", "1")).Commit())(t)
	equal(t, "the past inside a txn", showAll(past.Responses[0].GetResponseRange().Kvs), "a=1 2/2/1")
	same := must(c.Txn(ctx).Then(clientv3.OpDelete("none"), clientv3.OpDelete("none2", clientv3.WithPrefix())).Commit())(t)
	equal(t, "deleting nothing keeps the revision", same.Header.Revision, 5)
}

func TestTxnCompares(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	lease := must(c.Grant(ctx, 600))(t).ID
	put(t, c, "a", "m")                            // 2
	put(t, c, "a", "m")                            // 3: create 2, mod 3, version 2
	put(t, c, "b", "n", clientv3.WithLease(lease)) // 4
	for _, test := range []struct {
		name string
		cmp  clientv3.Cmp
		want bool
	}{
		{"value =", clientv3.Compare(clientv3.Value("a"), "=", "m"), true},
		{"value !=", clientv3.Compare(clientv3.Value("a"), "!=", "m"), false},
		{"value <", clientv3.Compare(clientv3.Value("a"), "<", "n"), true},
		{"value >", clientv3.Compare(clientv3.Value("a"), ">", "n"), false},
		{"version =", clientv3.Compare(clientv3.Version("a"), "=", 2), true},
		{"version <", clientv3.Compare(clientv3.Version("a"), "<", 2), false},
		{"create =", clientv3.Compare(clientv3.CreateRevision("a"), "=", 2), true},
		{"create >", clientv3.Compare(clientv3.CreateRevision("a"), ">", 1), true},
		{"mod !=", clientv3.Compare(clientv3.ModRevision("a"), "!=", 2), true},
		{"mod =", clientv3.Compare(clientv3.ModRevision("a"), "=", 3), true},
		{"lease =", clientv3.Compare(clientv3.LeaseValue("b"), "=", lease), true},
		{"lease of a key without", clientv3.Compare(clientv3.LeaseValue("a"), "=", 0), true},
		{"missing key, version 0", clientv3.Compare(clientv3.Version("x"), "=", 0), true},
		{"missing key, create 0", clientv3.Compare(clientv3.CreateRevision("x"), "=", 0), true},
		{"missing key, mod < 1", clientv3.Compare(clientv3.ModRevision("x"), "<", 1), true},
		{"missing key, value !=", clientv3.Compare(clientv3.Value("x"), "!=", "m"), false},
		{"missing key, value =", clientv3.Compare(clientv3.Value("x"), "=", ""), false},
		{"range, all", clientv3.Compare(clientv3.Value("a"), "<", "z").WithRange("c"), true},
		{"range, not all", clientv3.Compare(clientv3.Value("a"), "=", "m").WithRange("c"), false},
		{"empty range, version 0", clientv3.Compare(clientv3.Version("x"), "=", 0).WithRange("z"), true},
		{"empty range, version 1", clientv3.Compare(clientv3.Version("x"), "=", 1).WithRange("z"), false},
		{"prefix", clientv3.Compare(clientv3.ModRevision("a"), ">", 0).WithPrefix(), true},
	} {
		response := must(c.Txn(ctx).If(test.cmp).Commit())(t)
		equal(t, test.name, response.Succeeded, test.want)
	}
	two := must(c.Txn(ctx).If(clientv3.Compare(clientv3.Version("a"), "=", 2), clientv3.Compare(clientv3.Version("b"), "=", 2)).Commit())(t)
	equal(t, "all compares must hold", two.Succeeded, false)
	// Unknown numbers for result and target.
	strange := must(stubs(c).Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a"), Result: 9, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 77}}}}))(t)
	equal(t, "an unknown result", strange.Succeeded, true)
}

func TestNestedTxn(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	put(t, c, "a", "1") // 2
	response := must(c.Txn(ctx).Then(
		clientv3.OpPut("n/1", "x"),
		clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("a"), "=", "1")},
			[]clientv3.Op{clientv3.OpPut("n/2", "y"), clientv3.OpGet("n/1"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpDelete("a")}, nil)},
			[]clientv3.Op{clientv3.OpPut("n/3", "z")}),
		clientv3.OpGet("n/", clientv3.WithPrefix()),
	).Commit())(t)
	equal(t, "one revision", response.Header.Revision, 3)
	inner := response.Responses[1].GetResponseTxn()
	equal(t, "inner branch", inner.Succeeded, true)
	equal(t, "an inner header is there and empty", inner.Header != nil && inner.Header.Revision == 0, true)
	equal(t, "inner sees outer", showAll(inner.Responses[1].GetResponseRange().Kvs), "n/1=x 3/3/1")
	equal(t, "innermost", inner.Responses[2].GetResponseTxn().Responses[0].GetResponseDeleteRange().Deleted, 1)
	equal(t, "outer sees inner", showAll(response.Responses[2].GetResponseRange().Kvs), "n/1=x 3/3/1, n/2=y 3/3/1")
	equal(t, "after", keys(must(c.Get(ctx, "", clientv3.WithPrefix()))(t).Kvs), "n/1 n/2")

	// Both branches may put the same key; a delete after a put of the same key in a nested txn is one event more.
	both := must(c.Txn(ctx).If(clientv3.Compare(clientv3.Version("none"), "=", 0)).Then(clientv3.OpPut("k", "then")).Else(clientv3.OpPut("k", "else")).Commit())(t)
	equal(t, "same key in both branches", both.Succeeded, true)
	deep := success(putOp("deep", "1"))
	for range 60 {
		deep = success(txnOp(deep))
	}
	must(stubs(c).Txn(ctx, deep))(t)
	equal(t, "sixty levels deep", string(must(c.Get(ctx, "deep"))(t).Kvs[0].Value), "1")

	watch := c.Watch(ctx, "m/", clientv3.WithPrefix(), clientv3.WithRev(1))
	must(c.Txn(ctx).Then(clientv3.OpPut("m/1", "1"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("m/2", "2"), clientv3.OpPut("m/3", "3")}, nil), clientv3.OpPut("m/4", "4")).Commit())(t)
	var seen []string
	events := <-watch
	for _, event := range events.Events {
		seen = append(seen, string(event.Kv.Key))
	}
	equal(t, "the events of one txn come together and in order", strings.Join(seen, " "), "m/1 m/2 m/3 m/4")
}
