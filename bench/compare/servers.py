"""Members of etcd and of Keelson as processes, on loopback, in folders of their own."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_SECONDS = 60


RESERVED = []


def free_port():
    """A port below those that the kernel gives to connections, reserved as crates/harness/src/ports.rs does."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(10_000, first if first > 10_000 else 32_768):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0keelson-test-port-{port}")
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", port))
        except OSError:
            name.close()
            continue
        RESERVED.append(name)
        return port
    raise OSError("every port is taken")


class Member:
    """One process, or the place of one."""

    def __init__(self, program, folder, name):
        self.program, self.name = program, name
        self.folder = Path(folder) / name
        self.client = f"http://127.0.0.1:{free_port()}"
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.process = None

    def start(self, cluster, state="new", flags=()):
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            *self.program,
            "--name", self.name,
            "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", self.client,
            "--advertise-client-urls", self.client,
            "--listen-peer-urls", self.peer,
            "--initial-advertise-peer-urls", self.peer,
            "--initial-cluster", cluster,
            "--initial-cluster-state", state,
            "--log-level", "warn",
            *flags,
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def pid(self):
        return self.process.pid

    def bench(self, generator, arguments):
        """The report of a line of `keelson bench` against this member."""
        command = [generator, "bench", *arguments.split(), "--endpoint", self.client, "--pid", str(self.pid), "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    def get(self, path):
        with urllib.request.urlopen(self.client + path, timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name):
        """The value of a metric without labels; None if there is none."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else None

    def is_healthy(self):
        try:
            return '"true"' in self.get("/health")
        except (urllib.error.URLError, OSError):
            return False

    def wait_healthy(self):
        end = time.monotonic() + READY_SECONDS
        while not self.is_healthy():
            self.check_alive()
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} is not healthy after {READY_SECONDS} s: see {self.folder}/log")
            time.sleep(0.02)

    def check_alive(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: see {self.folder}/log")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Cluster:
    """Members that know each other. Leaving it stops them and removes their folders."""

    def __init__(self, program, folder, size, flags=()):
        self.program, self.folder, self.flags = program, Path(folder), flags
        self.members = [Member(program, folder, f"m{number}") for number in range(size)]

    def __enter__(self):
        for member in self.members:
            member.start(self.text(), flags=self.flags)
        for member in self.members:
            member.wait_healthy()
        return self

    def __exit__(self, *_failure):
        for member in self.members:
            member.stop()
        if _failure[0] is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def text(self):
        return ",".join(f"{member.name}={member.peer}" for member in self.members)

    def leader(self):
        return next(member for member in self.members if member.metric("etcd_server_is_leader") == 1)

    def followers(self):
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def join(self, etcdctl):
        """Adds a member and starts it; returns it and does not wait until it serves."""
        member = Member(self.program, self.folder, f"m{len(self.members)}")
        # Members that have not been connected for five seconds make a cluster unhealthy, and adding is refused.
        insist([etcdctl, "--endpoints", self.leader().client, "member", "add", member.name, "--peer-urls", member.peer])
        for known in self.members:
            # A linearizable read: each of them knows of the new one then, whichever it asks.
            insist([etcdctl, "--endpoints", known.client, "member", "list"])
        self.members.append(member)
        member.start(self.text(), state="existing", flags=self.flags)
        return member


def insist(command):
    """Runs a command until it succeeds."""
    end = time.monotonic() + READY_SECONDS
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        if time.monotonic() > end:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        time.sleep(0.5)


@contextlib.contextmanager
def side_by_side(servers, folder, name, flags):
    """A member of each kind of server: the one that is not loaded is idle."""
    with contextlib.ExitStack() as stack:
        members = {}
        for kind, program in servers.items():
            own = tempfile.mkdtemp(prefix=f"{name}-{kind}.", dir=folder)
            members[kind] = stack.enter_context(Cluster(program, own, 1, flags)).members[0]
        yield members
