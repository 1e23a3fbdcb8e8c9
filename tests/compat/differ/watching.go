package differ

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// watching is one watch stream of a side and what it was told.
type watching struct {
	stream  pb.Watch_WatchClient
	cancel  context.CancelFunc
	created chan string
	last    string
	done    chan struct{}
	// Owned by the receiver until done is closed.
	lines map[int64][]string
	err   error
}

func (s *side) openWatches(t *testing.T) *watching {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{
		stream: stream, cancel: cancel, created: make(chan string, 1), done: make(chan struct{}),
		lines: map[int64][]string{},
	}
	go w.receive()
	return w
}

// catchUp is how long a watcher that begins in the past may take: etcd looks after them every 100 ms.
const catchUp = 400 * time.Millisecond

// sentinel is watched by the last watcher: when its event is there, so is everybody's.
const sentinel = "~sentinel"

func (w *watching) receive() {
	defer close(w.done)
	for {
		response, err := w.stream.Recv()
		if err != nil {
			w.err = err
			return
		}
		id := response.WatchId
		if response.Created {
			response.Header.Revision = 0
			w.created <- told(response, nil)
			continue
		}
		if response.Canceled {
			// When a watcher learns of a compaction depends on how far it was.
			w.lines[id] = append(w.lines[id], fmt.Sprintf("canceled %v %q", response.CompactRevision > 0, response.CancelReason))
			continue
		}
		for _, event := range response.Events {
			if event.PrevKv != nil && event.PrevKv.ModRevision == 0 {
				event.PrevKv = nil
			}
			if string(event.Kv.Key) != sentinel {
				w.lines[id] = append(w.lines[id], told(event, nil))
			} else if id == lastWatcher {
				return
			}
		}
	}
}

// lastWatcher is an id that nobody else asks for.
const lastWatcher = 1 << 40

func (w *watching) create(t *testing.T, create *pb.WatchCreateRequest) {
	t.Helper()
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	if err := w.stream.Send(request); err != nil {
		t.Fatal(err)
	}
	select {
	case w.last = <-w.created:
	case <-w.done:
		t.Fatalf("the watch stream ended: %v", w.err)
	case <-time.After(30 * time.Second):
		t.Fatalf("no answer to %v", create)
	}
}

func (w *watching) lastCreated() string { return w.last }

// finish waits until every watcher has what it will get.
func (w *watching) finish(t *testing.T, s *side) int64 {
	t.Helper()
	// A moment for those that catch up: the sentinel's own watcher does not wait for them.
	time.Sleep(catchUp)
	w.create(t, &pb.WatchCreateRequest{Key: []byte(sentinel), WatchId: lastWatcher})
	response, err := s.kv.Put(context.Background(), &pb.PutRequest{Key: []byte(sentinel)})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the last event did not come")
	}
	w.cancel()
	return response.Header.Revision
}

func (w *watching) told() string {
	var ids []int64
	for id := range w.lines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var out strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&out, "\n    watcher %d", id)
		for _, line := range w.lines[id] {
			fmt.Fprintf(&out, "\n      %s", line)
		}
	}
	return out.String()
}

func sortBytes(keys [][]byte) { slices.SortFunc(keys, bytes.Compare) }

func sortLeases(leases []*pb.LeaseStatus) {
	sort.Slice(leases, func(i, j int) bool { return leases[i].ID < leases[j].ID })
}
