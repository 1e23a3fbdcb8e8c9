package goclient

import (
	"context"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// A transaction may delete "everything from here on" and put a key among it. A compaction to exactly that
// revision takes the value from etcd's file, while its index goes on naming it: what both say afterwards,
// and after a restart, must not differ, or a mixed cluster would call itself corrupt.
func TestCompactionToADeletionAndPutOfOneKey(t *testing.T) {
	t.Parallel()
	story := func(binary string) []string {
		var told []string
		say := func(what string, values ...any) { told = append(told, fmt.Sprint(what, " ", fmt.Sprint(values...))) }
		dir := t.TempDir()
		m := member.Start(t, member.Binary(t, binary), dir)
		c := m.Client()
		ctx := background(t)
		hash := func(what string, revision int64) {
			r := must(stubs(c).HashKV(ctx, &pb.HashKVRequest{Revision: revision}))(t)
			say(what, r.Hash, r.CompactRevision, r.HashRevision)
		}
		lose := func() int64 {
			lost := must(c.Txn(ctx).Then(
				clientv3.OpDelete("k", clientv3.WithFromKey()),
				clientv3.OpPut("k1", "lost"), clientv3.OpPut("k2", "lost"), clientv3.OpPut("k3", "lost"),
			).Commit())(t).Header.Revision
			must(c.Compact(ctx, lost, clientv3.WithCompactPhysical()))(t)
			hash("compacted", lost)
			hash("now", 0)
			return lost
		}
		for i := range 12 {
			put(t, c, fmt.Sprint("k", i%6), strings.Repeat("v", i))
			put(t, c, fmt.Sprint("a", i), "v")
		}
		lost := lose()
		counted := must(c.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithCountOnly()))(t)
		say("counted", counted.Count, counted.Header.Revision)
		put(t, c, "k1", "again")
		say("put again", showAll(must(c.Get(ctx, "k1"))(t).Kvs))
		deleted := must(c.Delete(ctx, "k2"))(t)
		say("deleted", deleted.Deleted, deleted.Header.Revision)
		deleted = must(c.Delete(ctx, "k2", clientv3.WithRange("k3")))(t)
		say("deleted", deleted.Deleted, deleted.Header.Revision)
		hash("now", 0)
		hash("then", lost+1)
		say("events", history(t, c, ctx, lost+1))
		must(c.Compact(ctx, lost+1, clientv3.WithCompactPhysical()))(t)
		hash("compacted", lost+1)
		put(t, c, "k1", "once more")
		hash("now", 0)
		lost = lose()
		put(t, c, "other", "v")
		must(c.Compact(ctx, lost+1, clientv3.WithCompactPhysical()))(t)
		hash("compacted", lost+1)
		lost = lose()

		m.Stop()
		m = member.Start(t, member.Binary(t, binary), dir)
		c = m.Client()
		say("after a restart", showAll(must(c.Get(ctx, "k", clientv3.WithPrefix()))(t).Kvs))
		hash("now", 0)
		put(t, c, "k1", "from the start")
		say("put", showAll(must(c.Get(ctx, "k", clientv3.WithPrefix()))(t).Kvs))
		deleted = must(c.Delete(ctx, "k2"))(t)
		say("deleted", deleted.Deleted, deleted.Header.Revision)
		hash("now", 0)
		must(c.Compact(ctx, lost+1, clientv3.WithCompactPhysical()))(t)
		hash("compacted", lost+1)
		hash("now", 0)
		return told
	}
	ours, theirs := story("SERVER_BINARY"), story("ETCD_BINARY")
	equal(t, "story", strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
}

// history is what a watch from a past revision tells.
func history(t *testing.T, c *clientv3.Client, ctx context.Context, from int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var told []string
	for r := range c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(from)) {
		for _, e := range r.Events {
			told = append(told, fmt.Sprint(e.Type, " ", show(e.Kv)))
		}
		if len(told) > 0 && r.Events[len(r.Events)-1].Kv.ModRevision >= from+1 {
			return strings.Join(told, ", ")
		}
	}
	t.Fatal("the watch ended")
	return ""
}
