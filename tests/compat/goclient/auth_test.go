package goclient

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"keelson.dev/compat/member"
)

const (
	denied    = "etcdserver: permission denied"
	noUser    = "etcdserver: user name is empty"
	badToken  = "etcdserver: invalid auth token"
	cheap     = "--bcrypt-cost"
	cheapCost = "4"
)

// guarded starts a server with auth on: root, and alice who may read a/, write w/, do both in b/, read all
// from z on, and read the single key k.
func guarded(t *testing.T) (m *member.Member, root, alice *clientv3.Client) {
	t.Helper()
	m = start(t, cheap, cheapCost)
	c := m.Client()
	ctx := background(t)
	must(c.UserAdd(ctx, "root", "rootpw"))(t)
	must(c.UserGrantRole(ctx, "root", "root"))(t)
	must(c.UserAdd(ctx, "alice", "alicepw"))(t)
	must(c.RoleAdd(ctx, "r"))(t)
	for _, grant := range []struct {
		key, end string
		kind     authpb.Permission_Type
	}{
		{"a/", "a0", authpb.READ}, {"w/", "w0", authpb.WRITE}, {"b/", "b0", authpb.READWRITE},
		{"z", "\x00", authpb.READ}, {"k", "", authpb.READ},
		{"m/a", "m/c", authpb.READ}, {"m/c", "m/e", authpb.READ},
	} {
		must(c.RoleGrantPermission(ctx, "r", grant.key, grant.end, clientv3.PermissionType(grant.kind)))(t)
	}
	must(c.UserGrantRole(ctx, "alice", "r"))(t)
	for _, key := range []string{"a/1", "b/1", "w/1", "k", "x", "z1", "m/b", "m/d"} {
		put(t, c, key, "v")
	}
	must(c.AuthEnable(ctx))(t)
	return m, m.Client(member.As("root", "rootpw")), m.Client(member.As("alice", "alicepw"))
}

// token logs in and makes a context with the token on a connection without user.
func token(t *testing.T, c *clientv3.Client, name, password string) context.Context {
	t.Helper()
	ctx := background(t)
	answer := must(stubs(c).Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: password}))(t)
	return metadata.AppendToOutgoingContext(ctx, "token", answer.Token)
}

func TestAuthManagement(t *testing.T) {
	c := start(t, cheap, cheapCost).Client()
	ctx := background(t)
	r := stubs(c)
	status := must(c.AuthStatus(ctx))(t)
	equal(t, "fresh", fmt.Sprint(status.Enabled, status.AuthRevision), "false 1")
	long := strings.Repeat("p", 73)
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"enable without root", e(r.AuthEnable(ctx, &pb.AuthEnableRequest{})), codes.FailedPrecondition, "etcdserver: root user does not exist"},
		{"authenticate while off", e(r.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "x"})), codes.FailedPrecondition, "etcdserver: authentication is not enabled"},
		{"user without name", e(r.UserAdd(ctx, &pb.AuthUserAddRequest{Password: "x"})), codes.InvalidArgument, noUser},
		{"a long password", e(r.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "x", Password: long})), codes.Unknown, "bcrypt: password length exceeds 72 bytes"},
		{"get no user", e(r.UserGet(ctx, &pb.AuthUserGetRequest{Name: "no"})), codes.FailedPrecondition, "etcdserver: user name not found"},
		{"delete no user", e(r.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "no"})), codes.FailedPrecondition, "etcdserver: user name not found"},
		{"password of no user", e(r.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "no", Password: "x"})), codes.FailedPrecondition, "etcdserver: user name not found"},
		{"grant to no user", e(r.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "no", Role: "root"})), codes.FailedPrecondition, "etcdserver: user name not found"},
		{"revoke from no user", e(r.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: "no", Role: "r"})), codes.FailedPrecondition, "etcdserver: user name not found"},
		{"role without name", e(r.RoleAdd(ctx, &pb.AuthRoleAddRequest{})), codes.InvalidArgument, "etcdserver: role name is empty"},
		{"get no role", e(r.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "no"})), codes.FailedPrecondition, "etcdserver: role name not found"},
		{"delete no role", e(r.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: "no"})), codes.FailedPrecondition, "etcdserver: role name not found"},
		{"grant to no role", e(r.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "no", Perm: &authpb.Permission{Key: []byte("a")}})), codes.FailedPrecondition, "etcdserver: role name not found"},
		{"revoke from no role", e(r.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: "no", Key: []byte("a")})), codes.FailedPrecondition, "etcdserver: role name not found"},
	} {
		refused(t, test.name, test.err, test.code, test.text)
	}

	must(c.UserAdd(ctx, "root", "pw"))(t)
	refused(t, "a user twice", e(r.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "x"})), codes.FailedPrecondition, "etcdserver: user name already exists")
	refused(t, "enable without the role", e(r.AuthEnable(ctx, &pb.AuthEnableRequest{})), codes.FailedPrecondition, "etcdserver: root user does not have root role")
	must(c.UserGrantRole(ctx, "root", "root"))(t) // the role need not exist
	must(c.UserAddWithOptions(ctx, "bob", "", &clientv3.UserAddOptions{NoPassword: true}))(t)
	must(c.RoleAdd(ctx, "r2"))(t)
	must(c.RoleAdd(ctx, "r1"))(t)
	refused(t, "a role twice", e(r.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r1"})), codes.FailedPrecondition, "etcdserver: role name already exists")
	refused(t, "no role to grant", e(r.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "bob", Role: "no"})), codes.FailedPrecondition, "etcdserver: role name not found")
	must(c.UserGrantRole(ctx, "bob", "r2"))(t)
	must(c.UserGrantRole(ctx, "bob", "r1"))(t)
	must(c.UserGrantRole(ctx, "bob", "r1"))(t)
	equal(t, "users", must(c.UserList(ctx))(t).Users, []string{"bob", "root"})
	equal(t, "roles", must(c.RoleList(ctx))(t).Roles, []string{"r1", "r2"})
	equal(t, "roles of a user", must(c.UserGet(ctx, "bob"))(t).Roles, []string{"r1", "r2"})
	refused(t, "not granted", e(r.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "r1"})), codes.FailedPrecondition, "etcdserver: role is not granted to the user")

	grant := func(key, end string) error {
		return e(r.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r1", Perm: &authpb.Permission{PermType: authpb.WRITE, Key: []byte(key), RangeEnd: []byte(end)}}))
	}
	refused(t, "an interval backwards", grant("b", "a"), codes.InvalidArgument, "etcdserver: invalid auth management")
	refused(t, "an empty key", grant("", "z"), codes.InvalidArgument, "etcdserver: invalid auth management")
	refused(t, "no permission", e(r.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r1"})), codes.InvalidArgument, "etcdserver: permission not given")
	for _, pair := range [][2]string{{"q", ""}, {"c", "d"}, {"c", "d"}, {"a", "\x00"}} {
		if err := grant(pair[0], pair[1]); err != nil {
			t.Error(err)
		}
	}
	must(c.RoleGrantPermission(ctx, "r1", "c", "d", clientv3.PermissionType(authpb.READ)))(t)
	permissions := func() (text string) {
		for _, p := range must(c.RoleGet(ctx, "r1"))(t).Perm {
			text += fmt.Sprintf("%v %q %q; ", p.PermType, p.Key, p.RangeEnd)
		}
		return text
	}
	equal(t, "sorted, and changed in place", permissions(), `WRITE "a" "\x00"; READ "c" "d"; WRITE "q" ""; `)
	must(c.RoleRevokePermission(ctx, "r1", "c", "d"))(t)
	refused(t, "revoked twice", e(r.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: "r1", Key: []byte("c"), RangeEnd: []byte("d")})), codes.FailedPrecondition, "etcdserver: permission is not granted to the role")
	equal(t, "what is left", permissions(), `WRITE "a" "\x00"; WRITE "q" ""; `)
	refused(t, "the role root need not exist", e(r.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "root"})), codes.FailedPrecondition, "etcdserver: role name not found")
	must(c.RoleAdd(ctx, "root"))(t)
	equal(t, "the rights of root are made up", fmt.Sprintf("%v", must(c.RoleGet(ctx, "root"))(t).Perm), fmt.Sprintf("%v", []*authpb.Permission{{PermType: authpb.READWRITE, RangeEnd: []byte{0}}}))
	must(c.RoleDelete(ctx, "r2"))(t)
	equal(t, "a deleted role is taken away", must(c.UserGet(ctx, "bob"))(t).Roles, []string{"r1"})

	before := must(c.AuthStatus(ctx))(t).AuthRevision
	must(c.AuthEnable(ctx))(t)
	status = must(c.AuthStatus(ctx))(t)
	equal(t, "enabled, at the same revision", fmt.Sprint(status.Enabled, status.AuthRevision-before), "true 0")
	root := token(t, c, "root", "pw")
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"delete root", e(r.UserDelete(root, &pb.AuthUserDeleteRequest{Name: "root"})), codes.InvalidArgument, "etcdserver: invalid auth management"},
		{"root off root", e(r.UserRevokeRole(root, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"})), codes.InvalidArgument, "etcdserver: invalid auth management"},
		{"delete the role root", e(r.RoleDelete(root, &pb.AuthRoleDeleteRequest{Role: "root"})), codes.InvalidArgument, "etcdserver: invalid auth management"},
		{"a wrong password", e(r.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "x"})), codes.InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"},
		{"no such user", e(r.Authenticate(ctx, &pb.AuthenticateRequest{Name: "no", Password: "x"})), codes.InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"},
		{"a user without password", e(r.Authenticate(ctx, &pb.AuthenticateRequest{Name: "bob", Password: "x"})), codes.Unknown, "auth: authentication failed, password was given for no password user"},
	} {
		refused(t, test.name, test.err, test.code, test.text)
	}
	must(r.AuthEnable(root, &pb.AuthEnableRequest{}))(t)
	must(r.AuthDisable(root, &pb.AuthDisableRequest{}))(t)
	status = must(c.AuthStatus(ctx))(t)
	equal(t, "disabled, one revision on", fmt.Sprint(status.Enabled, status.AuthRevision-before), "false 1")
	must(c.Get(root, "a"))(t) // a dead token does not matter now
}

func e[T any](_ T, err error) error { return err }

func TestAuthPermissions(t *testing.T) {
	m, root, _ := guarded(t)
	c := m.Client()
	r := stubs(c)
	anonymous := background(t)
	alice := token(t, c, "alice", "alicepw")
	bad := metadata.AppendToOutgoingContext(anonymous, "token", "nosuchtoken.1")
	lease := must(root.Grant(anonymous, 600))(t).ID
	put(t, root, "x", "leased", clientv3.WithLease(lease)) // a key alice may not touch
	own := must(r.LeaseGrant(alice, &pb.LeaseGrantRequest{TTL: 600}))(t).ID
	must(r.Put(alice, &pb.PutRequest{Key: []byte("b/leased"), Lease: own}))(t)

	key := func(k string) []byte { return []byte(k) }
	get := func(ctx context.Context, from, to string) error {
		return e(r.Range(ctx, &pb.RangeRequest{Key: key(from), RangeEnd: key(to)}))
	}
	stream := func(ctx context.Context, from, to string) error {
		s, err := r.RangeStream(ctx, &pb.RangeRequest{Key: key(from), RangeEnd: key(to)})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	txn := func(ctx context.Context, x *pb.TxnRequest) error { return e(r.Txn(ctx, x)) }
	withLease := func(k string, id int64) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(k), Lease: id}}}
	}
	withPrev := func(k string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(k), PrevKv: true}}}
	}
	deletePrev := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key("w/1"), PrevKv: true}}}
	compare := func(k, end string) *pb.Compare {
		return &pb.Compare{Key: key(k), RangeEnd: key(end), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}
	}
	for _, test := range []struct {
		name string
		err  error
		text string // "" is allowed, else the text of a refusal
	}{
		{"read", get(alice, "a/1", ""), ""},
		{"read an interval", get(alice, "a/", "a0"), ""},
		{"read a part", get(alice, "a/1", "a/2"), ""},
		{"read past the end", get(alice, "a/", "a1"), denied},
		{"read a key", get(alice, "k", ""), ""},
		{"read from that key", get(alice, "k", "l"), denied},
		{"read from z", get(alice, "z", "\x00"), ""},
		{"read from zz", get(alice, "zz", "\x00"), ""},
		{"read everything", get(alice, "\x00", "\x00"), denied},
		{"two permissions joined", get(alice, "m/b", "m/d"), ""},
		{"read what may be written", get(alice, "w/1", ""), denied},
		{"read nothing of mine", get(alice, "x", ""), denied},
		{"stream", stream(alice, "a/", "a0"), ""},
		{"stream too far", stream(alice, "a/", "b0"), denied},
		{"write", e(r.Put(alice, &pb.PutRequest{Key: key("w/1"), Value: key("1")})), ""},
		{"write what may be read", e(r.Put(alice, &pb.PutRequest{Key: key("a/1")})), denied},
		{"write and see the previous", e(r.Put(alice, &pb.PutRequest{Key: key("w/1"), PrevKv: true})), denied},
		{"both", e(r.Put(alice, &pb.PutRequest{Key: key("b/1"), PrevKv: true})), ""},
		{"join a lease of others' keys", e(r.Put(alice, &pb.PutRequest{Key: key("b/1"), Lease: int64(lease)})), denied},
		{"delete", e(r.DeleteRange(alice, &pb.DeleteRangeRequest{Key: key("w/1")})), ""},
		{"delete too much", e(r.DeleteRange(alice, &pb.DeleteRangeRequest{Key: key("w/"), RangeEnd: key("w1")})), denied},
		{"delete and see", e(r.DeleteRange(alice, &pb.DeleteRangeRequest{Key: key("w/1"), PrevKv: true})), denied},
		{"txn", txn(alice, success(putOp("b/1", "1"), rangeOp(&pb.RangeRequest{Key: key("a/1")}))), ""},
		{"txn put", txn(alice, success(putOp("x", "1"))), denied},
		{"txn put with previous", txn(alice, success(withPrev("w/1"))), denied},
		{"txn put with a lease", txn(alice, success(withLease("b/1", int64(lease)))), denied},
		{"txn range", txn(alice, success(rangeOp(&pb.RangeRequest{Key: key("x")}))), denied},
		{"txn delete", txn(alice, success(deleteOp("x", ""))), denied},
		{"txn delete with previous", txn(alice, success(deletePrev)), denied},
		{"txn compare", txn(alice, &pb.TxnRequest{Compare: []*pb.Compare{compare("x", "")}}), denied},
		{"txn compare over an interval", txn(alice, &pb.TxnRequest{Compare: []*pb.Compare{compare("a/", "a1")}}), denied},
		{"txn, the branch that is not taken", txn(alice, &pb.TxnRequest{Failure: []*pb.RequestOp{putOp("x", "1")}}), denied},
		{"nested txn", txn(alice, success(txnOp(success(putOp("b/1", "1"))))), ""},
		{"nested txn put", txn(alice, success(txnOp(success(putOp("x", "1"))))), denied},
		{"nested txn put with a lease", txn(alice, success(txnOp(success(withLease("b/1", int64(lease)))))), denied},
		{"nested txn put with previous", txn(alice, success(txnOp(success(withPrev("w/1"))))), denied},
		{"nested txn compare", txn(alice, success(txnOp(&pb.TxnRequest{Compare: []*pb.Compare{compare("x", "")}}))), denied},
		{"nested txn, the other branch", txn(alice, &pb.TxnRequest{Failure: []*pb.RequestOp{txnOp(&pb.TxnRequest{Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: key("x")})}})}}), denied},
		{"compact", e(r.Compact(alice, &pb.CompactionRequest{Revision: 2})), denied},
		{"grant", e(r.LeaseGrant(alice, &pb.LeaseGrantRequest{TTL: 60})), ""},
		{"revoke others' keys", e(r.LeaseRevoke(alice, &pb.LeaseRevokeRequest{ID: int64(lease)})), denied},
		{"time to live", e(r.LeaseTimeToLive(alice, &pb.LeaseTimeToLiveRequest{ID: int64(lease)})), ""},
		{"time to live with others' keys", e(r.LeaseTimeToLive(alice, &pb.LeaseTimeToLiveRequest{ID: int64(lease), Keys: true})), denied},
		{"time to live with own keys", e(r.LeaseTimeToLive(alice, &pb.LeaseTimeToLiveRequest{ID: own, Keys: true})), ""},
		{"all leases", e(r.LeaseLeases(alice, &pb.LeaseLeasesRequest{})), denied},
		{"keep alive others' keys", keepAlive(alice, r, int64(lease)), denied},
		{"keep alive", keepAlive(alice, r, own), ""},
		{"revoke", e(r.LeaseRevoke(alice, &pb.LeaseRevokeRequest{ID: own})), ""},
		{"member list", e(r.MemberList(alice, &pb.MemberListRequest{})), ""},
		{"status", e(r.Status(alice, &pb.StatusRequest{})), ""},
		{"alarms", e(r.Alarm(alice, &pb.AlarmRequest{})), ""},
		{"raise an alarm", e(r.Alarm(alice, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})), denied},
		{"defragment", e(r.Defragment(alice, &pb.DefragmentRequest{})), denied},
		{"hash", e(r.Hash(alice, &pb.HashRequest{})), denied},
		{"hash of keys", e(r.HashKV(alice, &pb.HashKVRequest{})), denied},
		{"snapshot", snapshot(alice, r), denied},
		{"own user", e(r.UserGet(alice, &pb.AuthUserGetRequest{Name: "alice"})), ""},
		{"another user", e(r.UserGet(alice, &pb.AuthUserGetRequest{Name: "root"})), denied},
		{"own role", e(r.RoleGet(alice, &pb.AuthRoleGetRequest{Role: "r"})), ""},
		{"another role", e(r.RoleGet(alice, &pb.AuthRoleGetRequest{Role: "root"})), denied},
		{"users", e(r.UserList(alice, &pb.AuthUserListRequest{})), denied},
		{"roles", e(r.RoleList(alice, &pb.AuthRoleListRequest{})), denied},
		{"add a user", e(r.UserAdd(alice, &pb.AuthUserAddRequest{Name: "eve"})), denied},
		{"own password", e(r.UserChangePassword(alice, &pb.AuthUserChangePasswordRequest{Name: "alice", Password: "x"})), denied},
		{"more rights", e(r.UserGrantRole(alice, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "root"})), denied},
		{"disable", e(r.AuthDisable(alice, &pb.AuthDisableRequest{})), denied},
		{"auth status", e(r.AuthStatus(anonymous, &pb.AuthStatusRequest{})), ""},
		{"nobody: read", get(anonymous, "a/1", ""), noUser},
		{"nobody: stream", stream(anonymous, "a/1", ""), noUser},
		{"nobody: write", e(r.Put(anonymous, &pb.PutRequest{Key: key("w/1")})), noUser},
		{"nobody: txn", txn(anonymous, success(putOp("w/1", "1"))), noUser},
		{"nobody: compact", e(r.Compact(anonymous, &pb.CompactionRequest{Revision: 2})), noUser},
		{"nobody: grant", e(r.LeaseGrant(anonymous, &pb.LeaseGrantRequest{TTL: 60})), noUser},
		{"nobody: revoke", e(r.LeaseRevoke(anonymous, &pb.LeaseRevokeRequest{ID: 1})), noUser},
		{"nobody: keep alive", keepAlive(anonymous, r, int64(lease)), noUser},
		{"nobody: time to live", e(r.LeaseTimeToLive(anonymous, &pb.LeaseTimeToLiveRequest{ID: 1})), noUser},
		{"nobody: leases", e(r.LeaseLeases(anonymous, &pb.LeaseLeasesRequest{})), noUser},
		{"nobody: status", e(r.Status(anonymous, &pb.StatusRequest{})), noUser},
		{"nobody: snapshot", snapshot(anonymous, r), noUser},
		{"nobody: member list", e(r.MemberList(anonymous, &pb.MemberListRequest{})), noUser},
		{"nobody: users", e(r.UserList(anonymous, &pb.AuthUserListRequest{})), noUser},
		{"a bad token: read", get(bad, "a/1", ""), badToken},
		{"a bad token: write", e(r.Put(bad, &pb.PutRequest{Key: key("w/1")})), badToken},
		{"a bad token: hash", e(r.Hash(bad, &pb.HashRequest{})), badToken},
		{"a bad token: users", e(r.UserList(bad, &pb.AuthUserListRequest{})), badToken},
	} {
		if test.text == "" {
			if test.err != nil {
				t.Errorf("%s: %v", test.name, test.err)
			}
			continue
		}
		code := map[string]codes.Code{denied: codes.PermissionDenied, noUser: codes.InvalidArgument, badToken: codes.Unauthenticated}[test.text]
		refused(t, test.name, test.err, code, test.text)
	}
	must(root.Compact(anonymous, 3))(t)
	must(root.Snapshot(anonymous))(t)
	equal(t, "root may revoke any lease", e(root.Revoke(anonymous, lease)), error(nil))
}

func keepAlive(ctx context.Context, r raw, lease int64) error {
	stream, err := r.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func snapshot(ctx context.Context, r raw) error {
	stream, err := r.Snapshot(ctx, &pb.SnapshotRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func TestAuthWatch(t *testing.T) {
	m, root, _ := guarded(t)
	c := m.Client()
	alice := token(t, c, "alice", "alicepw")
	watch := func(ctx context.Context, from, to string) *pb.WatchResponse {
		t.Helper()
		client := must(stubs(c).Watch(ctx))(t)
		if err := client.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: between(from, to)}}); err != nil {
			t.Fatal(err)
		}
		return must(client.Recv())(t)
	}
	const refusal = "created canceled \"rpc error: code = %s desc = %s\""
	reason := func(r *pb.WatchResponse) string {
		_, text, _ := strings.Cut(head(r), fmt.Sprintf("rev %d ", r.Header.Revision))
		return text
	}
	no := fmt.Sprintf(refusal, "PermissionDenied", denied)
	for _, test := range []struct{ name, from, to, want string }{
		{"its interval", "a/", "a0", "created"},
		{"a key", "k", "", "created"},
		{"a part", "a/1", "a/2", "created"},
		{"past the end", "a/", "a1", no},
		{"from z on", "z", "\x00", "created"},
		{"from a on", "a/", "\x00", no},
		{"joined", "m/a", "m/e", "created"},
		{"what may be written", "w/1", "", no},
		{"everything", "\x00", "\x00", no},
		{"no key at all", "", "", no},
	} {
		equal(t, test.name, reason(watch(alice, test.from, test.to)), test.want)
	}
	equal(t, "nobody", reason(watch(background(t), "a/", "a0")), fmt.Sprintf(refusal, "InvalidArgument", noUser))
	bad := metadata.AppendToOutgoingContext(background(t), "token", "nosuchtoken.1")
	equal(t, "a bad token", reason(watch(bad, "a/", "a0")), fmt.Sprintf(refusal, "Unauthenticated", badToken))

	// A right is looked at when the watch begins, not later.
	channel := m.Client(member.As("alice", "alicepw")).Watch(background(t), "a/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-channel
	must(root.RoleRevokePermission(background(t), "r", "a/", "a0"))(t)
	put(t, root, "a/after", "1")
	equal(t, "a running watch goes on", len((<-channel).Events), 1)
	refusedWatch := m.Client(member.As("alice", "alicepw")).Watch(background(t), "a/", clientv3.WithPrefix())
	response := <-refusedWatch
	equal(t, "a new one is refused", fmt.Sprint(response.Canceled, response.Err()), "true "+fmt.Sprintf("rpc error: code = %s desc = %s", "PermissionDenied", denied))
}

func TestAuthTokens(t *testing.T) {
	m, root, alice := guarded(t)
	c := m.Client()
	ctx := background(t)
	r := stubs(c)
	old := token(t, c, "alice", "alicepw")
	must(root.RoleGrantPermission(ctx, "r", "n/", "n0", clientv3.PermissionType(authpb.READWRITE)))(t)
	// The token stays good, as does the library's client through the change.
	must(alice.Put(ctx, "n/1", "1"))(t)
	must(r.Range(old, &pb.RangeRequest{Key: []byte("n/1")}))(t)
	md, _ := metadata.FromOutgoingContext(old)
	bearer := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+md["token"][0])
	must(r.Range(bearer, &pb.RangeRequest{Key: []byte("n/1")}))(t)
	must(root.UserChangePassword(ctx, "alice", "other"))(t)
	refused(t, "after a new password", e(r.Range(old, &pb.RangeRequest{Key: []byte("n/1")})), codes.Unauthenticated, badToken)
	fresh := token(t, c, "alice", "other")
	must(r.Range(fresh, &pb.RangeRequest{Key: []byte("n/1")}))(t)
	must(root.UserDelete(ctx, "alice"))(t)
	refused(t, "after the end of the user", e(r.Range(fresh, &pb.RangeRequest{Key: []byte("n/1")})), codes.Unauthenticated, badToken)

	// A restart keeps users, roles and the revision, and forgets tokens.
	before := must(root.AuthStatus(ctx))(t).AuthRevision
	rootToken := token(t, c, "root", "rootpw")
	m.Stop()
	again := member.Start(t, member.Binary(t, "SERVER_BINARY"), m.Dir, cheap, cheapCost)
	c = again.Client()
	status := must(c.AuthStatus(ctx))(t)
	equal(t, "after a restart", fmt.Sprint(status.Enabled, status.AuthRevision-before), "true 0")
	refused(t, "an old token", e(stubs(c).Range(rootToken, &pb.RangeRequest{Key: []byte("n/1")})), codes.Unauthenticated, badToken)
	root = again.Client(member.As("root", "rootpw"))
	equal(t, "the users", must(root.UserList(ctx))(t).Users, []string{"root"})
	must(root.AuthDisable(ctx))(t)
	must(c.Get(ctx, "x"))(t)
}
