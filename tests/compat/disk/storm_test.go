package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// Snapshots after every tenth entry, so that log and file are at work all the time.
var storm = []string{"--snapshot-count", "10", "--max-wals", "2", "--max-snapshots", "2"}

// cutOff starts the program and kills it after a while, wherever its start is by then. It must not end by
// itself before.
func cutOff(t *testing.T, dir string, after time.Duration) {
	t.Helper()
	scratch := t.TempDir()
	link := filepath.Join(scratch, "etcd")
	if err := os.Symlink(member.Binary(t, "SERVER_BINARY"), link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, append([]string{
		"--name", "m1", "--data-dir", dir,
		"--listen-client-urls", "unix://" + filepath.Join(scratch, "client"), "--advertise-client-urls", "http://127.0.0.1:12379",
		"--listen-peer-urls", "unix://" + filepath.Join(scratch, "peer"), "--initial-advertise-peer-urls", "http://127.0.0.1:12380",
		"--initial-cluster", "m1=http://127.0.0.1:12380", "--initial-cluster-state", "new",
	}, storm...)...)
	log, err := os.Create(filepath.Join(scratch, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("ended by itself: %v\n%s", cmd.ProcessState, text)
	case <-time.After(after):
		_ = cmd.Process.Kill()
		<-done
	}
}

// etcd itself does not pass: a kill between the making of its log and the first entry leaves a member that
// waits for a leader for good.
func TestStormAtTheStart(t *testing.T) {
	for round := range 4 {
		dir := filepath.Join(t.TempDir(), "data")
		for kill := range 10 {
			cutOff(t, dir, time.Duration(rand.IntN(40+10*kill))*time.Millisecond)
		}
		m := ours.start(t, dir, storm...)
		put, err := m.Client().Put(member.Context(t), "a", fmt.Sprint(round))
		if err != nil || put.Header.Revision != 2 {
			t.Fatal(put, err)
		}
		m.Kill()
		Check(t, fmt.Sprint("round ", round), dir)
	}
}

// seen is what a watcher was told, over all lives of a member.
type seen struct {
	events []string
	last   atomic.Int64
}

// follow begins a little before the end of what was seen: that is told again, and then what follows.
func (s *seen) follow(ctx context.Context, t *testing.T, c *clientv3.Client) {
	at := max(0, len(s.events)-20)
	for response := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(int64(at)+2)) {
		for _, event := range response.Events {
			if event.Kv.ModRevision != int64(at)+2 {
				t.Errorf("revision %d where %d was due", event.Kv.ModRevision, at+2)
				return
			}
			text := fmt.Sprintf("%s=%s", event.Kv.Key, event.Kv.Value)
			if at < len(s.events) && s.events[at] != text {
				t.Errorf("revision %d is %s, and was %s", at+2, text, s.events[at])
				return
			}
			if at == len(s.events) {
				s.events = append(s.events, text)
			}
			at++
			s.last.Store(event.Kv.ModRevision)
		}
	}
}

func drained(stream grpcSnapshot, err error) error {
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type grpcSnapshot interface {
	Recv() (*pb.SnapshotResponse, error)
}

// Every write is one revision, so that what watchers saw and what writers were told fit without a gap, while
// compactions, defragmentations, snapshots and hashes go on and the member is killed among them.
func TestStormOfEverything(t *testing.T) {
	rounds := 8
	if number, err := strconv.Atoi(os.Getenv("KILLS")); err == nil {
		rounds = number
	}
	dir := t.TempDir()
	written := NewAcknowledged()
	watched := &seen{}
	for round := range rounds {
		m := ours.start(t, dir, storm...)
		c := m.Client()
		written.Verify(t, c)
		ctx, cancel := context.WithCancel(member.Context(t))
		var clients sync.WaitGroup
		for number := range 8 {
			writer := m.Client()
			clients.Go(func() {
				defer writer.Close()
				written.Write(ctx, writer, round*100+number)
			})
		}
		clients.Go(func() { watched.follow(ctx, t, c) })
		every := func(pause time.Duration, do func() error) {
			clients.Go(func() {
				for ctx.Err() == nil {
					_ = do()
					time.Sleep(pause)
				}
			})
		}
		kv, maintenance := pb.NewKVClient(c.ActiveConnection()), pb.NewMaintenanceClient(c.ActiveConnection())
		every(20*time.Millisecond, func() error {
			_, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: watched.last.Load() - 50, Physical: round%2 == 0})
			return err
		})
		every(30*time.Millisecond, func() error {
			_, err := maintenance.HashKV(ctx, &pb.HashKVRequest{})
			return err
		})
		every(50*time.Millisecond, func() error {
			_, err := maintenance.Defragment(ctx, &pb.DefragmentRequest{})
			return err
		})
		every(70*time.Millisecond, func() error { return drained(maintenance.Snapshot(ctx, &pb.SnapshotRequest{})) })
		before := written.Count()
		time.Sleep(time.Duration(200+rand.IntN(800)) * time.Millisecond)
		if round%4 == 3 {
			m.Stop()
		} else {
			m.Kill()
		}
		cancel()
		clients.Wait()
		_ = c.Close()
		if written.Count() == before {
			t.Errorf("round %d: the load does not move", round)
		}
		Check(t, fmt.Sprint("round ", round), dir)
		if round%3 == 2 {
			cutOff(t, dir, time.Duration(rand.IntN(80))*time.Millisecond)
		}
	}
	for _, next := range []program{ours, etcd} {
		m := next.start(t, dir, storm...)
		written.Verify(t, m.Client())
		m.Stop()
	}
	t.Logf("%d acknowledged writes, %d events", written.Count(), len(watched.events))
}
