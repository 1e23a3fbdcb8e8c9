package cluster

import (
	"syscall"
	"testing"

	"keelson.dev/compat/member"
)

func ours(t testing.TB) Program {
	return Program{Name: "keelson", Binary: member.Binary(t, "SERVER_BINARY")}
}

func etcd(t testing.TB) Program {
	return Program{Name: "etcd 3.7", Binary: member.Binary(t, "ETCD_BINARY")}
}

func etcd36(t testing.TB) Program {
	return Program{Name: "etcd 3.6", Binary: member.Binary(t, "ETCD36_BINARY")}
}

// held is ours, with the version that it announces held at 3.6. The real etcd, in the place of ours, has
// no such flag; there the older release stands in.
func held(t testing.TB) Program {
	program := ours(t)
	if member.IsOurs(t, program.Binary) {
		program.Flags = []string{"--announce-version", "3.6"}
		return program
	}
	return etcd36(t)
}

// short makes snapshots come soon: what a member missed for long it gets as a snapshot.
var short = []string{
	"--heartbeat-interval", "100", "--election-timeout", "1000",
	"--snapshot-count", "300", "--snapshot-catchup-entries", "100",
	"--log-level", "info",
}

// Each leads in turn, each is killed and stopped in turn, under load; no write is lost and all agree.
func eachInTurn(t *testing.T, programs ...Program) {
	c := New(t, short, programs...)
	load := StartLoad(t, c.Endpoints())
	for _, node := range c.Nodes {
		c.LeadBy(node)
		load.GoOn(100)
	}
	for _, node := range c.Nodes {
		node.Kill()
		load.GoOn(100)
		c.Restart(node, node.Program)
		load.GoOn(50)
	}
	for _, node := range c.Nodes {
		c.LeadBy(node)
		node.Stop()
		// So many that the others' logs no longer reach back to what it has.
		load.GoOn(900)
		c.Restart(node, node.Program)
		load.GoOn(50)
	}
	for _, node := range c.Nodes {
		c.LeadBy(node)
		node.Signal(syscall.SIGSTOP)
		// A third of the writes go to the one that does not answer, and wait in vain.
		load.GoOn(20)
		node.Signal(syscall.SIGCONT)
		load.GoOn(50)
	}
	load.Stop(c.Client())
	c.CheckEqual()
}

func TestTwoOfEtcdAndOneOfOurs(t *testing.T) { eachInTurn(t, etcd(t), etcd(t), ours(t)) }

func TestOneOfEtcdAndTwoOfOurs(t *testing.T) { eachInTurn(t, etcd(t), ours(t), ours(t)) }

func TestTwoOfEtcd36AndOneOfOurs(t *testing.T) { eachInTurn(t, etcd36(t), etcd36(t), held(t)) }

func TestThreeOfOurs(t *testing.T) { eachInTurn(t, ours(t), ours(t), ours(t)) }

// Members of the other kind join as learners and as voters, by log and by snapshot, and others leave.
func TestMembersComeAndGo(t *testing.T) {
	for _, kinds := range []struct {
		name          string
		first, second Program
	}{
		{"ours join etcd", etcd(t), ours(t)},
		{"etcd joins ours", ours(t), etcd(t)},
	} {
		t.Run(kinds.name, func(t *testing.T) {
			c := New(t, short, kinds.first)
			load := StartLoad(t, c.Endpoints())
			load.GoOn(50)
			// By log: no snapshot has been taken yet.
			second := c.Add(kinds.second, true)
			c.Promote(second)
			load.GoOn(900)
			// By snapshot.
			third := c.Add(kinds.second, true)
			c.Promote(third)
			load.GoOn(100)
			load.Stop(c.Client())

			load = StartLoad(t, c.Endpoints(second, third))
			c.Remove(c.Nodes[0])
			load.GoOn(100)
			load.Stop(c.Client())
			c.CheckEqual()
		})
	}
}

// migrate moves a cluster to the other kind one member at a time and back, while a client writes and
// watches.
func migrate(t *testing.T, old, new Program) {
	c := New(t, short, old, old, old)
	for _, to := range []Program{new, old} {
		for range 3 {
			leaving := c.Nodes[0]
			load := StartLoad(t, c.Endpoints())
			load.GoOn(400)
			joining := c.Add(to, true)
			c.Promote(joining)
			load.GoOn(50)
			c.LeadBy(joining)
			load.GoOn(50)
			c.Remove(leaving)
			load.GoOn(50)
			load.Stop(c.Client())
			c.CheckEqual()
		}
	}
}

func TestLiveMigration(t *testing.T) { migrate(t, etcd(t), ours(t)) }

// A member that says that it is of 3.6 leaves the way back to 3.6 open.
func TestLiveMigrationFrom36(t *testing.T) { migrate(t, etcd36(t), held(t)) }
