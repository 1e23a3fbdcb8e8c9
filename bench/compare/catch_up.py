"""A new member of a cluster that holds much: how long it takes, and what writers notice meanwhile."""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from servers import Cluster

VALUE_BYTES = 16 << 10
# A load that leaves room: latency under a fixed rate, so that a stall cannot hide.
WRITES = "put --connections 2 --clients 32 --rate 200 --key-size 64 --value-size 512 --keys 10000"
FLAGS = ("--quota-backend-bytes", str(8 << 30))
PATIENCE_SECONDS = 600


def compare(options, servers, generator, etcdctl):
    rows = []
    for number in range(options.rounds):
        # Whoever comes second finds another machine: take turns at it.
        kinds = list(servers) if number % 2 == 0 else list(reversed(servers))
        for kind in kinds:
            folder = tempfile.mkdtemp(prefix=f"catch-up-{kind}.", dir=options.folder)
            with Cluster(servers[kind], folder, 3, FLAGS) as cluster:
                row = {"server": kind, "mebibytes": options.mebibytes, **measure(cluster, options, generator, etcdctl)}
            rows.append(row)
            print(json.dumps(row), file=options.rows, flush=True)
    table(rows)


def measure(cluster, options, generator, etcdctl):
    leader = cluster.leader()
    keys = (options.mebibytes << 20) // VALUE_BYTES
    print(f"filling {keys} keys", file=sys.stderr)
    fill = f"get --connections 4 --clients 4 --total 1 --key-size 64 --value-size {VALUE_BYTES} --keys {keys}"
    bench(generator, fill.split() + ["--endpoint", leader.client])
    # A follower may itself lag behind so much writing.
    until(lambda: all(has_caught_up(member, leader) for member in cluster.members))
    writes = WRITES.split() + ["--endpoint", leader.client, "--json"]
    idle = json.loads(bench(generator, [*writes, "--duration", str(options.seconds)]))
    meanwhile = subprocess.Popen(
        [generator, "bench", *writes, "--duration", str(PATIENCE_SECONDS)], stdout=subprocess.PIPE, text=True
    )
    joined = cluster.join(etcdctl)
    begin, cpu = time.monotonic(), processor_seconds(leader.pid)
    until(lambda: has_caught_up(joined, leader), joined.check_alive)
    seconds, cpu = time.monotonic() - begin, processor_seconds(leader.pid) - cpu
    # The generator ends its run, and reports.
    meanwhile.send_signal(signal.SIGINT)
    busy = json.loads(meanwhile.communicate()[0])
    return {
        "seconds": seconds,
        "leader_cpu_seconds": cpu,
        "joined_cpu_seconds": processor_seconds(joined.pid),
        "idle_p99_us": idle["latency_us"]["p99"],
        "idle_max_us": idle["latency_us"]["max"],
        "p99_us": busy["latency_us"]["p99"],
        "max_us": busy["latency_us"]["max"],
        "errors": busy["errors"],
    }


def has_caught_up(joined, leader):
    """Whether it serves, and has applied what the leader had when it was asked."""
    if not joined.is_healthy():
        return False
    applied = "etcd_server_proposals_applied_total"
    there = leader.metric(applied)
    return joined.metric(applied) >= there


def until(holds, check=lambda: None):
    """Waits until something holds, as long as the check passes."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        check()
        if time.monotonic() > end:
            raise RuntimeError(f"a member has not caught up in {PATIENCE_SECONDS} s")
        time.sleep(0.02)


def bench(generator, arguments):
    return subprocess.run([generator, "bench", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def table(rows):
    """Medians of the rounds, and their ratio."""
    names = [name for name in rows[0] if name not in ("server", "mebibytes")]
    print(f"| {rows[0]['mebibytes']} MiB | etcd | Keelson | ratio |\n|---|---|---|---|")
    for name in names:
        theirs, ours = (
            statistics.median(row[name] for row in rows if row["server"] == kind) for kind in ("etcd", "keelson")
        )
        ratio = f"{ours / theirs:.2f}" if theirs else "-"
        print(f"| {name} | {theirs:.4g} | {ours:.4g} | {ratio} |")
