package goclient

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"

	"keelson.dev/compat/member"
)

func TestUnixSocket(t *testing.T) {
	socket := "unix://" + filepath.Join(t.TempDir(), "socket")
	m := start(t, "--listen-client-urls", socket)
	c := m.Client(func(config *clientv3.Config) { config.Endpoints = []string{socket} })
	put(t, c, "a", "1")
	equal(t, "seen from the other listener", showAll(must(m.Client().Get(background(t), "a"))(t).Kvs), "a=1 2/2/1")
	watch := c.Watch(background(t), "a", clientv3.WithRev(2))
	equal(t, "a watch", len((<-watch).Events), 1)
}

func TestCompressedCalls(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	r := stubs(c)
	long := []byte(strings.Repeat("compressible ", 10_000))
	must(r.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: long}, grpc.UseCompressor(gzip.Name)))(t)
	got := must(r.Range(ctx, &pb.RangeRequest{Key: []byte("a")}, grpc.UseCompressor(gzip.Name)))(t)
	equal(t, "the value", string(got.Kvs[0].Value) == string(long), true)
}

// Many calls at once on one connection: more streams than HTTP/2 servers allow by default.
func TestManyStreams(t *testing.T) {
	m := start(t)
	c := m.Client(func(config *clientv3.Config) {
		config.DialOptions = []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second})}
	})
	ctx := background(t)
	const streams = 1000
	r := stubs(c)
	var open []pb.Watch_WatchClient
	for range streams {
		stream := must(r.Watch(ctx))(t)
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: between("m", "")}}); err != nil {
			t.Fatal(err)
		}
		open = append(open, stream)
	}
	for _, stream := range open {
		equal(t, "created", must(stream.Recv())(t).Created, true)
	}
	must(m.Client().Put(ctx, "m", "1"))(t)
	for number, stream := range open {
		if response := must(stream.Recv())(t); len(response.Events) != 1 {
			t.Fatalf("stream %d: %v", number, response)
		}
	}
	put(t, c, "after", fmt.Sprint(streams))
}

func TestRequireLeader(t *testing.T) {
	c := start(t).Client()
	ctx := clientv3.WithRequireLeader(background(t))
	must(c.Put(ctx, "a", "1"))(t)
	must(c.Get(ctx, "a"))(t)
	must(c.MemberList(member.Context(t)))(t)
}
