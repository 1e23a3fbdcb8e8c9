package disk

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// Acknowledged remembers every write that a server said it had done. Each key has one writer, which puts
// rising numbers, so the last value of a key tells whether an acknowledged one is missing.
type Acknowledged struct {
	mutex sync.Mutex
	keys  map[string]write
	count int
	top   int64
}

type write struct {
	number   int
	revision int64
	// maybe is the number of a put that got no answer: it may be there or not.
	maybe int
}

// NewAcknowledged has nothing yet.
func NewAcknowledged() *Acknowledged { return &Acknowledged{keys: map[string]write{}} }

// Count is the number of acknowledged writes.
func (a *Acknowledged) Count() int {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.count
}

// Write puts until the context or the server ends.
func (a *Acknowledged) Write(ctx context.Context, c *clientv3.Client, writer int) {
	for number := 1; ctx.Err() == nil; number++ {
		key := fmt.Sprintf("ack/%d/%d", writer, number%20)
		a.note(key, func(w *write) { w.maybe = number })
		// A put that waits for a dead server is given up soon.
		bounded, cancel := context.WithTimeout(ctx, 3*time.Second)
		response, err := c.Put(bounded, key, fmt.Sprint(number))
		cancel()
		if err != nil {
			return
		}
		a.note(key, func(w *write) {
			w.number, w.revision, w.maybe = number, response.Header.Revision, 0
			a.count++
			a.top = max(a.top, response.Header.Revision)
		})
	}
}

func (a *Acknowledged) note(key string, change func(*write)) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	w := a.keys[key]
	change(&w)
	a.keys[key] = w
}

// Verify reads everything back: no acknowledged write is lost, none has another revision, and revisions
// go on from where they were.
func (a *Acknowledged) Verify(t testing.TB, c *clientv3.Client) {
	t.Helper()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	got, err := c.Get(member.Context(t), "ack/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if got.Header.Revision < a.top {
		t.Errorf("revision %d, but %d was acknowledged", got.Header.Revision, a.top)
	}
	there := map[string]write{}
	revisions := map[int64]string{}
	for _, kv := range got.Kvs {
		var w write
		_, _ = fmt.Sscan(string(kv.Value), &w.number)
		w.revision = kv.ModRevision
		there[string(kv.Key)] = w
		if other := revisions[kv.ModRevision]; other != "" {
			t.Errorf("%s and %s share revision %d", kv.Key, other, kv.ModRevision)
		}
		revisions[kv.ModRevision] = string(kv.Key)
	}
	for key, want := range a.keys {
		found := there[key]
		switch {
		case want.maybe != 0 && found.number == want.maybe:
			// It was done although nobody said so: from now on it counts.
			want.number, want.revision, want.maybe = found.number, found.revision, 0
			a.keys[key] = want
		case found.number != want.number || found.revision != want.revision:
			t.Errorf("%s is %d at revision %d, but %d at revision %d was acknowledged (unanswered: %d)",
				key, found.number, found.revision, want.number, want.revision, want.maybe)
		default:
			want.maybe = 0
			a.keys[key] = want
		}
	}
}
