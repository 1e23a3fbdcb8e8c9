package goclient

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// stream is a raw watch stream: what the server says, one message at a time.
type stream struct {
	t        *testing.T
	watch    pb.Watch_WatchClient
	messages chan *pb.WatchResponse
	end      chan error
	cancel   context.CancelFunc
}

func open(t *testing.T, c *clientv3.Client) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(background(t))
	t.Cleanup(cancel)
	s := &stream{t: t, watch: must(stubs(c).Watch(ctx, grpc.MaxCallRecvMsgSize(64<<20)))(t), messages: make(chan *pb.WatchResponse, 1024), end: make(chan error, 1), cancel: cancel}
	go func() {
		for {
			response, err := s.watch.Recv()
			if err != nil {
				s.end <- err
				return
			}
			s.messages <- response
		}
	}()
	return s
}

func (s *stream) create(request *pb.WatchCreateRequest) *pb.WatchResponse {
	s.t.Helper()
	s.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	return s.next()
}

func (s *stream) send(request *pb.WatchRequest) {
	s.t.Helper()
	if err := s.watch.Send(request); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) cancelWatch(id int64) {
	s.t.Helper()
	s.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (s *stream) progress() {
	s.t.Helper()
	s.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func (s *stream) next() *pb.WatchResponse {
	s.t.Helper()
	select {
	case response := <-s.messages:
		return response
	case err := <-s.end:
		s.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		s.t.Fatal("nothing came")
	}
	return nil
}

func (s *stream) quiet(what string) {
	s.t.Helper()
	select {
	case response := <-s.messages:
		s.t.Errorf("%s: got %v", what, response)
	case err := <-s.end:
		s.t.Errorf("%s: the stream ended: %v", what, err)
	case <-time.After(silence):
	}
}

// head is what a response says beside its events.
func head(r *pb.WatchResponse) string {
	text := fmt.Sprintf("id %d rev %d", r.WatchId, r.Header.Revision)
	if r.Created {
		text += " created"
	}
	if r.Canceled {
		text += fmt.Sprintf(" canceled %q", r.CancelReason)
	}
	if r.CompactRevision != 0 {
		text += fmt.Sprint(" compacted ", r.CompactRevision)
	}
	if r.Fragment {
		text += " fragment"
	}
	return text
}

func showEvents(events []*mvccpb.Event) string {
	var texts []string
	for _, event := range events {
		text := event.Type.String() + " " + show(event.Kv)
		if event.PrevKv != nil {
			text += " was " + show(event.PrevKv)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

func between(key, end string) *pb.WatchCreateRequest {
	return &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end)}
}

func TestWatchLive(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	s := open(t, c)
	equal(t, "created", head(s.create(between("a", ""))), "id 0 rev 1 created")
	put(t, c, "a", "1")
	got := s.next()
	equal(t, "put", head(got)+": "+showEvents(got.Events), "id 0 rev 2: PUT a=1 2/2/1")
	put(t, c, "b", "outside")
	must(c.Delete(ctx, "a"))(t)
	got = s.next()
	equal(t, "delete", head(got)+": "+showEvents(got.Events), "id 0 rev 4: DELETE a= 0/4/0")

	wide := between("a", "c")
	wide.PrevKv = true
	equal(t, "the second on the stream", head(s.create(wide)), "id 1 rev 4 created")
	must(c.Txn(ctx).Then(clientv3.OpPut("b", "2"), clientv3.OpPut("aa", "1"), clientv3.OpPut("z", "1")).Commit())(t)
	got = s.next()
	equal(t, "a txn is one response, in its order", head(got)+": "+showEvents(got.Events), "id 1 rev 5: PUT b=2 3/5/2 was b=outside 3/3/1; PUT aa=1 5/5/1")
	must(c.Delete(ctx, "a", clientv3.WithPrefix()))(t)
	got = s.next()
	equal(t, "a delete with the previous", showEvents(got.Events), "DELETE aa= 0/6/0 was aa=1 5/5/1")
	must(c.Delete(ctx, "a", clientv3.WithPrefix()))(t)
	s.quiet("deleting nothing is no event")

	lease := must(c.Grant(ctx, 600))(t).ID
	put(t, c, "a", "leased", clientv3.WithLease(lease))
	s.next()
	s.next()
	must(c.Revoke(ctx, lease))(t)
	first, second := s.next(), s.next()
	if first.WatchId == 1 {
		first, second = second, first
	}
	equal(t, "a revoked lease deletes", showEvents(first.Events), "DELETE a= 0/8/0")
	equal(t, "with the previous", showEvents(second.Events), fmt.Sprintf("DELETE a= 0/8/0 was a=leased 7/7/1 lease %d", lease))

	s.cancel()
	select {
	case <-s.end:
	case <-time.After(patience):
		t.Error("the stream does not end")
	}
}

func TestWatchHistory(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	for i := range 10 {
		put(t, c, fmt.Sprintf("h/%d", i%3), fmt.Sprint(i)) // 2..11
	}
	must(c.Delete(ctx, "h/1"))(t) // 12
	s := open(t, c)
	past := between("h/", "h0")
	past.StartRevision, past.PrevKv = 9, true
	equal(t, "created in the past", head(s.create(past)), "id 0 rev 12 created")
	got := s.next()
	equal(t, "history in one response", head(got)+": "+showEvents(got.Events),
		"id 0 rev 12: PUT h/1=7 3/9/3 was h/1=4 3/6/2; PUT h/2=8 4/10/3 was h/2=5 4/7/2; PUT h/0=9 2/11/4 was h/0=6 2/8/3; DELETE h/1= 0/12/0 was h/1=7 3/9/3")
	put(t, c, "h/0", "live") // 13
	got = s.next()
	equal(t, "then live", head(got)+": "+showEvents(got.Events), "id 0 rev 13: PUT h/0=live 2/13/5 was h/0=9 2/11/4")

	future := between("h/", "h0")
	future.StartRevision = 16
	equal(t, "created for the future", head(s.create(future)), "id 1 rev 13 created")
	s.cancelWatch(0)
	equal(t, "the other is cancelled", head(s.next()), `id 0 rev 13 canceled ""`)
	for i := range 4 {
		put(t, c, "h/0", fmt.Sprint("f", i)) // 14..17
	}
	equal(t, "from that revision on", showEvents(s.next().Events), "PUT h/0=f2 2/16/8")
	equal(t, "and on", showEvents(s.next().Events), "PUT h/0=f3 2/17/9")

	must(c.Compact(ctx, 10))(t)
	lost := between("h/", "h0")
	lost.StartRevision = 5
	equal(t, "created below the compaction", head(s.create(lost)), "id 2 rev 17 created")
	equal(t, "and cancelled with its revision", head(s.next()), `id 2 rev 0 canceled "" compacted 10`)
	reuse := between("h/", "h0")
	reuse.WatchId = 2
	equal(t, "its id stays taken", head(s.create(reuse)), `id -1 rev 17 created canceled "mvcc: duplicate watch ID provided on the WatchStream"`)
	edge := between("h/1", "")
	edge.StartRevision, edge.PrevKv = 10, true
	s.create(edge)
	equal(t, "exactly at the compaction", showEvents(s.next().Events), "DELETE h/1= 0/12/0 was h/1=7 3/9/3")
	// Through the library: the typed error and its revision.
	for response := range c.Watch(ctx, "h/", clientv3.WithPrefix(), clientv3.WithRev(3)) {
		equal(t, "typed", response.Err() == rpctypes.ErrCompacted, true)
		equal(t, "compact revision", response.CompactRevision, 10)
	}
}

func TestWatchFiltersAndIDs(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	s := open(t, c)
	noPut, noDelete := between("a", "b"), between("a", "b")
	noPut.Filters, noPut.WatchId = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}, 77
	noDelete.Filters, noDelete.WatchId = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}, -3
	equal(t, "a chosen id", head(s.create(noPut)), "id 77 rev 1 created")
	equal(t, "a negative id", head(s.create(noDelete)), "id -3 rev 1 created")
	both := between("a", "b")
	both.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE}
	equal(t, "ids go on from 0", head(s.create(both)), "id 0 rev 1 created")
	put(t, c, "a", "1")
	got := s.next()
	equal(t, "only puts", head(got)+": "+showEvents(got.Events), "id -3 rev 2: PUT a=1 2/2/1")
	must(c.Delete(ctx, "a"))(t)
	got = s.next()
	equal(t, "only deletes", head(got)+": "+showEvents(got.Events), "id 77 rev 3: DELETE a= 0/3/0")
	s.quiet("filtered")
	equal(t, "a taken id", head(s.create(noPut)), `id -1 rev 3 created canceled "mvcc: duplicate watch ID provided on the WatchStream"`)
	equal(t, "an empty interval", head(s.create(between("b", "a"))), `id -1 rev 3 created canceled "mvcc: watcher range is empty"`)
	equal(t, "an interval of nothing", head(s.create(between("b", "b"))), `id -1 rev 3 created canceled "mvcc: watcher range is empty"`)
	negative := between("a", "")
	negative.StartRevision = -1
	equal(t, "a negative revision", head(s.create(negative)), `id -1 rev 3 created canceled "etcdserver: mvcc: required revision has been compacted"`)
	s.cancelWatch(77)
	equal(t, "cancelled", head(s.next()), `id 77 rev 3 canceled ""`)
	s.cancelWatch(77)
	s.cancelWatch(4711)
	s.send(&pb.WatchRequest{})
	s.quiet("cancelling an unknown id, and an empty request")
	equal(t, "the id is free again", head(s.create(noPut)), "id 77 rev 3 created")
	everything := open(t, c)
	equal(t, "another stream counts anew; no key is the first key", head(everything.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}})), "id 0 rev 3 created")
	put(t, c, "zzz", "1")
	equal(t, "everything", showEvents(everything.next().Events), "PUT zzz=1 4/4/1")
}

func TestWatchProgress(t *testing.T) {
	c := start(t, "--watch-progress-notify-interval", "200ms").Client()
	ctx := background(t)
	put(t, c, "a", "1") // 2
	s := open(t, c)
	s.progress()
	s.quiet("progress without a watcher")
	s.create(between("a", ""))
	s.progress()
	equal(t, "on request", head(s.next()), "id -1 rev 2")
	put(t, c, "other", "1") // 3
	s.progress()
	equal(t, "with the current revision", head(s.next()), "id -1 rev 3")
	waiting := between("a", "")
	waiting.StartRevision = 100
	s.create(waiting)
	s.progress()
	s.quiet("not while a watcher waits for the future")

	n := open(t, c)
	notify := between("b", "")
	notify.ProgressNotify = true
	n.create(notify)
	equal(t, "on a timer", head(n.next()), "id 0 rev 3")
	put(t, c, "other", "2") // 4
	eventually(t, "the timer shows the new revision", func() bool { return n.next().Header.Revision == 4 })

	watch := c.Watch(clientv3.WithRequireLeader(ctx), "a", clientv3.WithCreatedNotify())
	equal(t, "created, through the library", (<-watch).Created, true)
	if err := c.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
		t.Fatal(err)
	}
	response := <-watch
	equal(t, "progress, through the library", fmt.Sprint(response.IsProgressNotify(), response.Header.Revision), "true 4")
}

func TestWatchFragments(t *testing.T) {
	c := start(t).Client()
	value := strings.Repeat("f", 700_000)
	for i := range 6 {
		put(t, c, fmt.Sprint("f/", i), value)
	}
	s := open(t, c)
	request := between("f/", "f0")
	request.StartRevision, request.Fragment = 2, true
	s.create(request)
	var seen []string
	fragments := 0
	for {
		response := s.next()
		fragments++
		for _, event := range response.Events {
			seen = append(seen, string(event.Kv.Key))
			equal(t, "value", string(event.Kv.Value) == value, true)
		}
		equal(t, "header of each", response.Header.Revision, 7)
		if !response.Fragment {
			break
		}
	}
	equal(t, "all of them once", strings.Join(seen, " "), "f/0 f/1 f/2 f/3 f/4 f/5")
	equal(t, "fragments", fragments, 3)
	whole := between("f/", "f0")
	whole.StartRevision = 2
	s.create(whole)
	got := s.next()
	equal(t, "without fragments", fmt.Sprint(len(got.Events), got.Fragment), "6 false")
}

func TestWatchManyAndResume(t *testing.T) {
	m := start(t)
	c := m.Client()
	ctx := background(t)
	const watchers, puts = 50, 40
	var channels []clientv3.WatchChan
	for i := range watchers {
		options := []clientv3.OpOption{clientv3.WithPrefix()}
		if i%2 == 1 {
			options = append(options, clientv3.WithRev(2))
		}
		channels = append(channels, c.Watch(ctx, "w/", append(options, clientv3.WithCreatedNotify())...))
	}
	for _, channel := range channels {
		if response := <-channel; !response.Created {
			t.Fatal("not created first")
		}
	}
	for i := range puts {
		put(t, c, fmt.Sprint("w/", i), "x")
	}
	for number, channel := range channels {
		next := int64(2)
		for next < 2+puts {
			select {
			case response := <-channel:
				for _, event := range response.Events {
					if event.Kv.ModRevision != next {
						t.Fatalf("watcher %d: revision %d where %d was due", number, event.Kv.ModRevision, next)
					}
					next++
				}
			case <-time.After(patience):
				t.Fatalf("watcher %d: nothing after revision %d", number, next-1)
			}
		}
	}
	// The stream ends when the client says that it sends no more and gives up.
	s := open(t, c)
	s.create(between("w/", "w0"))
	if err := s.watch.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.quiet("a half-closed stream stays")
	put(t, c, "w/x", "1")
	equal(t, "and goes on", len(s.next().Events), 1)
	m.Stop()
	select {
	case err := <-s.end:
		if err == io.EOF {
			t.Error("the stream ended as if all were well")
		}
	case <-time.After(patience):
		t.Error("the stream outlives the server")
	}
}

func TestWatchTenThousandAtOnce(t *testing.T) {
	m := start(t)
	c := m.Client()
	s := open(t, c)
	const watchers = 10_000
	// Nobody waits for an answer before the next request goes out.
	go func() {
		for i := range watchers {
			if s.watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
				CreateRequest: &pb.WatchCreateRequest{Key: []byte(fmt.Sprint("w/", i%100))},
			}}) != nil {
				return
			}
		}
	}()
	for id := range watchers {
		if got := s.next(); !got.Created || got.WatchId != int64(id) {
			t.Fatalf("watcher %d: %v", id, got)
		}
	}
	put(t, c, "w/7", "x")
	told := map[int64]bool{}
	for len(told) < watchers/100 {
		told[s.next().WatchId] = true
	}
}
