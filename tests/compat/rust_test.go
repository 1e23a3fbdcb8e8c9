// Package compat holds the comparisons that need no more than one test.
package compat

import (
	"os/exec"
	"testing"

	"keelson.dev/compat/member"
)

// The Rust crate etcd-client, as a program of its own.
func TestRustClient(t *testing.T) {
	m := member.Start(t, member.Binary(t, "SERVER_BINARY"), t.TempDir(), "--bcrypt-cost", "4")
	output, err := exec.Command(member.Binary(t, "RUSTCLIENT"), m.Endpoint).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\nthe server's log ends with:\n%s", err, output, m.LogTail())
	}
	m.Stop()
}
