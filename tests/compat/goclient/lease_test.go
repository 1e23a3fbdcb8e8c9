package goclient

import (
	"context"
	"fmt"
	"sort"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"

	"keelson.dev/compat/member"
)

func TestLease(t *testing.T) {
	m := start(t)
	c := m.Client()
	ctx := background(t)
	r := stubs(c)
	granted := must(c.Grant(ctx, 600))(t)
	if granted.ID <= 0 {
		t.Errorf("the server chose lease %d", granted.ID)
	}
	equal(t, "granted", fmt.Sprint(granted.TTL, granted.ResponseHeader.Revision, granted.Error == ""), "600 1 true")
	grant := func(id, ttl int64) *pb.LeaseGrantResponse {
		t.Helper()
		return must(r.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}))(t)
	}
	equal(t, "raised to the least", grant(5, 1).TTL, 2)
	equal(t, "zero too", grant(6, 0).TTL, 2)
	equal(t, "negative too", grant(-7, -100).TTL, 2)
	equal(t, "the longest", grant(8, 9_000_000_000).TTL, int64(9_000_000_000))
	equal(t, "a chosen id", grant(1001, 300).ID, 1001)

	put(t, c, "b", "1", clientv3.WithLease(1001))
	put(t, c, "a", "1", clientv3.WithLease(1001))
	ttl := must(c.TimeToLive(ctx, 1001, clientv3.WithAttachedKeys()))(t)
	var attached []string
	for _, key := range ttl.Keys {
		attached = append(attached, string(key))
	}
	sort.Strings(attached)
	equal(t, "time to live", fmt.Sprint(ttl.GrantedTTL, ttl.TTL > 290 && ttl.TTL <= 300, attached), "300 true [a b]")
	equal(t, "keys only on request", len(must(c.TimeToLive(ctx, 1001))(t).Keys), 0)
	unknown := must(c.TimeToLive(ctx, 4711))(t)
	equal(t, "of an unknown lease", fmt.Sprint(unknown.ID, unknown.TTL, unknown.GrantedTTL), "4711 -1 0")

	put(t, c, "b", "2") // detaches
	put(t, c, "c", "1", clientv3.WithLease(1001))
	put(t, c, "c", "2", clientv3.WithLease(granted.ID)) // moves
	equal(t, "what is left on it", string(must(c.TimeToLive(ctx, 1001, clientv3.WithAttachedKeys()))(t).Keys[0]), "a")
	revision := must(c.Get(ctx, "a"))(t).Header.Revision
	put(t, c, "a2", "1", clientv3.WithLease(1001))
	equal(t, "a revoke is one revision", must(c.Revoke(ctx, 1001))(t).Header.Revision, revision+2)
	equal(t, "its keys are gone, the others are not", keys(must(c.Get(ctx, "", clientv3.WithPrefix()))(t).Kvs), "b c")
	equal(t, "a revoke without keys is none", must(c.Revoke(ctx, 8))(t).Header.Revision, revision+2)

	list := must(c.Leases(ctx))(t)
	seen := map[clientv3.LeaseID]bool{}
	for _, lease := range list.Leases {
		seen[lease.ID] = true
	}
	equal(t, "the list", fmt.Sprint(seen[granted.ID], seen[1001]), "true false")

	_, err := c.Revoke(ctx, 4711)
	equal(t, "typed", err == rpctypes.ErrLeaseNotFound, true)
	_, err = r.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1001})
	refused(t, "revoked twice", err, codes.NotFound, "etcdserver: requested lease not found")
	_, err = r.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(granted.ID), TTL: 10})
	refused(t, "granted twice", err, codes.FailedPrecondition, "etcdserver: lease already exists")
	_, err = r.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})
	refused(t, "too long", err, codes.OutOfRange, "etcdserver: too large lease TTL")
	_, err = r.Put(ctx, &pb.PutRequest{Key: []byte("x"), Lease: 4711})
	refused(t, "put with an unknown lease", err, codes.NotFound, "etcdserver: requested lease not found")

	// A restart keeps leases, their keys, and gives them their time again.
	m.Stop()
	again := member.Start(t, member.Binary(t, "SERVER_BINARY"), m.Dir)
	c = again.Client()
	ttl = must(c.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys()))(t)
	equal(t, "after a restart", fmt.Sprint(ttl.GrantedTTL, ttl.TTL > 590, " ", string(ttl.Keys[0])), "600 true c")
}

func TestLeaseKeepAlive(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	stream := must(stubs(c).LeaseKeepAlive(ctx))(t)
	must(stubs(c).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 9, TTL: 500}))(t)
	ask := func(id int64) *pb.LeaseKeepAliveResponse {
		t.Helper()
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		return must(stream.Recv())(t)
	}
	answer := ask(9)
	equal(t, "renewed", fmt.Sprint(answer.ID, answer.TTL, answer.Header.Revision), "9 500 1")
	answer = ask(4711)
	equal(t, "unknown, and the stream stays", fmt.Sprint(answer.ID, answer.TTL), "4711 0")
	equal(t, "next", ask(9).TTL, 500)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil || err.Error() != "EOF" {
		t.Errorf("after a half-close: %v", err)
	}

	short := must(c.Grant(ctx, 2))(t).ID
	put(t, c, "kept", "1", clientv3.WithLease(short))
	keep, stop := context.WithCancel(ctx)
	channel := must(c.KeepAlive(keep, short))(t)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		if response := <-channel; response == nil {
			t.Fatal("keep-alive gave up")
		}
	}
	equal(t, "kept beyond its time", must(c.Get(ctx, "kept"))(t).Count, 1)
	stop()
	watch := c.Watch(ctx, "kept")
	select {
	case response := <-watch:
		equal(t, "expired", response.Events[0].Type.String(), "DELETE")
	case <-time.After(patience):
		t.Fatal("the lease does not expire")
	}
	_, err := c.KeepAliveOnce(ctx, short)
	equal(t, "too late", err == rpctypes.ErrLeaseNotFound, true)
	equal(t, "time to live", must(c.TimeToLive(ctx, short))(t).TTL, -1)
}

func TestLeaseExpiryInBulk(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	const leases = 200
	for i := range leases {
		lease := must(c.Grant(ctx, 2))(t).ID
		put(t, c, fmt.Sprintf("bulk/%03d", i), "x", clientv3.WithLease(lease))
	}
	eventually(t, "all expire", func() bool {
		return must(c.Get(ctx, "bulk/", clientv3.WithPrefix(), clientv3.WithCountOnly()))(t).Count == 0
	})
	equal(t, "and leave nothing", len(must(c.Leases(ctx))(t).Leases), 0)
}

// The recipes of the client library: nothing but KV, Watch and Lease, used as applications use them.
func TestRecipes(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	one := must(concurrency.NewSession(c, concurrency.WithTTL(10)))(t)
	two := must(concurrency.NewSession(c, concurrency.WithTTL(10)))(t)
	first, second := concurrency.NewMutex(one, "/lock"), concurrency.NewMutex(two, "/lock")
	if err := first.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	equal(t, "taken", second.TryLock(ctx) == concurrency.ErrLocked, true)
	locked := make(chan error, 1)
	go func() { locked <- second.Lock(ctx) }()
	if err := one.Close(); err != nil { // the lease goes, and the lock with it
		t.Fatal(err)
	}
	select {
	case err := <-locked:
		equal(t, "handed over", err, error(nil))
	case <-time.After(patience):
		t.Fatal("the lock is not handed over")
	}
	election := concurrency.NewElection(two, "/election")
	if err := election.Campaign(ctx, "me"); err != nil {
		t.Fatal(err)
	}
	equal(t, "leader", string(must(election.Leader(ctx))(t).Kvs[0].Value), "me")
	put(t, c, "from", "100")
	put(t, c, "to", "0")
	_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
		stm.Put("to", stm.Get("from"))
		stm.Put("from", "0")
		return nil
	})
	equal(t, "stm", fmt.Sprint(err, " ", string(must(c.Get(ctx, "to"))(t).Kvs[0].Value)), "<nil> 100")
}
