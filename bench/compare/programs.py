"""The programs that are compared, built."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build():
    """The command of each kind of server, the load generator, and the stock etcdctl.

    SERVER_BINARY names a release build of Keelson that is there already.
    """
    tools = subprocess.run([ROOT / "tests/compat/tools"], check=True, stdout=subprocess.PIPE, text=True)
    cache = Path(tools.stdout.strip()) / "etcd-3.7.1"
    if "SERVER_BINARY" in os.environ:
        ours = os.environ["SERVER_BINARY"]
    else:
        subprocess.run(["cargo", "build", "--release", "--locked", "-p", "keelson-cli"], cwd=ROOT, check=True)
        ours = str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/keelson")
    return {"etcd": [str(cache / "etcd")], "keelson": [ours, "serve"]}, ours, str(cache / "etcdctl")
