package goclient

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"keelson.dev/compat/member"
)

func TestMaintenance(t *testing.T) {
	m := start(t)
	c := m.Client()
	ctx := background(t)
	r := stubs(c)
	for i := range 30 {
		put(t, c, fmt.Sprint("k", i%7), strings.Repeat("v", 1000))
	}
	status := must(c.Status(ctx, c.Endpoints()[0]))(t)
	equal(t, "status", fmt.Sprint(status.Version, " ", status.StorageVersion, " ", status.Leader == status.Header.MemberId, status.IsLearner, len(status.Errors)), "3.7.1 3.7.0 true false 0")
	equal(t, "indexes", status.RaftIndex > 30 && status.RaftAppliedIndex == status.RaftIndex && status.RaftTerm >= 2, true)
	equal(t, "sizes", status.DbSize >= status.DbSizeInUse && status.DbSizeInUse > 0 && status.DbSizeQuota == 2<<30, true)
	members := must(c.MemberList(ctx))(t)
	equal(t, "members", fmt.Sprint(len(members.Members), members.Members[0].Name, members.Members[0].PeerURLs, members.Members[0].ClientURLs, members.Header.Revision), "1m1[http://127.0.0.1:12380] [http://127.0.0.1:12379] 0")
	equal(t, "ids follow from the announced addresses", fmt.Sprintf("%x %x", members.Header.ClusterId, members.Header.MemberId), fmt.Sprintf("%x %x", uint64(12101053776118486841), uint64(15985099378392235387)))

	equal(t, "hash", must(r.Hash(ctx, &pb.HashRequest{}))(t).Hash != 0, true)
	whole := must(r.HashKV(ctx, &pb.HashKVRequest{}))(t)
	old := must(r.HashKV(ctx, &pb.HashKVRequest{Revision: 10}))(t)
	equal(t, "hash of keys", fmt.Sprint(whole.CompactRevision, whole.HashRevision, old.HashRevision, whole.Hash != old.Hash), "-1 31 10 true")
	must(c.Compact(ctx, 20, clientv3.WithCompactPhysical()))(t)
	after := must(r.HashKV(ctx, &pb.HashKVRequest{}))(t)
	equal(t, "after a compaction", fmt.Sprint(after.CompactRevision, after.Hash != whole.Hash), "20 true")
	_, err := r.HashKV(ctx, &pb.HashKVRequest{Revision: 5})
	refused(t, "hash of the past", err, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted")
	_, err = r.HashKV(ctx, &pb.HashKVRequest{Revision: 500})
	refused(t, "hash of the future", err, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision")

	// Defragmentation, with everything going on.
	must(c.Defragment(ctx, c.Endpoints()[0]))(t)
	equal(t, "the keys are there", must(c.Get(ctx, "k", clientv3.WithPrefix()))(t).Count, 7)
	equal(t, "and the hash", must(r.HashKV(ctx, &pb.HashKVRequest{}))(t).Hash, after.Hash)

	snapshot := must(c.SnapshotWithVersion(ctx))(t)
	file := must(io.ReadAll(snapshot.Snapshot))(t)
	equal(t, "version of a snapshot", snapshot.Version, "3.7.0")
	equal(t, "a snapshot is a file and its hash", len(file)%512, 32)
	sum := sha256.Sum256(file[:len(file)-32])
	equal(t, "which is right", bytes.Equal(sum[:], file[len(file)-32:]), true)

	health := healthpb.NewHealthClient(c.ActiveConnection())
	check := must(health.Check(ctx, &healthpb.HealthCheckRequest{}))(t)
	equal(t, "health", check.Status, healthpb.HealthCheckResponse_SERVING)
	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "no"})
	refused(t, "health of nothing", err, codes.NotFound, "unknown service")
	_, err = r.Downgrade(ctx, &pb.DowngradeRequest{Action: 7, Version: "3.6"})
	refused(t, "unknown downgrade action", err, codes.Unknown, "etcdserver: unknown method")
	_, err = r.Downgrade(ctx, &pb.DowngradeRequest{Version: "x"})
	refused(t, "downgrade to nothing", err, codes.InvalidArgument, "etcdserver: wrong downgrade target version format")
	_, err = r.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.4"})
	refused(t, "downgrade too far", err, codes.InvalidArgument, "etcdserver: invalid downgrade target version")

	_, err = r.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})
	refused(t, "move the leader to nobody", err, codes.FailedPrecondition, "etcdserver: bad leader transferee")

	m.Stop()
	c = member.Start(t, member.Binary(t, "SERVER_BINARY"), m.Dir).Client()
	equal(t, "the hash after a restart", must(stubs(c).HashKV(ctx, &pb.HashKVRequest{}))(t).Hash, after.Hash)
}

func TestAlarms(t *testing.T) {
	c := start(t).Client()
	ctx := background(t)
	r := stubs(c)
	put(t, c, "a", "1")
	id := must(c.Status(ctx, c.Endpoints()[0]))(t).Header.MemberId
	alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) string {
		t.Helper()
		var text string
		for _, a := range must(r.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: id, Alarm: kind}))(t).Alarms {
			text += fmt.Sprint(a.MemberID == id, " ", a.Alarm)
		}
		return text
	}
	equal(t, "none", alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE), "")
	equal(t, "raised", alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE), "true NOSPACE")
	equal(t, "listed", alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE), "true NOSPACE")
	const noSpace, corrupt = "etcdserver: mvcc: database space exceeded", "etcdserver: corrupt cluster"
	refused(t, "put", e(r.Put(ctx, &pb.PutRequest{Key: []byte("b")})), codes.ResourceExhausted, noSpace)
	refused(t, "put without key", e(r.Put(ctx, &pb.PutRequest{})), codes.InvalidArgument, "etcdserver: key is not provided")
	refused(t, "txn with a put", e(r.Txn(ctx, success(putOp("b", "1")))), codes.ResourceExhausted, noSpace)
	refused(t, "grant", e(r.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})), codes.ResourceExhausted, noSpace)
	must(c.Get(ctx, "a"))(t)
	must(c.Delete(ctx, "a"))(t)
	must(c.Compact(ctx, 3))(t)
	status := must(c.Status(ctx, c.Endpoints()[0]))(t)
	equal(t, "status names it", strings.Join(strings.Fields(strings.Join(status.Errors, "")), " "), fmt.Sprintf("memberID:%d alarm:NOSPACE", id))
	equal(t, "disarmed", alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE), "true NOSPACE")
	put(t, c, "b", "1")
	equal(t, "corrupt", alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT), "true CORRUPT")
	refused(t, "put when corrupt", e(r.Put(ctx, &pb.PutRequest{Key: []byte("b")})), codes.DataLoss, corrupt)
	refused(t, "delete when corrupt", e(r.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("b")})), codes.DataLoss, corrupt)
	refused(t, "txn when corrupt", e(r.Txn(ctx, success(putOp("b", "1")))), codes.DataLoss, corrupt)
	refused(t, "compact when corrupt", e(r.Compact(ctx, &pb.CompactionRequest{Revision: 4})), codes.DataLoss, corrupt)
	refused(t, "grant when corrupt", e(r.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})), codes.DataLoss, corrupt)
	refused(t, "revoke when corrupt", e(r.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1})), codes.DataLoss, corrupt)
	equal(t, "disarmed again", alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_CORRUPT), "true CORRUPT")
	put(t, c, "b", "2")
}
