// Package goclient drives a server with the official Go client and says where it is not etcd.
//
// SERVER_BINARY names the program; each test starts one of its own.
package goclient

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/compat/member"
)

// patience bounds the wait for something that must come; silence is how long nothing may come.
const (
	patience = 15 * time.Second
	silence  = 700 * time.Millisecond
)

func start(t *testing.T, args ...string) *member.Member {
	t.Helper()
	t.Parallel()
	return member.Start(t, member.Binary(t, "SERVER_BINARY"), t.TempDir(), args...)
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s:\n  got  %s\n  want %s", what, g, w)
	}
}

func must[T any](value T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// refused checks code and text of an error, as they are on the wire.
func refused(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v %q", what, code, text)
		return
	}
	s := status.Convert(err)
	// protobuf-go varies this space on purpose.
	message := strings.ReplaceAll(s.Message(), "\u00a0", " ")
	if s.Code() != code || message != text {
		t.Errorf("%s:\n  got  %v %q\n  want %v %q", what, s.Code(), message, code, text)
	}
}

// show is a key-value: key=value create/mod/version, and the lease when there is one.
func show(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "none"
	}
	text := fmt.Sprintf("%s=%s %d/%d/%d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		text += fmt.Sprintf(" lease %d", kv.Lease)
	}
	return text
}

func showAll(kvs []*mvccpb.KeyValue) string {
	texts := make([]string, 0, len(kvs))
	for _, kv := range kvs {
		texts = append(texts, show(kv))
	}
	return strings.Join(texts, ", ")
}

func keys(kvs []*mvccpb.KeyValue) string {
	texts := make([]string, 0, len(kvs))
	for _, kv := range kvs {
		texts = append(texts, string(kv.Key))
	}
	return strings.Join(texts, " ")
}

func put(t *testing.T, c *clientv3.Client, key, value string, options ...clientv3.OpOption) int64 {
	t.Helper()
	return must(c.Put(member.Context(t), key, value, options...))(t).Header.Revision
}

// raw gives the generated stubs: what the client library would hide or refuse.
type raw struct {
	pb.KVClient
	pb.WatchClient
	pb.LeaseClient
	pb.AuthClient
	pb.MaintenanceClient
	pb.ClusterClient
}

func stubs(c *clientv3.Client) raw {
	conn := c.ActiveConnection()
	return raw{
		pb.NewKVClient(conn), pb.NewWatchClient(conn), pb.NewLeaseClient(conn),
		pb.NewAuthClient(conn), pb.NewMaintenanceClient(conn), pb.NewClusterClient(conn),
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("%s: not within %v", what, patience)
}

func background(t *testing.T) context.Context { return member.Context(t) }

func putOp(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func deleteOp(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func txnOp(txn *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}
}

func success(ops ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Success: ops} }
