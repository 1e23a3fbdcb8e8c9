// Package member runs one server process for a test: etcd, or another program that takes its flags.
package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// deadline bounds a start and a stop.
const deadline = 60 * time.Second

// Member is a running server.
type Member struct {
	// Endpoint is where clients connect.
	Endpoint string
	// Dir is the data directory.
	Dir string

	t      testing.TB
	binary string
	cmd    *exec.Cmd
	log    string
	done   chan struct{}
}

// Binary is the program that an environment variable names; without it the test fails.
func Binary(t testing.TB, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s must name a program", variable)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return path
}

// IsOurs is whether a program is ours and not the real etcd.
func IsOurs(t testing.TB, binary string) bool {
	t.Helper()
	version, err := exec.Command(binary, "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --version: %v", binary, err)
	}
	return bytes.Contains(bytes.ToLower(version), []byte("keelson"))
}

// Start runs a program on a data directory and waits until it serves. The announced addresses are the
// same in every run, so that the ids of cluster and member are equal and a directory can change hands.
// When args begin with --listen-client-urls, the server listens there as well.
func Start(t testing.TB, binary, dir string, args ...string) *Member {
	t.Helper()
	m, err := TryStart(t, binary, dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TryStart is Start for those who expect a refusal.
func TryStart(t testing.TB, binary, dir string, args ...string) (*Member, error) {
	t.Helper()
	listen := ""
	if len(args) > 1 && args[0] == "--listen-client-urls" {
		listen, args = ","+args[1], args[2:]
	}
	client, peer := FreeURL(t), FreeURL(t)
	const announced = "http://127.0.0.1:12380"
	args = append([]string{
		"--name", "m1", "--data-dir", dir,
		"--listen-client-urls", client + listen, "--advertise-client-urls", "http://127.0.0.1:12379",
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", announced,
		"--initial-cluster", "m1=" + announced, "--initial-cluster-state", "new",
	}, args...)
	m, err := Launch(t, binary, client, dir, args...)
	if err != nil {
		return nil, err
	}
	// The storage version is raised soon after the start; what is compared begins after that.
	raised := func() bool { return strings.Contains(m.version(), `"storage":"3.`) }
	if err := m.WaitUntilReady(raised); err != nil {
		return nil, err
	}
	return m, nil
}

// Launch starts a program with these flags and does not wait. Clients reach it at an address that the
// flags name too.
func Launch(t testing.TB, binary, client, dir string, args ...string) (*Member, error) {
	t.Helper()
	scratch := t.TempDir()
	// Called by this name the program takes etcd's flags and writes etcd's log.
	link := filepath.Join(scratch, "etcd")
	if err := os.Symlink(binary, link); err != nil {
		return nil, err
	}
	m := &Member{
		Endpoint: client, Dir: dir,
		t: t, binary: binary, log: filepath.Join(scratch, "log"), done: make(chan struct{}),
	}
	log, err := os.Create(m.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m.cmd = exec.Command(link, args...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.Env = append(os.Environ(), "ETCD_VERIFY=all")
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.done)
	}()
	t.Cleanup(m.Kill)
	return m, nil
}

// WaitUntilReady waits until it serves clients, and for something more.
func (m *Member) WaitUntilReady(more func() bool) error {
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-m.done:
			return m.failed(fmt.Errorf("ended: %v", m.cmd.ProcessState))
		default:
		}
		if m.Logged("ready to serve client requests") && more() {
			return nil
		}
	}
	return m.failed(errors.New("not ready in time"))
}

func (m *Member) failed(err error) error {
	return fmt.Errorf("%s: %w\nits log ends with:\n%s", m.binary, err, m.LogTail())
}

// Logged is whether it printed this.
func (m *Member) Logged(text string) bool {
	log, err := os.ReadFile(m.log)
	return err == nil && bytes.Contains(log, []byte(text))
}

func (m *Member) version() string {
	response, err := http.Get(m.Endpoint + "/version")
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}

// LogTail is the end of what the program printed.
func (m *Member) LogTail() string {
	log, _ := os.ReadFile(m.log)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// Kill ends the process at once, as a crash does.
func (m *Member) Kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

// Stop ends the process as an operator does, and fails the test when that takes too long.
func (m *Member) Stop() {
	m.t.Helper()
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.done:
	case <-time.After(deadline):
		m.t.Fatalf("did not stop on SIGTERM; its log ends with:\n%s", m.LogTail())
	}
}

// Ended is closed when the process has.
func (m *Member) Ended() <-chan struct{} { return m.done }

// Signal sends a signal to the process.
func (m *Member) Signal(signal syscall.Signal) { _ = m.cmd.Process.Signal(signal) }

// Pid is the process id.
func (m *Member) Pid() int { return m.cmd.Process.Pid }

// Client connects; the configuration may be changed first.
func (m *Member) Client(change ...func(*clientv3.Config)) *clientv3.Client {
	m.t.Helper()
	return Connect(m.t, []string{m.Endpoint}, change...)
}

// Connect connects to endpoints; the configuration may be changed first.
func Connect(t testing.TB, endpoints []string, change ...func(*clientv3.Config)) *clientv3.Client {
	t.Helper()
	config := clientv3.Config{
		Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		MaxCallRecvMsgSize: 64 << 20,
	}
	for _, f := range change {
		f(&config)
	}
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// As changes a configuration to a user's.
func As(name, password string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Username, config.Password = name, password }
}

// Context bounds one step of a test.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}
