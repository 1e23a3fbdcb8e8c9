// Package cost reads what operations cost a server in processor time, beside etcd on the same machine.
//
// Nothing here passes or fails by a number: machines differ, and only the ratio means something. Both
// programs must be release builds for it to mean that.
package cost

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

const (
	connections = 4
	workers     = 64
	duration    = 5 * time.Second
	listed      = 500
	watchers    = 50
	// Linux counts processor time in hundredths of a second for every program that asks.
	tick = 10 * time.Millisecond
)

var value = strings.Repeat("v", 256)

// reading is operations, the server's processor time and the time on the clock.
type reading struct {
	operations int64
	cpu, clock time.Duration
}

func (r reading) each() float64 { return float64(r.cpu.Microseconds()) / float64(max(r.operations, 1)) }

func (r reading) rate() float64 { return float64(r.operations) / r.clock.Seconds() }

func TestCost(t *testing.T) {
	etcd := measure(t, "ETCD_BINARY")
	ours := measure(t, "SERVER_BINARY")
	var table strings.Builder
	fmt.Fprintf(&table, "%-12s %14s %14s %7s %12s %12s\n", "operation", "etcd us CPU", "server us CPU", "ratio", "etcd /s", "server /s")
	for _, name := range []string{"put", "get", "list", "watch event"} {
		fmt.Fprintf(&table, "%-12s %14.1f %14.1f %7.2f %12.0f %12.0f\n", name,
			etcd[name].each(), ours[name].each(), ours[name].each()/etcd[name].each(), etcd[name].rate(), ours[name].rate())
	}
	t.Logf("%d workers on %d connections, %d byte values, lists of %d\n%s", workers, connections, len(value), listed, &table)
}

func measure(t *testing.T, variable string) map[string]reading {
	t.Helper()
	m := member.Start(t, member.Binary(t, variable), t.TempDir())
	defer m.Stop()
	var clients []*clientv3.Client
	for range connections {
		clients = append(clients, m.Client())
	}
	readings := map[string]reading{}
	readings["put"] = load(t, m, clients, func(ctx context.Context, c *clientv3.Client, n int64) error {
		_, err := c.Put(ctx, fmt.Sprintf("put/%06d", n%10_000), value)
		return err
	})
	readings["get"] = load(t, m, clients, func(ctx context.Context, c *clientv3.Client, n int64) error {
		_, err := c.Get(ctx, fmt.Sprintf("put/%06d", n%10_000))
		return err
	})
	for i := range listed {
		if _, err := clients[0].Put(context.Background(), fmt.Sprintf("list/%04d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	readings["list"] = load(t, m, clients, func(ctx context.Context, c *clientv3.Client, _ int64) error {
		_, err := c.Get(ctx, "list/", clientv3.WithPrefix())
		return err
	})
	readings["watch event"] = watched(t, m, clients, readings["put"])
	return readings
}

func load(t *testing.T, m *member.Member, clients []*clientv3.Client, operation func(context.Context, *clientv3.Client, int64) error) reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	var done atomic.Int64
	var failed atomic.Value
	var group sync.WaitGroup
	before, start := processorTime(t, m), time.Now()
	for worker := range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			for ctx.Err() == nil {
				n := done.Add(1)
				if err := operation(ctx, clients[worker%connections], n); err != nil && ctx.Err() == nil {
					failed.Store(err)
					return
				}
			}
		}()
	}
	group.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(err)
	}
	return reading{done.Load(), processorTime(t, m) - before, time.Since(start)}
}

// watched is the cost of an event: puts that are each seen by many watchers, less the cost of the puts.
func watched(t *testing.T, m *member.Member, clients []*clientv3.Client, put reading) reading {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var events atomic.Int64
	for number := range watchers {
		channel := clients[number%connections].Watch(ctx, "watched/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-channel
		go func() {
			for response := range channel {
				events.Add(int64(len(response.Events)))
			}
		}()
	}
	whole := load(t, m, clients, func(ctx context.Context, c *clientv3.Client, n int64) error {
		_, err := c.Put(ctx, fmt.Sprintf("watched/%04d", n%1000), value)
		return err
	})
	puts := time.Duration(put.each()*float64(whole.operations)) * time.Microsecond
	return reading{events.Load(), max(whole.cpu-puts, 0), whole.clock}
}

func processorTime(t *testing.T, m *member.Member) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	// The name in parentheses may hold blanks; user and system time are the 12th and 13th after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var total int64
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		total += ticks
	}
	return time.Duration(total) * tick
}
