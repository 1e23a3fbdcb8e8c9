// Package ctl runs the stock etcdctl and etcdutl with one script against etcd and against another server,
// and compares what they print and how they end.
package ctl

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/compat/member"
)

const patience = 20 * time.Second

// step is one command. Words are separated by blanks; 'quoted words' may hold blanks, and $LEASE stands
// for the lease that was granted last, $DIR for a scratch folder, $ENDPOINT for the server.
type step struct {
	command string
	stdin   string
	// until ends a command that would go on for ever, when it has printed this; then is run before.
	until string
	then  []string
}

var keys = []step{
	{command: "put a 1"},
	{command: "put a 2 --prev-kv"},
	{command: "put b 3 -w json"},
	{command: "put c -- -dash"},
	{command: "put d", stdin: "from stdin"},
	{command: "put k/1 x"}, {command: "put k/2 y"}, {command: "put k/3 z"},
	{command: "put a --ignore-value"},
	{command: "put none --ignore-value"},
	{command: "put '' x"},
	{command: "get a"},
	{command: "get a -w json"}, {command: "get a -w fields"}, {command: "get a --print-value-only"},
	{command: "get missing"},
	{command: "get k/ --prefix"}, {command: "get k/ --prefix --keys-only"}, {command: "get k/ --prefix --count-only -w fields"},
	{command: "get k/ --prefix --limit 2 -w json"},
	{command: "get k/ --prefix --order DESCEND --sort-by MODIFY"},
	{command: "get k/1 k/3"}, {command: "get k/2 --from-key --keys-only"},
	{command: "get a --rev 2"}, {command: "get a --rev 999"}, {command: "get a --rev 1"},
	{command: "get --prefix '' --min-mod-rev 5 --keys-only"},
	{command: "get a --consistency s"},
	{command: "get '' --prefix --hex"},
	{command: "get a -w protobuf"},
	{command: "del k/1"}, {command: "del k/ --prefix --prev-kv"}, {command: "del k/ --prefix"}, {command: "del a z --range"}, {command: "del ''"},
	{command: "put t/1 1"}, {command: "put t/2 2"},
	{command: "txn", stdin: "value(\"t/1\") = \"1\"\nmod(\"t/2\") > \"1\"\n\nput t/1 done\nget t/1\ndel t/2\n\nput t/1 wrong\n\n"},
	{command: "txn", stdin: "version(\"t/1\") = \"77\"\n\nput t/1 wrong\n\nget t/ --prefix\n\n"},
	{command: "txn -w json", stdin: "create(\"t/none\") = \"0\"\n\nget t/1\n\n\n"},
	{command: "txn", stdin: "\nput t/1 again\nput t/1 twice\n\n\n"},
	{command: "txn", stdin: "nonsense\n\n\n\n"},
	{command: "version"},
}

var watches = []step{
	{command: "put w/1 a"}, {command: "put w/1 b"}, {command: "put w/2 c"}, {command: "del w/1"}, {command: "put w/end e"},
	{command: "watch w/1 --rev 1", until: "DELETE"},
	{command: "watch w/ --prefix --rev 1 --prev-kv", until: "w/end"},
	{command: "watch w/ --prefix --rev 1 -w json", until: "dy9lbmQ"},
	{command: "watch w/1 w/3 --rev 3", until: "c"},
	{command: "watch live --rev 1", until: "second", then: []string{"put live first", "del live", "put live second"}},
	{command: "watch -i", stdin: "watch w/2 --rev 1\n", until: "c"},
	{command: "compact 4"},
	{command: "watch w/1 --rev 2"},
}

var leases = []step{
	{command: "lease grant 600"},
	{command: "lease grant 1 -w json"},
	{command: "lease grant 99999999999"},
	{command: "lease grant x"},
	{command: "put leased v --lease $LEASE"},
	{command: "get leased -w fields"},
	{command: "put leased v --lease 123abc"},
	{command: "lease timetolive $LEASE"}, {command: "lease timetolive $LEASE --keys"},
	{command: "lease timetolive 123abc"},
	{command: "lease keep-alive --once $LEASE"}, {command: "lease keep-alive --once 123abc"},
	{command: "lease keep-alive $LEASE", until: "keepalived"},
	{command: "lease revoke $LEASE"}, {command: "lease revoke $LEASE"},
	{command: "get leased"},
	{command: "lease timetolive $LEASE"},
	{command: "lock name -- echo held"},
}

var maintenance = []step{
	{command: "put m/1 1"}, {command: "put m/1 2"}, {command: "put m/2 3"}, {command: "del m/2"}, {command: "put m/3 4"},
	{command: "endpoint health"}, {command: "endpoint health -w json"},
	{command: "endpoint status -w fields"}, {command: "endpoint status -w json"}, {command: "endpoint status -w table"},
	{command: "endpoint hashkv"}, {command: "endpoint hashkv --rev 3"}, {command: "endpoint hashkv -w json"}, {command: "endpoint hashkv --rev 99"},
	{command: "member list"}, {command: "member list -w table"}, {command: "member list -w json"}, {command: "member list -w fields"},
	{command: "compaction 4"}, {command: "compaction 4"}, {command: "compaction 99"}, {command: "compaction 5 --physical"},
	{command: "get m/1 --rev 3"},
	{command: "endpoint hashkv"},
	{command: "defrag"},
	{command: "alarm list"}, {command: "alarm disarm"},
	{command: "get '' --prefix"},
	{command: "snapshot save $DIR/snapshot.db"},
	{command: "etcdutl snapshot status $DIR/snapshot.db -w fields"},
	{command: "etcdutl snapshot restore $DIR/snapshot.db --data-dir $DIR/restored --name m1 --initial-cluster m1=http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380"},
	{command: "move-leader 1"},
}

var auth = []step{
	{command: "auth status"},
	{command: "auth enable"},
	{command: "role add r"}, {command: "role add r"}, {command: "role add root"},
	{command: "role grant-permission r read a b"}, {command: "role grant-permission r readwrite p/ --prefix"},
	{command: "role grant-permission r write x"}, {command: "role grant-permission r read z --from-key"},
	{command: "role grant-permission r nonsense x"}, {command: "role grant-permission none read x"},
	{command: "role get r"}, {command: "role get r -w json"}, {command: "role get none"}, {command: "role list"},
	{command: "role revoke-permission r x"}, {command: "role revoke-permission r x"},
	{command: "user add root:pw"}, {command: "user add alice:pw"}, {command: "user add alice:pw"}, {command: "user add bob --no-password"},
	{command: "user add piped --interactive=false", stdin: "secret\n"},
	{command: "user grant-role root root"}, {command: "user grant-role alice r"}, {command: "user grant-role alice none"},
	{command: "user get alice"}, {command: "user get alice --detail"}, {command: "user get none"}, {command: "user list"},
	{command: "user revoke-role alice none"},
	{command: "put p/1 before"},
	{command: "auth enable"},
	{command: "get p/1"}, {command: "get p/1 --user alice:wrong"}, {command: "get p/1 --user none:pw"},
	{command: "get p/1 --user alice:pw"}, {command: "get p/ --prefix --user alice:pw"}, {command: "get q --user alice:pw"},
	{command: "get p/1 --user alice --password pw"},
	{command: "put p/1 after --user alice:pw"}, {command: "put a after --user alice:pw"}, {command: "get z1 --user alice:pw"},
	{command: "txn --user alice:pw", stdin: "value(\"p/1\") = \"after\"\n\nput p/2 x\n\nput q x\n\n"},
	{command: "watch q --user alice:pw"},
	{command: "user list --user alice:pw"}, {command: "user get alice --user alice:pw"}, {command: "endpoint status -w fields --user alice:pw"},
	{command: "snapshot save $DIR/refused.db --user alice:pw"},
	{command: "user passwd alice --interactive=false --user root:pw", stdin: "new\n"},
	{command: "get p/1 --user alice:new"}, {command: "get p/1 --user alice:pw"},
	{command: "user delete root --user root:pw"},
	{command: "user delete alice --user root:pw"}, {command: "role delete r --user root:pw"}, {command: "role list --user root:pw"},
	{command: "auth status --user root:pw"},
	{command: "auth disable --user root:pw"},
	{command: "get p/1"},
}

func TestCommandLine(t *testing.T) {
	for _, part := range []struct {
		name  string
		steps []step
	}{{"keys", keys}, {"watches", watches}, {"leases", leases}, {"maintenance", maintenance}, {"auth", auth}} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			want := transcript(t, "ETCD_BINARY", part.steps)
			got := transcript(t, "SERVER_BINARY", part.steps)
			for i, step := range part.steps {
				t.Logf("%s\n%s", step.command, want[i])
				if got[i] != want[i] {
					t.Errorf("%s\n--- etcd\n%s\n--- server\n%s", step.command, want[i], got[i])
				}
			}
			if last := len(part.steps); got[last] != want[last] {
				t.Errorf("the restored directory\n--- etcd\n%s\n--- server\n%s", want[last], got[last])
			}
		})
	}
}

// session is one server and what the script has learned about it.
type session struct {
	t        *testing.T
	endpoint string
	dir      string
	lease    string
}

// transcript is what each step printed, normalised, and at the end what a restored snapshot holds.
func transcript(t *testing.T, variable string, steps []step) []string {
	t.Helper()
	binary := member.Binary(t, variable)
	m := member.Start(t, binary, t.TempDir(), "--bcrypt-cost", "4")
	s := &session{t: t, endpoint: m.Endpoint, dir: t.TempDir()}
	var texts []string
	for _, step := range steps {
		texts = append(texts, s.run(step))
	}
	m.Stop()
	restored := filepath.Join(s.dir, "restored")
	if _, err := os.Stat(restored); err != nil {
		return append(texts, "")
	}
	m = member.Start(t, binary, restored)
	s.endpoint = m.Endpoint
	text := s.run(step{command: "get '' --prefix -w json"}) + s.run(step{command: "member list"}) + s.run(step{command: "endpoint hashkv"})
	m.Stop()
	return append(texts, text)
}

func (s *session) run(step step) string {
	s.t.Helper()
	tool, args := "ETCDCTL", s.words(step.command)
	if args[0] == "etcdutl" {
		tool, args = "ETCDUTL", args[1:]
	} else {
		args = append([]string{"--endpoints", s.endpoint}, args...)
	}
	cmd := exec.Command(member.Binary(s.t, tool), args...)
	output, errors := &buffer{}, &buffer{}
	cmd.Stdout, cmd.Stderr = output, errors
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.WriteString(stdin, step.stdin)
	// One that goes on for ever may read its commands from there: it stays open.
	if step.until == "" {
		_ = stdin.Close()
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	for _, command := range step.then {
		s.run(parse(command))
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		running := true
		select {
		case <-ended:
			running = false
		default:
		}
		if step.until != "" && strings.Contains(output.String(), step.until) {
			break
		}
		if !running {
			break
		}
		if time.Now().After(end) {
			_, _ = errors.Write([]byte("(did not end)\n"))
			break
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	text := output.String()
	if step.until != "" {
		text, _, _ = strings.Cut(text, step.until)
		return s.normal(step, text+step.until)
	}
	return s.normal(step, fmt.Sprintf("%s%sexit %d", text, withoutLog(errors.String()), cmd.ProcessState.ExitCode()))
}

func parse(command string) step { return step{command: command} }

// words splits a command and fills in what stands behind a dollar sign.
func (s *session) words(command string) []string {
	command = strings.NewReplacer("$LEASE", s.lease, "$DIR", s.dir, "$ENDPOINT", s.endpoint).Replace(command)
	var words []string
	for at, part := range strings.Split(command, "'") {
		if at%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

// withoutLog drops the log lines of the tools from what they print on stderr.
func withoutLog(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, `{"level"`) && !logLine.MatchString(line) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

var (
	logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[0-9:.]+Z\t`)
	granted = regexp.MustCompile(`lease ([0-9a-f]{16}) granted`)
	// What differs between two runs of the same program.
	varying = []struct{ pattern, replacement string }{
		{`remaining\(\d+s\)`, "remaining(N)"},
		{`("?took"?[ =:"]+)[0-9.]+(µs|ms|s)`, "${1}TIME"},
		{`\d+(\.\d+)?(µs|ms)|\d+\.\d+s`, "TIME"},
		{`\d+(\.\d+)? [kMG]?B`, "SIZE"},
		{`(?i)("raft_?(term|index|appliedindex)" ?: ?)\d+`, "${1}N"},
		{`(?i)("db_?size(_?in_?use)?" ?: ?)\d+`, "${1}N"},
	}
	tableNumber = regexp.MustCompile(`│ +\d+%? +`)
	blanks      = regexp.MustCompile(`[ ─]+`)
	leaseID     = regexp.MustCompile(`"ID":\d+`)
	fileHash    = regexp.MustCompile(`"(Hash|Size)" : \d+`)
)

func (s *session) normal(step step, text string) string {
	if found := granted.FindStringSubmatch(text); found != nil {
		s.lease = found[1]
	}
	text = strings.ReplaceAll(text, s.endpoint, "ENDPOINT")
	text = strings.ReplaceAll(text, strings.TrimPrefix(s.endpoint, "http://"), "ENDPOINT")
	text = strings.ReplaceAll(text, s.dir, "DIR")
	if s.lease != "" {
		text = strings.ReplaceAll(text, s.lease, "LEASE")
		if number, err := strconv.ParseInt(s.lease, 16, 64); err == nil {
			text = strings.ReplaceAll(text, fmt.Sprint(number), "LEASE")
		}
	}
	for _, rule := range varying {
		text = regexp.MustCompile(rule.pattern).ReplaceAllString(text, rule.replacement)
	}
	if strings.Contains(text, "│") {
		// Columns are as wide as their numbers.
		if strings.Contains(step.command, "status") {
			text = tableNumber.ReplaceAllString(text, "│ N ")
		}
		text = blanks.ReplaceAllString(text, " ")
	}
	switch {
	case strings.HasPrefix(step.command, "lease grant"):
		text = leaseID.ReplaceAllString(text, `"ID":LEASE`)
	case strings.HasPrefix(step.command, "etcdutl snapshot status"):
		// They cover the whole file, log index and free pages included.
		text = fileHash.ReplaceAllString(text, `"$1" : N`)
	}
	return text
}

// buffer is written by the command and read while it runs.
type buffer struct {
	mutex sync.Mutex
	bytes bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.bytes.Write(p)
}

func (b *buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.bytes.String()
}
