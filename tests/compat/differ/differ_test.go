// Package differ gives the same random operations to the real etcd and to the program under test, and
// compares all answers: code and text of errors, every field of responses, and what watchers are told. A
// second test does so with auth on: random users ask for everything, and may do it on both or on neither.
//
// SEED repeats a run; ROUNDS and OPERATIONS make it longer.
package differ

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"keelson.dev/compat/member"
)

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// side is one of the two servers.
type side struct {
	name   string
	member *member.Member
	conn   *grpc.ClientConn
	kv     pb.KVClient
	lease  pb.LeaseClient
	maint  pb.MaintenanceClient
	auth   pb.AuthClient
	watch  *watching
	// tokens are what users were given at their last login.
	tokens map[string]string
}

func (s *side) connect(t *testing.T, m *member.Member) {
	s.use(m, m.Client().ActiveConnection())
}

func (s *side) use(m *member.Member, conn *grpc.ClientConn) {
	s.member, s.conn = m, conn
	s.kv = pb.NewKVClient(s.conn)
	s.lease = pb.NewLeaseClient(s.conn)
	s.maint = pb.NewMaintenanceClient(s.conn)
	s.auth = pb.NewAuthClient(s.conn)
	s.tokens = map[string]string{}
}

// operation is one request, to be sent to either side.
type operation struct {
	request proto.Message
	send    func(context.Context, *side) (proto.Message, error)
}

// told is an answer in a form that can be compared: what varies between runs is taken out.
func told(message proto.Message, err error) string {
	if err != nil {
		s := status.Convert(err)
		// protobuf-go varies this space on purpose.
		return fmt.Sprintf("error %v %q", s.Code(), strings.ReplaceAll(s.Message(), "\u00a0", " "))
	}
	message = proto.Clone(message)
	strip(message.ProtoReflect())
	text, err := prototext.MarshalOptions{}.Marshal(message)
	if err != nil {
		return err.Error()
	}
	// prototext varies its spaces on purpose.
	return strings.Join(strings.Fields(string(text)), " ")
}

func strip(message protoreflect.Message) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Name() == "raft_term":
			message.Clear(field)
		case field.Kind() != protoreflect.MessageKind || field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				strip(value.List().Get(i).Message())
			}
		default:
			strip(value.Message())
		}
		return true
	})
}

func TestRandomOperationsAreAnsweredAsByEtcd(t *testing.T) {
	seed := int64(number("SEED", int(time.Now().UnixNano()%1_000_000)))
	t.Logf("SEED=%d", seed)
	random := &source{Rand: rand.New(rand.NewSource(seed)), revision: 1, reborn: map[int64]bool{}}
	binaries := [2]string{member.Binary(t, "ETCD_BINARY"), member.Binary(t, "SERVER_BINARY")}
	sides := [2]*side{{name: "etcd"}, {name: "keelson"}}
	for i, s := range sides {
		s.connect(t, member.Start(t, binaries[i], t.TempDir(), "--max-txn-ops", "16"))
	}
	var caughtUp time.Time
	for round := range number("ROUNDS", 5) {
		for _, s := range sides {
			s.watch = s.openWatches(t)
		}
		for step := range number("OPERATIONS", 400) {
			if random.Intn(20) == 0 {
				create := random.watchCreate()
				caughtUp = time.Now().Add(catchUp)
				for _, s := range sides {
					s.watch.create(t, create)
				}
				compare(t, sides, fmt.Sprintf("round %d step %d: watch %v", round, step, create), func(s *side) string {
					return s.watch.lastCreated()
				})
				continue
			}
			operation := random.operation()
			if _, compacts := operation.request.(*pb.CompactionRequest); compacts {
				// Whether it passes a watcher that catches up would depend on how far that one is.
				time.Sleep(time.Until(caughtUp))
			}
			answers, revision := [2]string{}, int64(0)
			for i, s := range sides {
				response, err := operation.send(member.Context(t), s)
				answers[i] = told(response, err)
				if headed, ok := response.(interface{ GetHeader() *pb.ResponseHeader }); ok && err == nil {
					revision = headed.GetHeader().GetRevision()
					random.revision = max(random.revision, revision)
				}
			}
			if answers[0] != answers[1] {
				for _, s := range sides {
					t.Logf("the log of %s ends with:\n%s", s.name, s.member.LogTail())
				}
				t.Fatalf("SEED=%d round %d step %d: %T %v\n  %s %s\n  %s %s", seed, round, step,
					operation.request, operation.request, sides[0].name, answers[0], sides[1].name, answers[1])
			}
			random.note(operation.request, revision)
		}
		for _, s := range sides {
			random.revision = s.watch.finish(t, s)
		}
		compare(t, sides, fmt.Sprintf("round %d: what watchers were told", round), func(s *side) string {
			return s.watch.told()
		})
		// The directories go on in the same program after a crash or a stop, or change hands.
		swap := random.Intn(3) == 0
		for i, s := range sides {
			if random.Intn(2) == 0 {
				s.member.Kill()
			} else {
				s.member.Stop()
			}
			binary := binaries[i]
			if swap {
				binary = binaries[1-i]
			}
			s.connect(t, member.Start(t, binary, s.member.Dir, "--max-txn-ops", "16"))
		}
		if swap {
			binaries[0], binaries[1] = binaries[1], binaries[0]
			sides[0].name, sides[1].name = sides[1].name, sides[0].name
		}
	}
}

func compare(t *testing.T, sides [2]*side, what string, tell func(*side) string) {
	t.Helper()
	if a, b := tell(sides[0]), tell(sides[1]); a != b {
		linesA, linesB := strings.Split(a, "\n"), strings.Split(b, "\n")
		for i, line := range linesA {
			if i >= len(linesB) || line != linesB[i] {
				from := max(0, i-3)
				t.Fatalf("%s\n  %s %s\n  %s %s", what,
					sides[0].name, strings.Join(linesA[from:min(i+3, len(linesA))], "\n"),
					sides[1].name, strings.Join(linesB[min(from, len(linesB)):min(i+3, len(linesB))], "\n"))
			}
		}
		t.Fatalf("%s: %s said more", what, sides[1].name)
	}
}
