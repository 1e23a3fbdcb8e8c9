"""The least that a call, a sync and a copy cost on this machine."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a put of SIZES below adds to the log: the request, its entry, its record, and the hard state behind it.
LOG_BYTES = 656
# A stored key with its value, as it stands in an answer.
ROW_BYTES = 600


def build():
    """The program; FLOOR_BINARY names a release build that is there already."""
    if "FLOOR_BINARY" in os.environ:
        return os.environ["FLOOR_BINARY"]
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "keelson-floor"], cwd=ROOT, check=True)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/keelson-floor")


class Floors:
    """Measures, in a process of its own, what is asked for. Leaving it ends the server that answers nothing."""

    def __init__(self, program, generator, folder, seconds):
        self.program, self.generator, self.folder, self.seconds = program, generator, str(folder), seconds

    def __enter__(self):
        self.server = subprocess.Popen([self.program, "calls"], stdout=subprocess.PIPE, text=True)
        self.endpoint = self.server.stdout.readline().strip()
        if not self.endpoint:
            raise RuntimeError(f"{self.program} calls: exit status {self.server.wait()}")
        return self

    def __exit__(self, *_failure):
        self.server.kill()
        self.server.wait()

    def calls(self, arguments):
        """A work of `keelson bench` whose requests are taken in and answered with nothing."""
        command = [self.generator, "bench", *arguments.split(), "--duration", str(self.seconds), "--json"]
        command += ["--endpoint", self.endpoint, "--pid", str(self.server.pid)]
        report = json.loads(run(command))
        if report["errors"]:
            raise RuntimeError(f"{' '.join(command)}: {report['first_error']}")
        return figures(report["server"]["cpu_us_per_operation"], report["latency_us"])

    def sync(self, size=LOG_BYTES):
        """So many bytes at the end of a file that was filled before, and `fdatasync`."""
        return self.own("sync", self.folder, str(size), str(self.seconds))

    def copy(self, size):
        return self.own("copy", str(size), str(min(self.seconds, 1)))

    def own(self, *arguments):
        report = json.loads(run([self.program, *arguments]))
        return figures(report["cpu_us_per_operation"], report["latency_us"])


def figures(cpu_us, latency_us):
    return {"cpu_us": cpu_us, "p50_us": latency_us["p50"], "p99_us": latency_us["p99"]}


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout
