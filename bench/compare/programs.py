"""The programs that are compared, built."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build_ours():
    """The program `keelson`, server and load generator.

    SERVER_BINARY names a release build that is there already.
    """
    if "SERVER_BINARY" in os.environ:
        return os.environ["SERVER_BINARY"]
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "keelson-cli"], cwd=ROOT, check=True)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/keelson")


def build():
    """The command of each kind of server, the load generator, and the stock etcdctl."""
    tools = subprocess.run([ROOT / "tests/compat/tools"], check=True, stdout=subprocess.PIPE, text=True)
    cache = Path(tools.stdout.strip()) / "etcd-3.7.1"
    ours = build_ours()
    return {"etcd": [str(cache / "etcd")], "keelson": [ours, "serve"]}, ours, str(cache / "etcdctl")


def numbers(text):
    """The numbers of an option, with commas between them."""
    return [int(number) for number in text.split(",")]
