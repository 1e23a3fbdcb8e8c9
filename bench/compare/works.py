"""What is compared: each work is a line of `keelson bench`, and where it goes."""

from dataclasses import dataclass, field

from floors import ROW_BYTES


@dataclass(frozen=True)
class Floor:
    """The least that an operation costs: a call that is answered with nothing, and what it must do beside."""

    # The load of the same clients, for a server that does nothing.
    arguments: str
    # Whether it waits for a sync, and whether nobody shares that.
    synced: bool = False
    alone: bool = False
    # Keys in its answer.
    keys: int = 0

    def measure(self, floors):
        """`cpu_us` and `p50_us`, and the parts that they are made of."""
        call = floors.calls(self.arguments)
        parts = {"call": call}
        cpu, p50 = call["cpu_us"], call["p50_us"]
        if self.synced:
            parts["sync"] = floors.sync()
            p50 += parts["sync"]["p50_us"]
            if self.alone:
                cpu += parts["sync"]["cpu_us"]
        if self.keys:
            parts["copy"] = floors.copy(self.keys * ROW_BYTES)
            cpu += parts["copy"]["p50_us"]
            p50 += parts["copy"]["p50_us"]
        return {"cpu_us": cpu, "p50_us": p50, **parts}


@dataclass(frozen=True)
class Work:
    name: str
    arguments: str
    # "all" members, the "leader", or one "follower".
    to: str = "all"
    # What an operation is, where it is not a request.
    unit: str = "request"
    flags: tuple = field(default=())

    @property
    def floor(self):
        """What nobody can be cheaper than; None where nothing so simple is known."""
        kind, *rest = self.arguments.split()
        if kind == "put":
            return Floor(self.arguments, synced=True, alone="--clients 1 " in self.arguments)
        if kind == "get":
            return Floor(" ".join(["get --no-populate", *(word for word in rest if word != "--no-populate")]))
        if kind == "list":
            given = lambda name: rest[rest.index(name) + 1]  # noqa: E731
            load = [f"{name} {given(name)}" for name in ("--connections", "--clients", "--key-size")]
            keys = int(given("--page")) or int(given("--keys"))
            return Floor(" ".join(["get --no-populate", *load]), keys=keys)
        return None


SIZES = "--key-size 64 --value-size 512 --keys 100000"

ONE = [
    # First, while there are no other keys than these.
    Work("list of 10,000 keys, pages of 500", "list --page 500 --connections 4 --clients 8 --key-size 64 --value-size 512 --keys 10000"),
    Work("list of 10,000 keys, whole", "list --page 0 --no-populate --connections 2 --clients 2 --key-size 64 --value-size 512 --keys 10000"),
    Work("list of 10,000 keys, RangeStream", "list --page 0 --stream --no-populate --connections 2 --clients 2 --key-size 64 --value-size 512 --keys 10000"),
    Work("put, 1 client", f"put --connections 1 --clients 1 {SIZES}"),
    Work("put, 64 clients on 4 connections", f"put --connections 4 --clients 64 {SIZES}"),
    Work("put, 256 clients on 16 connections", f"put --connections 16 --clients 256 {SIZES}"),
    Work("put, 1,000 clients on 100 connections", f"put --connections 100 --clients 1000 {SIZES}"),
    Work("get, linearizable", f"get --connections 4 --clients 64 {SIZES}"),
    Work("get, serializable", f"get --serializable --no-populate --connections 4 --clients 64 {SIZES}"),
    Work("get and compare-and-put", f"update --no-populate --connections 4 --clients 64 {SIZES}"),
    Work("mixed, a put among five", f"mixed --writes 20 --no-populate --connections 4 --clients 64 {SIZES}"),
    Work("lease keep-alive", "keep-alive --connections 4 --clients 64"),
    Work("lease: grant, put, revoke", f"lease --connections 4 --clients 64 {SIZES}"),
    Work("put beside 10 watchers far behind", f"lag --watchers 10 --behind 100000 --connections 4 --clients 64 {SIZES}"),
    Work("watch, 200 watchers on 4 streams", f"watch --watchers 200 --streams 4 --connections 4 --clients 8 --rate 500 {SIZES}", unit="event"),
]  # fmt: skip

THREE = [
    Work("put, 64 clients on 12 connections", f"put --connections 12 --clients 64 {SIZES}"),
    Work("put, 1,000 clients on 99 connections", f"put --connections 99 --clients 1000 {SIZES}"),
    Work("put to the leader, 64 clients on 4 connections", f"put --connections 4 --clients 64 {SIZES}", to="leader"),
    Work("get, linearizable, on a follower", f"get --connections 4 --clients 64 {SIZES}", to="follower"),
    Work("get, linearizable, on the leader", f"get --no-populate --connections 4 --clients 64 {SIZES}", to="leader"),
]  # fmt: skip

WORKS = {1: ONE, 3: THREE}
