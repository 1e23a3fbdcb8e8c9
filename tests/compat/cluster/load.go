package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// writers put at once; each waits a little between two puts, so that the load is steady and the machine
// has room for the members.
const (
	writers = 3
	pause   = 2 * time.Millisecond
	// answer is how long a write is waited for. It may be carried out later.
	answer = 2 * time.Second
)

// Load writes and watches while something else happens, and remembers what was acknowledged.
type Load struct {
	t testing.TB
	// prefix is of this load's keys alone.
	prefix string
	cancel context.CancelFunc
	done   sync.WaitGroup

	mutex sync.Mutex
	// acknowledged is the revision of each write that was answered.
	acknowledged map[string]int64
	// seen is the revision of each event.
	seen  map[string]int64
	wrong error
	// stall is the longest time between two acknowledged writes of one writer.
	stall time.Duration
}

// StartLoad begins to write and to watch at these endpoints.
func StartLoad(t testing.TB, endpoints []string) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	client := member.Connect(t, endpoints)
	now, err := client.Get(member.Context(t), "load")
	if err != nil {
		t.Fatal(err)
	}
	l := &Load{
		t: t, prefix: fmt.Sprintf("load/%d/", now.Header.Revision), cancel: cancel,
		acknowledged: map[string]int64{}, seen: map[string]int64{},
	}
	watching, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	l.watch(watching, client, now.Header.Revision+1)
	for writer := range writers {
		l.done.Go(func() { l.write(ctx, client, writer) })
	}
	t.Cleanup(cancel)
	return l
}

func (l *Load) write(ctx context.Context, client *clientv3.Client, writer int) {
	last := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("%s%d/%06d", l.prefix, writer, n)
		limited, cancel := context.WithTimeout(ctx, answer)
		put, err := client.Put(limited, key, key)
		cancel()
		if err == nil {
			l.mutex.Lock()
			l.acknowledged[key] = put.Header.Revision
			l.stall = max(l.stall, time.Since(last))
			l.mutex.Unlock()
			last = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// watch follows all writes: in order of revision, none twice.
func (l *Load) watch(ctx context.Context, client *clientv3.Client, from int64) {
	responses := client.Watch(clientv3.WithRequireLeader(ctx), l.prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	go func() {
		last := from - 1
		for {
			for response := range responses {
				if response.Err() != nil {
					break
				}
				for _, event := range response.Events {
					l.event(string(event.Kv.Key), event.Kv.ModRevision, last)
					last = event.Kv.ModRevision
				}
			}
			if ctx.Err() != nil {
				return
			}
			// Without a leader a watch ends; a program begins again where it was.
			responses = client.Watch(clientv3.WithRequireLeader(ctx), l.prefix, clientv3.WithPrefix(), clientv3.WithRev(last+1))
		}
	}()
}

func (l *Load) event(key string, revision, last int64) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if before, twice := l.seen[key]; twice {
		l.wrong = errors.Join(l.wrong, fmt.Errorf("%s came twice, at %d and at %d", key, before, revision))
	}
	if revision <= last {
		l.wrong = errors.Join(l.wrong, fmt.Errorf("%s at %d came after %d", key, revision, last))
	}
	l.seen[key] = revision
}

// Acknowledged is how many writes were answered so far.
func (l *Load) Acknowledged() int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return len(l.acknowledged)
}

// GoOn waits until more writes have been acknowledged: the cluster serves.
func (l *Load) GoOn(more int) {
	l.t.Helper()
	want := l.Acknowledged() + more
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if l.Acknowledged() >= want {
			return
		}
	}
	l.t.Fatalf("%d writes of %d more in %v", more-(want-l.Acknowledged()), more, patience)
}

// Stop ends the writing, and fails unless everything that was acknowledged is there and was watched.
func (l *Load) Stop(client *clientv3.Client) {
	l.t.Helper()
	got, err := l.finish(client)
	if err != nil {
		l.t.Fatal(err)
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.wrong != nil {
		l.t.Errorf("the watch: %v", l.wrong)
	}
	there := map[string]int64{}
	for _, kv := range got.Kvs {
		there[string(kv.Key)] = kv.ModRevision
		if string(kv.Value) != string(kv.Key) {
			l.t.Errorf("%s holds %q", kv.Key, kv.Value)
		}
	}
	for key, revision := range l.acknowledged {
		if there[key] != revision {
			l.t.Errorf("%s was acknowledged at %d and is at %d", key, revision, there[key])
		}
	}
	for key, revision := range there {
		if l.seen[key] != revision {
			l.t.Errorf("%s is at %d and was watched at %d", key, revision, l.seen[key])
		}
	}
	l.t.Logf("%d writes acknowledged, the longest wait %v", len(l.acknowledged), l.stall.Round(time.Millisecond))
}

// finish stops the writers, and waits until the watch has seen all that there is.
func (l *Load) finish(client *clientv3.Client) (*clientv3.GetResponse, error) {
	l.cancel()
	l.done.Wait()
	var got *clientv3.GetResponse
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var err error
		got, err = client.Get(ctx, l.prefix, clientv3.WithPrefix())
		cancel()
		if err != nil {
			continue
		}
		l.mutex.Lock()
		all := len(l.seen) >= len(got.Kvs)
		l.mutex.Unlock()
		if all {
			break
		}
	}
	if got == nil {
		return nil, errors.New("the cluster does not answer after the load")
	}
	return got, nil
}
