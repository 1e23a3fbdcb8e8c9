package differ

import (
	"context"
	"math/rand"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"keelson.dev/compat/member"
)

// stranger is a token in the form of those that are given out, of an entry that exists.
const stranger = "abcdefghijklmnop.2"

// dial connects without the official client, which asks again when a token is refused.
func (s *side) dial(t *testing.T, m *member.Member) {
	conn, err := grpc.NewClient(strings.TrimPrefix(m.Endpoint, "http://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.use(m, conn)
}

// as is a context with the token that a side gave to a caller.
func (s *side) as(ctx context.Context, caller string) context.Context {
	token := s.tokens[caller]
	if caller == "stranger" {
		token = stranger
	}
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "token", token)
}

// duel is one run: two servers and what is asked of both.
type duel struct {
	*callers
	t     *testing.T
	seed  int64
	sides [2]*side
	steps int
}

// ask sends an operation to both sides and fails unless they answer alike; whether it succeeded.
func (d *duel) ask(caller string, o operation) bool {
	d.t.Helper()
	d.steps++
	answers, succeeded := [2]string{}, false
	for i, s := range d.sides {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		response, err := o.send(s.as(ctx, caller), s)
		cancel()
		answers[i] = told(response, err)
		succeeded = err == nil
		if headed, ok := response.(interface{ GetHeader() *pb.ResponseHeader }); ok && err == nil {
			d.revision = max(d.revision, headed.GetHeader().GetRevision())
		}
	}
	if answers[0] != answers[1] {
		d.t.Fatalf("SEED=%d step %d: %q asks %T %v\n  %s %s\n  %s %s", d.seed, d.steps, caller,
			o.request, o.request, d.sides[0].name, answers[0], d.sides[1].name, answers[1])
	}
	if succeeded {
		d.learn(o.request)
	}
	return succeeded
}

// must is ask for what cannot be refused.
func (d *duel) must(caller string, o operation) {
	d.t.Helper()
	if !d.ask(caller, o) {
		d.t.Fatalf("SEED=%d step %d: %q was refused %T %v", d.seed, d.steps, caller, o.request, o.request)
	}
}

func (d *duel) rootLogsIn() {
	d.must("", of(&pb.AuthenticateRequest{Name: "root", Password: d.passwords["root"]}, logIn))
}

// enable makes sure that there is a root who can log in, and turns auth on.
func (d *duel) enable() {
	d.ask("", of(&pb.AuthUserDeleteRequest{Name: "root"}, func(ctx context.Context, to *side, r *pb.AuthUserDeleteRequest) (proto.Message, error) {
		return answer(to.auth.UserDelete(ctx, r))
	}))
	d.must("", of(&pb.AuthUserAddRequest{Name: "root", Password: "root's"}, func(ctx context.Context, to *side, r *pb.AuthUserAddRequest) (proto.Message, error) {
		return answer(to.auth.UserAdd(ctx, proto.Clone(r).(*pb.AuthUserAddRequest)))
	}))
	d.must("", of(&pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		func(ctx context.Context, to *side, r *pb.AuthUserGrantRoleRequest) (proto.Message, error) {
			return answer(to.auth.UserGrantRole(ctx, r))
		}))
	d.must("", of(&pb.AuthEnableRequest{}, func(ctx context.Context, to *side, r *pb.AuthEnableRequest) (proto.Message, error) {
		return answer(to.auth.AuthEnable(ctx, r))
	}))
	d.rootLogsIn()
}

// show compares all users and roles, as root sees them.
func (d *duel) show() {
	for _, user := range users {
		d.ask("root", of(&pb.AuthUserGetRequest{Name: user}, func(ctx context.Context, to *side, r *pb.AuthUserGetRequest) (proto.Message, error) {
			return answer(to.auth.UserGet(ctx, r))
		}))
	}
	for _, role := range roles {
		d.ask("root", of(&pb.AuthRoleGetRequest{Role: role}, func(ctx context.Context, to *side, r *pb.AuthRoleGetRequest) (proto.Message, error) {
			return answer(to.auth.RoleGet(ctx, r))
		}))
	}
	d.must("root", of(&pb.AuthStatusRequest{}, func(ctx context.Context, to *side, r *pb.AuthStatusRequest) (proto.Message, error) {
		return answer(to.auth.AuthStatus(ctx, r))
	}))
	d.must("root", of(&pb.HashKVRequest{}, func(ctx context.Context, to *side, r *pb.HashKVRequest) (proto.Message, error) {
		return answer(to.maint.HashKV(ctx, r))
	}))
}

// SEED repeats a run; AUTH_SECONDS and ROUNDS make it longer.
func TestRandomUsersMayDoWhatEtcdLetsThemDo(t *testing.T) {
	seed := int64(number("SEED", int(time.Now().UnixNano()%1_000_000)))
	t.Logf("SEED=%d", seed)
	random := &source{Rand: rand.New(rand.NewSource(seed)), revision: 1, reborn: map[int64]bool{}}
	d := &duel{callers: &callers{source: random, passwords: map[string]string{}}, t: t, seed: seed}
	binaries := [2]string{member.Binary(t, "ETCD_BINARY"), member.Binary(t, "SERVER_BINARY")}
	flags := []string{"--max-txn-ops", "16", "--bcrypt-cost", "4"}
	d.sides = [2]*side{{name: "etcd"}, {name: "keelson"}}
	for i, s := range d.sides {
		s.dial(t, member.Start(t, binaries[i], t.TempDir(), flags...))
	}
	// By count, not by time, so that a seed always does the same; time only ends what takes too long.
	box := time.Now().Add(time.Duration(number("AUTH_SECONDS", 20)) * time.Second)
	for round := 0; round < number("ROUNDS", 4) && time.Now().Before(box); round++ {
		// What is done while auth is off is everybody's.
		for range 150 {
			if d.enabled {
				break
			}
			switch d.Intn(3) {
			case 0:
				d.ask("", d.source.operation())
			default:
				d.ask("", d.change())
			}
		}
		if !d.enabled {
			d.enable()
		}
		d.rootLogsIn()
		for _, user := range users[1:] {
			d.ask("", of(&pb.AuthenticateRequest{Name: user, Password: d.passwords[user]}, logIn))
		}
		for range number("OPERATIONS", 500) {
			if !time.Now().Before(box) {
				break
			}
			d.ask(d.caller(), d.callers.operation())
			if !d.enabled {
				d.enable()
			} else if d.oneIn(12) {
				d.rootLogsIn()
			}
		}
		d.rootLogsIn()
		d.show()
		swap := d.Intn(3) == 0
		if swap {
			binaries[0], binaries[1] = binaries[1], binaries[0]
			d.sides[0].name, d.sides[1].name = d.sides[1].name, d.sides[0].name
		}
		for i, s := range d.sides {
			if d.oneIn(2) {
				s.member.Kill()
			} else {
				s.member.Stop()
			}
			s.dial(t, member.Start(t, binaries[i], s.member.Dir, flags...))
		}
		d.rootLogsIn()
		d.show()
	}
	t.Logf("%d requests", d.steps)
}
