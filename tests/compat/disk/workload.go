// Package disk lets two programs work on the same data directory, one after the other.
package disk

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// Work is a random workload, the same for the same seed: puts, deletes, transactions, leases, compactions.
type Work struct {
	random *rand.Rand
	leases []clientv3.LeaseID
}

// NewWork makes one.
func NewWork(seed uint64) *Work { return &Work{random: rand.New(rand.NewPCG(seed, seed))} }

func (w *Work) key() string { return fmt.Sprintf("key/%03d", w.random.IntN(200)) }

func (w *Work) value() string {
	size := w.random.IntN(300)
	if w.random.IntN(50) == 0 {
		size = w.random.IntN(40_000)
	}
	return strings.Repeat(string(rune('a'+w.random.IntN(26))), size)
}

// Do makes that many steps.
func (w *Work) Do(ctx context.Context, c *clientv3.Client, steps int) error {
	for range steps {
		var err error
		switch kind := w.random.IntN(100); {
		case kind < 60:
			var options []clientv3.OpOption
			if len(w.leases) > 0 && w.random.IntN(5) == 0 {
				options = append(options, clientv3.WithLease(w.leases[w.random.IntN(len(w.leases))]))
			}
			_, err = c.Put(ctx, w.key(), w.value(), options...)
		case kind < 75:
			_, err = c.Delete(ctx, w.key())
		case kind < 78:
			from := w.key()
			_, err = c.Delete(ctx, from, clientv3.WithRange(from+"~"))
		case kind < 90:
			used := map[string]bool{}
			var ops []clientv3.Op
			for range 1 + w.random.IntN(6) {
				if key := w.key(); !used[key] {
					used[key] = true
					ops = append(ops, clientv3.OpPut(key, w.value()))
				}
			}
			_, err = c.Txn(ctx).Then(ops...).Commit()
		case kind < 95:
			id := clientv3.LeaseID(1 + w.random.Int64N(1<<40))
			_, err = pb.NewLeaseClient(c.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(id), TTL: 3600 + w.random.Int64N(3600)})
			w.leases = append(w.leases, id)
		case kind < 97 && len(w.leases) > 0:
			at := w.random.IntN(len(w.leases))
			_, err = c.Revoke(ctx, w.leases[at])
			w.leases = append(w.leases[:at], w.leases[at+1:]...)
		case kind < 98:
			var got *clientv3.GetResponse
			if got, err = c.Get(ctx, "x"); err == nil && got.Header.Revision > 50 {
				// Twice the same revision is refused, which is well.
				_, _ = c.Compact(ctx, got.Header.Revision-40)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Answers is everything that a directory says about its content: keys at several revisions, hashes,
// leases with their keys, users and roles. Times and terms are left out.
func Answers(t testing.TB, c *clientv3.Client) map[string]string {
	t.Helper()
	ctx := member.Context(t)
	answers := map[string]string{}
	now, err := c.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	revision := now.Header.Revision
	for back := int64(0); back < 60; back += 7 {
		at := revision - back
		got, err := c.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(max(at, 1)))
		if err != nil {
			answers[fmt.Sprint("keys at ", at)] = err.Error()
			continue
		}
		answers[fmt.Sprint("keys at ", at)] = encode(t, got.Kvs)
		hash, err := pb.NewMaintenanceClient(c.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: at})
		answers[fmt.Sprint("hash at ", at)] = fmt.Sprint(hash.GetHash(), hash.GetCompactRevision(), err)
	}
	answers["revision"] = fmt.Sprint(revision)
	leases, err := c.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases.Leases {
		ttl, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, key := range ttl.Keys {
			keys = append(keys, string(key))
		}
		sort.Strings(keys)
		answers[fmt.Sprint("lease ", lease.ID)] = fmt.Sprint(ttl.GrantedTTL, keys)
	}
	status, err := c.AuthStatus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	answers["auth"] = fmt.Sprint(status.Enabled, status.AuthRevision)
	users, err := c.UserList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range users.Users {
		got, err := c.UserGet(ctx, user)
		answers["user "+user] = fmt.Sprint(got.Roles, err)
	}
	roles, err := c.RoleList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range roles.Roles {
		got, err := c.RoleGet(ctx, role)
		answers["role "+role] = fmt.Sprint(got.Perm, err)
	}
	alarms, err := c.AlarmList(ctx)
	answers["alarms"] = fmt.Sprint(len(alarms.Alarms), err)
	return answers
}

func encode(t testing.TB, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Same compares two sets of answers.
func Same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	names := map[string]bool{}
	for name := range got {
		names[name] = true
	}
	for name := range want {
		names[name] = true
	}
	for name := range names {
		if got[name] != want[name] {
			t.Errorf("%s: %s:\n  got  %s\n  want %s", what, name, clip(got[name]), clip(want[name]))
		}
	}
}

func clip(text string) string {
	if len(text) > 400 {
		return fmt.Sprintf("%s... (%d bytes)", text[:400], len(text))
	}
	return text
}

// Check runs `bbolt check` over the database of a directory that no process has open.
func Check(t testing.TB, what, dir string) {
	t.Helper()
	bbolt := os.Getenv("BBOLT")
	if bbolt == "" {
		t.Fatal("BBOLT must name the bbolt command")
	}
	output, err := exec.Command(bbolt, "check", filepath.Join(dir, "member", "snap", "db")).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: bbolt check: %v\n%s", what, err, output)
	}
}
