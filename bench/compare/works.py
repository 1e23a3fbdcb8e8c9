"""What is compared: each work is a line of `keelson bench`, and where it goes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    name: str
    arguments: str
    # "all" members, the "leader", or one "follower".
    to: str = "all"
    # What an operation is, where it is not a request.
    unit: str = "request"
    flags: tuple = field(default=())


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
