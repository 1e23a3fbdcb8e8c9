package member

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
)

const (
	// lowestPort is the first that is tried.
	lowestPort = 10_000
	// kernelsPort is where the kernel's own range begins, if it does not say.
	kernelsPort = 32_768
)

// reservations hold the names of the ports that were given out, for as long as the tests run.
var reservations struct {
	sync.Mutex
	held []net.Listener
}

// FreeURL is an address of the loopback interface that nobody uses, and that nobody else gets.
//
// A port that the kernel gives out goes to the next connection or test once it is closed, and a member
// wants to listen there after that. So the ports lie below the kernel's range, and each is reserved by the
// name that crates/harness/src/ports.rs reserves it with.
func FreeURL(t testing.TB) string {
	t.Helper()
	reservations.Lock()
	defer reservations.Unlock()
	count := endPort() - lowestPort
	first := os.Getpid() * 97 % count
	for number := range count {
		port := lowestPort + (first+number)%count
		name, err := net.Listen("unix", fmt.Sprintf("@keelson-test-port-%d", port))
		if err != nil {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		listener, err := net.Listen("tcp", address)
		if err != nil {
			_ = name.Close()
			continue
		}
		_ = listener.Close()
		reservations.held = append(reservations.held, name)
		return "http://" + address
	}
	t.Fatal("every port is taken")
	return ""
}

// endPort is where the ports begin that the kernel gives out.
func endPort() int {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var first int
	if _, err := fmt.Sscan(string(text), &first); err != nil || first <= lowestPort {
		return kernelsPort
	}
	return first
}
