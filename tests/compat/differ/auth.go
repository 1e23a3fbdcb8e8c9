package differ

import (
	"context"
	"fmt"
	"io"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// users are few, so that grants and deletions meet.
var users = []string{"root", "alice", "bob", "carol", "dave"}

// roles hold permissions; "root" makes a user an administrator.
var roles = []string{"r1", "r2", "r3", "root"}

// callers draws requests of every service, for users who may and users who may not.
type callers struct {
	*source
	// granted are permissions that roles were given: some of them are taken away again.
	granted []grant
	// passwords are the last ones that were set.
	passwords map[string]string
	// enabled is whether auth is on.
	enabled bool
}

type grant struct{ role, key, end string }

func (c *callers) user() string { return users[c.Intn(len(users))] }

func (c *callers) role() string { return roles[c.Intn(len(roles))] }

// caller is somebody with a token, or nobody, or somebody whose token was never given out.
func (c *callers) caller() string {
	switch c.Intn(20) {
	case 0:
		return ""
	case 1:
		return "stranger"
	case 2, 3, 4, 5:
		return "root"
	default:
		return users[1+c.Intn(len(users)-1)]
	}
}

func (c *callers) grantRequest() *pb.AuthRoleGrantPermissionRequest {
	request := &pb.AuthRoleGrantPermissionRequest{Name: c.role(), Perm: &authpb.Permission{
		PermType: authpb.Permission_Type(c.Intn(3)), Key: c.key(),
	}}
	switch c.Intn(4) {
	case 0:
	case 1:
		request.Perm.RangeEnd = prefixEnd(request.Perm.Key)
	default:
		request.Perm.RangeEnd = c.end()
	}
	if c.oneIn(100) {
		request.Perm = nil
	} else {
		c.granted = append(c.granted, grant{request.Name, string(request.Perm.Key), string(request.Perm.RangeEnd)})
	}
	return request
}

// prefixEnd is the end of all keys that begin with a key.
func prefixEnd(key []byte) []byte {
	end := append([]byte(nil), key...)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) == 0 {
		return []byte{0}
	}
	end[len(end)-1]++
	return end
}

// change draws a change of users and roles.
func (c *callers) change() operation {
	switch n := c.Intn(100); {
	case n < 30:
		return of(c.grantRequest(), func(ctx context.Context, to *side, r *pb.AuthRoleGrantPermissionRequest) (proto.Message, error) {
			return answer(to.auth.RoleGrantPermission(ctx, r))
		})
	case n < 42:
		request := &pb.AuthRoleRevokePermissionRequest{Role: c.role(), Key: c.key(), RangeEnd: c.end()}
		if len(c.granted) > 0 && !c.oneIn(4) {
			g := c.granted[c.Intn(len(c.granted))]
			request = &pb.AuthRoleRevokePermissionRequest{Role: g.role, Key: []byte(g.key), RangeEnd: []byte(g.end)}
		}
		return of(request, func(ctx context.Context, to *side, r *pb.AuthRoleRevokePermissionRequest) (proto.Message, error) {
			return answer(to.auth.RoleRevokePermission(ctx, r))
		})
	case n < 60:
		return of(&pb.AuthUserGrantRoleRequest{User: c.user(), Role: c.role()},
			func(ctx context.Context, to *side, r *pb.AuthUserGrantRoleRequest) (proto.Message, error) {
				return answer(to.auth.UserGrantRole(ctx, r))
			})
	case n < 68:
		return of(&pb.AuthUserRevokeRoleRequest{Name: c.user(), Role: c.role()},
			func(ctx context.Context, to *side, r *pb.AuthUserRevokeRoleRequest) (proto.Message, error) {
				return answer(to.auth.UserRevokeRole(ctx, r))
			})
	case n < 78:
		request := &pb.AuthUserAddRequest{Name: c.user(), Password: c.password()}
		if c.oneIn(12) {
			request.Options, request.Password = &authpb.UserAddOptions{NoPassword: true}, ""
		}
		// The server hashes the password in the request itself: each side has its own.
		return of(request, func(ctx context.Context, to *side, r *pb.AuthUserAddRequest) (proto.Message, error) {
			return answer(to.auth.UserAdd(ctx, proto.Clone(r).(*pb.AuthUserAddRequest)))
		})
	case n < 82:
		return of(&pb.AuthUserDeleteRequest{Name: c.user()}, func(ctx context.Context, to *side, r *pb.AuthUserDeleteRequest) (proto.Message, error) {
			return answer(to.auth.UserDelete(ctx, r))
		})
	case n < 88:
		request := &pb.AuthUserChangePasswordRequest{Name: c.user(), Password: c.password()}
		if request.Name == "root" && request.Password == "" {
			// Nobody logs in with an empty password: there would be no root any more.
			request.Password = "root's"
		}
		return of(request,
			func(ctx context.Context, to *side, r *pb.AuthUserChangePasswordRequest) (proto.Message, error) {
				return answer(to.auth.UserChangePassword(ctx, proto.Clone(r).(*pb.AuthUserChangePasswordRequest)))
			})
	case n < 97:
		return of(&pb.AuthRoleAddRequest{Name: c.role()}, func(ctx context.Context, to *side, r *pb.AuthRoleAddRequest) (proto.Message, error) {
			return answer(to.auth.RoleAdd(ctx, r))
		})
	default:
		return of(&pb.AuthRoleDeleteRequest{Role: c.role()}, func(ctx context.Context, to *side, r *pb.AuthRoleDeleteRequest) (proto.Message, error) {
			return answer(to.auth.RoleDelete(ctx, r))
		})
	}
}

func (c *callers) password() string {
	if c.oneIn(10) {
		return ""
	}
	return fmt.Sprintf("password %d", c.Intn(3))
}

// question draws a question about users and roles.
func (c *callers) question() operation {
	switch c.Intn(5) {
	case 0:
		return of(&pb.AuthUserGetRequest{Name: c.user()}, func(ctx context.Context, to *side, r *pb.AuthUserGetRequest) (proto.Message, error) {
			return answer(to.auth.UserGet(ctx, r))
		})
	case 1:
		return of(&pb.AuthRoleGetRequest{Role: c.role()}, func(ctx context.Context, to *side, r *pb.AuthRoleGetRequest) (proto.Message, error) {
			return answer(to.auth.RoleGet(ctx, r))
		})
	case 2:
		return of(&pb.AuthUserListRequest{}, func(ctx context.Context, to *side, r *pb.AuthUserListRequest) (proto.Message, error) {
			return answer(to.auth.UserList(ctx, r))
		})
	case 3:
		return of(&pb.AuthRoleListRequest{}, func(ctx context.Context, to *side, r *pb.AuthRoleListRequest) (proto.Message, error) {
			return answer(to.auth.RoleList(ctx, r))
		})
	default:
		return of(&pb.AuthStatusRequest{}, func(ctx context.Context, to *side, r *pb.AuthStatusRequest) (proto.Message, error) {
			return answer(to.auth.AuthStatus(ctx, r))
		})
	}
}

// operation draws a request of any service.
func (c *callers) operation() operation {
	switch n := c.Intn(100); {
	case n < 50:
		return c.source.operation()
	case n < 60:
		return c.watchOrRenew()
	case n < 70:
		return c.maintenance()
	case n < 83:
		return c.change()
	case n < 92:
		return c.question()
	case n < 98:
		user := c.user()
		return of(&pb.AuthenticateRequest{Name: user, Password: c.passwords[user]}, logIn)
	case n < 99:
		return of(&pb.AuthDisableRequest{}, func(ctx context.Context, to *side, r *pb.AuthDisableRequest) (proto.Message, error) {
			return answer(to.auth.AuthDisable(ctx, r))
		})
	default:
		return of(&pb.AuthEnableRequest{}, func(ctx context.Context, to *side, r *pb.AuthEnableRequest) (proto.Message, error) {
			return answer(to.auth.AuthEnable(ctx, r))
		})
	}
}

// logIn keeps the token, which differs between the sides.
func logIn(ctx context.Context, to *side, request *pb.AuthenticateRequest) (proto.Message, error) {
	response, err := to.auth.Authenticate(ctx, proto.Clone(request).(*pb.AuthenticateRequest))
	if err != nil {
		return nil, err
	}
	to.tokens[request.Name] = response.Token
	response.Token = ""
	return response, nil
}

func (c *callers) watchOrRenew() operation {
	if c.oneIn(3) {
		return of(&pb.LeaseKeepAliveRequest{ID: c.leaseID()}, func(ctx context.Context, to *side, r *pb.LeaseKeepAliveRequest) (proto.Message, error) {
			stream, err := to.lease.LeaseKeepAlive(ctx)
			if err != nil {
				return nil, err
			}
			// A stream that is refused at once says so in Recv.
			_ = stream.Send(r)
			response, err := stream.Recv()
			_ = stream.CloseSend()
			return answer(response, err)
		})
	}
	return of(c.watchCreate(), func(ctx context.Context, to *side, r *pb.WatchCreateRequest) (proto.Message, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := pb.NewWatchClient(to.conn).Watch(ctx)
		if err != nil {
			return nil, err
		}
		_ = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: proto.Clone(r).(*pb.WatchCreateRequest)}})
		return answer(stream.Recv())
	})
}

// maintenance draws what an operator asks for. Sizes and such differ: who may ask is compared.
func (c *callers) maintenance() operation {
	switch c.Intn(10) {
	case 0:
		return of(&pb.StatusRequest{}, func(ctx context.Context, to *side, r *pb.StatusRequest) (proto.Message, error) {
			response, err := to.maint.Status(ctx, r)
			if err != nil {
				return nil, err
			}
			return &pb.StatusResponse{Header: response.Header, Version: response.Version, Errors: response.Errors}, nil
		})
	case 1:
		return of(&pb.HashRequest{}, func(ctx context.Context, to *side, r *pb.HashRequest) (proto.Message, error) {
			response, err := to.maint.Hash(ctx, r)
			if err != nil {
				return nil, err
			}
			// It covers rows that differ: consistent index, password hashes.
			return &pb.HashResponse{Header: response.Header}, nil
		})
	case 2:
		return of(&pb.DefragmentRequest{}, func(ctx context.Context, to *side, r *pb.DefragmentRequest) (proto.Message, error) {
			return answer(to.maint.Defragment(ctx, r))
		})
	case 3:
		return of(&pb.MemberListRequest{Linearizable: c.oneIn(2)}, func(ctx context.Context, to *side, r *pb.MemberListRequest) (proto.Message, error) {
			return answer(pb.NewClusterClient(to.conn).MemberList(ctx, r))
		})
	case 4:
		return of(&pb.SnapshotRequest{}, func(ctx context.Context, to *side, r *pb.SnapshotRequest) (proto.Message, error) {
			stream, err := to.maint.Snapshot(ctx, r)
			if err != nil {
				return nil, err
			}
			for {
				if _, err := stream.Recv(); err == io.EOF {
					return &pb.SnapshotResponse{}, nil
				} else if err != nil {
					return nil, err
				}
			}
		})
	case 5:
		return of(&pb.MoveLeaderRequest{TargetID: 1}, func(ctx context.Context, to *side, r *pb.MoveLeaderRequest) (proto.Message, error) {
			return answer(to.maint.MoveLeader(ctx, r))
		})
	case 6:
		return of(&pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.5"},
			func(ctx context.Context, to *side, r *pb.DowngradeRequest) (proto.Message, error) {
				return answer(to.maint.Downgrade(ctx, r))
			})
	default:
		request := &pb.AlarmRequest{Alarm: pb.AlarmType_NOSPACE, Action: pb.AlarmRequest_DEACTIVATE}
		if c.oneIn(2) {
			request.Action = pb.AlarmRequest_GET
		} else if c.oneIn(3) {
			request.Action, request.MemberID = pb.AlarmRequest_ACTIVATE, 7
		} else {
			request.MemberID = 7
		}
		return of(request, func(ctx context.Context, to *side, r *pb.AlarmRequest) (proto.Message, error) {
			return answer(to.maint.Alarm(ctx, r))
		})
	}
}

// learn takes note of what was answered without an error.
func (c *callers) learn(request proto.Message) {
	c.note(request, 0)
	switch r := request.(type) {
	case *pb.AuthUserAddRequest:
		c.passwords[r.Name] = r.Password
	case *pb.AuthUserChangePasswordRequest:
		c.passwords[r.Name] = r.Password
	case *pb.AuthEnableRequest:
		c.enabled = true
	case *pb.AuthDisableRequest:
		c.enabled = false
	}
}
