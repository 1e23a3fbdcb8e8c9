package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// program is one of the two that hand the directory to each other.
type program struct{ name, variable string }

var (
	etcd = program{"etcd", "ETCD_BINARY"}
	ours = program{"ours", "SERVER_BINARY"}
)

var pairs = []struct{ first, second program }{{etcd, ours}, {ours, etcd}}

// start takes further flags; the last of its kind counts.
func (p program) start(t *testing.T, dir string, flags ...string) *member.Member {
	t.Helper()
	flags = append([]string{"--bcrypt-cost", "4", "--snapshot-count", "300"}, flags...)
	return member.Start(t, member.Binary(t, p.variable), dir, flags...)
}

func users(t *testing.T, m *member.Member) *clientv3.Client {
	t.Helper()
	c := m.Client()
	ctx := member.Context(t)
	check := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(c.RoleAdd(ctx, "root"))
	check(c.RoleAdd(ctx, "reader"))
	check(c.RoleGrantPermission(ctx, "reader", "key/", "key0", clientv3.PermissionType(clientv3.PermRead)))
	check(c.UserAdd(ctx, "root", "pw"))
	check(c.UserAdd(ctx, "alice", "alicepw"))
	check(c.UserGrantRole(ctx, "root", "root"))
	check(c.UserGrantRole(ctx, "alice", "reader"))
	check(c.AuthEnable(ctx))
	return m.Client(member.As("root", "pw"))
}

// The directory goes from one program to the other and back, after a clean stop each time.
func TestDirectoryChangesHandsAfterACleanStop(t *testing.T) {
	for _, pair := range pairs {
		t.Run(pair.first.name+" to "+pair.second.name+" and back", func(t *testing.T) {
			dir := t.TempDir()
			work := NewWork(1)
			m := pair.first.start(t, dir)
			c := users(t, m)
			for turn := range 4 {
				if err := work.Do(member.Context(t), c, 400); err != nil {
					t.Fatal(err)
				}
				want := Answers(t, c)
				_ = c.Close()
				m.Stop()
				Check(t, fmt.Sprint("turn ", turn), dir)
				next := pair.second
				if turn%2 == 1 {
					next = pair.first
				}
				m = next.start(t, dir)
				c = m.Client(member.As("root", "pw"))
				Same(t, fmt.Sprintf("turn %d, %s", turn, next.name), Answers(t, c), want)
				alice := m.Client(member.As("alice", "alicepw"))
				if _, err := alice.Get(member.Context(t), "key/1"); err != nil {
					t.Errorf("alice may not read: %v", err)
				}
				if _, err := alice.Put(member.Context(t), "key/1", ""); err == nil {
					t.Error("alice may write")
				}
				_ = alice.Close()
			}
			m.Stop()
			Check(t, "the end", dir)
		})
	}
}

// A process is killed in mid-load; the other program opens what it left, and both agree on the content.
func TestDirectoryChangesHandsAfterAKill(t *testing.T) {
	for _, pair := range pairs {
		t.Run(pair.first.name+" killed, "+pair.second.name+" goes on", func(t *testing.T) {
			for round := range 3 {
				dir := t.TempDir()
				m := pair.first.start(t, dir)
				written := killInMidLoad(t, m, uint64(round), false)
				handOver(t, pair.first, pair.second, dir, written)
			}
		})
	}
}

// The same with a compaction of many revisions under way.
func TestDirectoryChangesHandsAfterAKillInMidCompaction(t *testing.T) {
	for _, pair := range pairs {
		t.Run(pair.first.name+" killed, "+pair.second.name+" goes on", func(t *testing.T) {
			for round := range 2 {
				dir := t.TempDir()
				m := pair.first.start(t, dir)
				written := killInMidLoad(t, m, uint64(100+round), true)
				handOver(t, pair.first, pair.second, dir, written)
			}
		})
	}
}

// killInMidLoad kills a member while four clients write, and says which writes were acknowledged.
func killInMidLoad(t *testing.T, m *member.Member, seed uint64, compact bool) *Acknowledged {
	t.Helper()
	written := NewAcknowledged()
	ctx, cancel := context.WithCancel(member.Context(t))
	var clients sync.WaitGroup
	for number := range 4 {
		c := m.Client()
		clients.Add(1)
		go func() {
			defer clients.Done()
			defer c.Close()
			written.Write(ctx, c, number)
		}()
	}
	for end := time.Now().Add(20 * time.Second); written.Count() < 600+int(seed)*50; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the load does not move")
		}
	}
	if compact {
		c := m.Client()
		go func() {
			if got, err := c.Get(ctx, "x"); err == nil {
				_, _ = c.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical())
			}
		}()
		// Somewhere in the middle, another place each round.
		time.Sleep(time.Duration(2+3*(seed%7)) * time.Millisecond)
	}
	m.Kill()
	cancel()
	clients.Wait()
	return written
}

// handOver opens the directory with the second program, checks what was acknowledged, works on, and
// gives it back to the first.
func handOver(t *testing.T, first, second program, dir string, written *Acknowledged) {
	t.Helper()
	Check(t, "what the kill left", dir)
	m := second.start(t, dir)
	c := m.Client()
	written.Verify(t, c)
	if err := NewWork(9).Do(member.Context(t), c, 300); err != nil {
		t.Fatal(err)
	}
	want := Answers(t, c)
	_ = c.Close()
	m.Stop()
	Check(t, "after "+second.name, dir)
	m = first.start(t, dir)
	c = m.Client()
	Same(t, "back in "+first.name, Answers(t, c), want)
	_ = c.Close()
	m.Stop()
	Check(t, "the end", dir)
}

// One directory, killed again and again under load, never loses what it acknowledged. KILLS says how
// often.
func TestKillsLoseNothing(t *testing.T) {
	kills := 10
	if text := os.Getenv("KILLS"); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		kills = number
	}
	dir := t.TempDir()
	written := NewAcknowledged()
	for round := range kills {
		m := ours.start(t, dir)
		c := m.Client()
		written.Verify(t, c)
		ctx, cancel := context.WithCancel(member.Context(t))
		var clients sync.WaitGroup
		for number := range 8 {
			writer := m.Client()
			clients.Add(1)
			go func() {
				defer clients.Done()
				defer writer.Close()
				written.Write(ctx, writer, round*100+number)
			}()
		}
		clients.Add(1)
		go func() {
			defer clients.Done()
			for ctx.Err() == nil {
				if got, err := c.Get(ctx, "x"); err == nil && got.Header.Revision > 300 {
					_, _ = c.Compact(ctx, got.Header.Revision-200)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		start := written.Count()
		for end := time.Now().Add(20 * time.Second); written.Count() < start+200+37*(round%11); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("round %d: the load does not move", round)
			}
		}
		m.Kill()
		cancel()
		clients.Wait()
		_ = c.Close()
		Check(t, fmt.Sprint("round ", round), dir)
	}
	m := ours.start(t, dir)
	written.Verify(t, m.Client())
	m.Stop()
	Check(t, "the end", dir)
	t.Logf("%d kills, %d acknowledged writes", kills, written.Count())
}

// The single-member directories that etcd 3.6 left open in ours, and then in etcd 3.7.
func TestDirectoryOfEtcd36(t *testing.T) {
	old := program{"etcd 3.6", "ETCD36_BINARY"}
	dir := filepath.Join(t.TempDir(), "data")
	work := NewWork(36)
	m := old.start(t, dir)
	c := users(t, m)
	if err := work.Do(member.Context(t), c, 900); err != nil {
		t.Fatal(err)
	}
	want := Answers(t, c)
	_ = c.Close()
	m.Stop()
	for _, next := range []program{ours, etcd} {
		m = next.start(t, dir)
		c = m.Client(member.As("root", "pw"))
		Same(t, "in "+next.name, Answers(t, c), want)
		_ = c.Close()
		m.Stop()
		Check(t, "after "+next.name, dir)
	}
}
