// Package cluster runs clusters whose members are different programs.
package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// patience bounds a wait for something that takes a few elections at most.
const patience = 60 * time.Second

// Program is what a member runs, with the flags that only it wants.
type Program struct {
	// Name says which in messages.
	Name string
	// Binary is its path.
	Binary string
	// Flags come after those that every member gets.
	Flags []string
}

// Node is a member and where it lives; its process comes and goes.
type Node struct {
	*member.Member
	// Name is its name in the cluster.
	Name string
	// Program is what it runs, or ran last.
	Program Program
	// ID is its member id.
	ID uint64

	dir, client, peer string
	// initial is how the cluster was when it was first started.
	initial, state string
}

// Cluster is a set of members.
type Cluster struct {
	// Nodes are those that were added and not removed.
	Nodes []*Node

	t     testing.TB
	root  string
	flags []string
	born  int
}

// New starts a cluster with a member for each program, and waits until all serve. The flags go to all.
func New(t testing.TB, flags []string, programs ...Program) *Cluster {
	t.Helper()
	c := &Cluster{t: t, root: t.TempDir(), flags: flags}
	for _, program := range programs {
		c.Nodes = append(c.Nodes, c.node(program))
	}
	for _, node := range c.Nodes {
		node.initial, node.state = c.described(), "new"
		c.launch(node)
	}
	for _, node := range c.Nodes {
		c.ready(node)
	}
	c.learnIDs()
	return c
}

func (c *Cluster) node(program Program) *Node {
	c.born++
	name := fmt.Sprintf("m%d", c.born)
	return &Node{
		Name: name, Program: program, dir: filepath.Join(c.root, name),
		client: member.FreeURL(c.t), peer: member.FreeURL(c.t),
	}
}

// described is the cluster as a flag says it.
func (c *Cluster) described(more ...*Node) string {
	var parts []string
	for _, node := range append(append([]*Node{}, c.Nodes...), more...) {
		parts = append(parts, node.Name+"="+node.peer)
	}
	return strings.Join(parts, ",")
}

func (c *Cluster) launch(n *Node) {
	c.t.Helper()
	args := []string{
		"--name", n.Name, "--data-dir", n.dir,
		"--listen-client-urls", n.client, "--advertise-client-urls", n.client,
		"--listen-peer-urls", n.peer, "--initial-advertise-peer-urls", n.peer,
		"--initial-cluster", n.initial, "--initial-cluster-state", n.state,
	}
	args = append(append(args, c.flags...), n.Program.Flags...)
	process, err := member.Launch(c.t, n.Program.Binary, n.client, n.dir, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	n.Member = process
}

func (c *Cluster) ready(n *Node) {
	c.t.Helper()
	if err := n.WaitUntilReady(func() bool { return true }); err != nil {
		c.t.Fatalf("%s: %v", n.Name, err)
	}
}

// learnIDs asks who is who.
func (c *Cluster) learnIDs() {
	c.t.Helper()
	list, err := c.Client().MemberList(member.Context(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, node := range c.Nodes {
		for _, m := range list.Members {
			if len(m.PeerURLs) == 1 && m.PeerURLs[0] == node.peer {
				node.ID = m.ID
			}
		}
		if node.ID == 0 {
			c.t.Fatalf("%s is not among the members %v", node.Name, list.Members)
		}
	}
}

// Endpoints are the clients' addresses of some nodes, or of all.
func (c *Cluster) Endpoints(nodes ...*Node) []string {
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	var endpoints []string
	for _, node := range nodes {
		endpoints = append(endpoints, node.client)
	}
	return endpoints
}

// Client connects to some nodes, or to all.
func (c *Cluster) Client(nodes ...*Node) *clientv3.Client {
	c.t.Helper()
	return member.Connect(c.t, c.Endpoints(nodes...))
}

// Restart starts a node that was stopped or killed, perhaps as another program.
func (c *Cluster) Restart(n *Node, program Program) {
	c.t.Helper()
	n.Program = program
	c.launch(n)
	c.ready(n)
}

// Add makes a program a member of the running cluster, a learner or a voter, and waits until it serves.
func (c *Cluster) Add(program Program, learner bool) *Node {
	c.t.Helper()
	node := c.node(program)
	client := c.Client()
	node.ID = retried(c.t, "add "+node.Name, func(ctx context.Context) (uint64, error) {
		add := client.MemberAdd
		if learner {
			add = client.MemberAddAsLearner
		}
		added, err := add(ctx, []string{node.peer})
		if err != nil {
			return 0, err
		}
		return added.Member.ID, nil
	})
	node.initial, node.state = c.described(node), "existing"
	c.launch(node)
	c.Nodes = append(c.Nodes, node)
	c.ready(node)
	return node
}

// Promote makes a learner a voter, as soon as it has caught up.
func (c *Cluster) Promote(n *Node) {
	c.t.Helper()
	client := c.Client()
	retried(c.t, "promote "+n.Name, func(ctx context.Context) (struct{}, error) {
		_, err := client.MemberPromote(ctx, n.ID)
		return struct{}{}, err
	})
}

// Remove removes a member, and waits until its process ends, as it does when it learns of it.
func (c *Cluster) Remove(n *Node) {
	c.t.Helper()
	var others []*Node
	for _, node := range c.Nodes {
		if node != n {
			others = append(others, node)
		}
	}
	client := c.Client(others...)
	retried(c.t, "remove "+n.Name, func(ctx context.Context) (struct{}, error) {
		_, err := client.MemberRemove(ctx, n.ID)
		return struct{}{}, err
	})
	c.Nodes = others
	select {
	case <-n.Ended():
	case <-time.After(patience):
		c.t.Fatalf("%s goes on though it was removed; its log ends with:\n%s", n.Name, n.LogTail())
	}
}

// Leader waits until all nodes name the same leader, and says which.
func (c *Cluster) Leader() *Node {
	c.t.Helper()
	return retried(c.t, "agree on a leader", func(ctx context.Context) (*Node, error) {
		leader := uint64(0)
		for _, node := range c.Nodes {
			status, err := c.Status(ctx, node)
			if err != nil {
				return nil, err
			}
			if status.Leader == 0 || (leader != 0 && status.Leader != leader) {
				return nil, fmt.Errorf("%s says that %x leads, another %x", node.Name, status.Leader, leader)
			}
			leader = status.Leader
		}
		for _, node := range c.Nodes {
			if node.ID == leader {
				return node, nil
			}
		}
		return nil, fmt.Errorf("nobody is %x", leader)
	})
}

// LeadBy hands leadership to a node.
func (c *Cluster) LeadBy(n *Node) {
	c.t.Helper()
	retried(c.t, "lead by "+n.Name, func(ctx context.Context) (struct{}, error) {
		leader := c.Leader()
		if leader == n {
			return struct{}{}, nil
		}
		_, err := c.Client(leader).MoveLeader(ctx, n.ID)
		if err == nil {
			err = fmt.Errorf("not yet seen")
		}
		return struct{}{}, err
	})
}

// Status asks one node.
func (c *Cluster) Status(ctx context.Context, n *Node) (*clientv3.StatusResponse, error) {
	client := c.Client(n)
	defer client.Close()
	return client.Status(ctx, n.client)
}

// Hash is what a member says of its keys.
type Hash struct {
	Hash              uint32
	Compacted, Hashed int64
}

// CheckEqual waits until all nodes have the same revision, and fails unless their hashes are equal there.
// Nobody may write meanwhile.
func (c *Cluster) CheckEqual() {
	c.t.Helper()
	revision := retried(c.t, "reach the same revision", func(ctx context.Context) (int64, error) {
		revision := int64(0)
		for _, node := range c.Nodes {
			status, err := c.Status(ctx, node)
			if err != nil {
				return 0, err
			}
			if revision != 0 && status.Header.Revision != revision {
				return 0, fmt.Errorf("%s is at %d, another at %d", node.Name, status.Header.Revision, revision)
			}
			revision = status.Header.Revision
		}
		return revision, nil
	})
	hashes := map[Hash][]string{}
	for _, node := range c.Nodes {
		client := c.Client(node)
		answer, err := pb.NewMaintenanceClient(client.ActiveConnection()).
			HashKV(member.Context(c.t), &pb.HashKVRequest{Revision: revision})
		if err != nil {
			c.t.Fatalf("%s: %v", node.Name, err)
		}
		hash := Hash{answer.Hash, answer.CompactRevision, answer.HashRevision}
		hashes[hash] = append(hashes[hash], node.Name+" ("+node.Program.Name+")")
		_ = client.Close()
	}
	if len(hashes) != 1 {
		c.t.Errorf("the members differ at revision %d: %v", revision, hashes)
	}
	alarms, err := c.Client().AlarmList(member.Context(c.t))
	if err != nil || len(alarms.Alarms) > 0 {
		c.t.Errorf("alarms: %v %v", alarms, err)
	}
}

// retried does something until it works, within patience.
func retried[T any](t testing.TB, what string, do func(context.Context) (T, error)) T {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var result T
		result, err = do(ctx)
		cancel()
		if err == nil {
			return result
		}
	}
	t.Fatalf("could not %s: %v", what, err)
	panic("unreachable")
}
