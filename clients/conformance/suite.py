"""What a client must do, tried on a real Redis: `python3 suite.py [--server PATH] [--cluster] [--driver] -- COMMAND ...`

COMMAND is the client under test, wrapped in a program that speaks lines of JSON. The suite plays the database, the bridge and
the other readers, and so decides what comes before what.

    suite to client                                              client to suite
    {"do": "open", "redis": URL, "ttl": 30, "lease": 3.0,        {"event": "ready"}
     "wait": 0.4, "early": 0, "cluster": false}                seconds; early is XFetch's beta
    {"do": "get", "id": 1, "key": "k"}                           {"event": "load", "id": 1}      it asks the database
    {"do": "loaded", "id": 1, "value": any JSON}                 {"event": "got", "id": 1, "value": ...}
    {"do": "failed", "id": 1}                                    {"event": "failed", "id": 1}    the load's error came through

Any number of gets may be under way, each a task or thread of its own. End of input ends the program. With `--driver`, the
client is a cache that is asked with get and set, so it cannot know that a load has failed, or that it is its own reader's load.
"""

import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time

from redis_server import Cluster, Server

LEASE = re.compile(rb"^unstale:lease:[0-9a-f]{32}$")
OPTIONS = {"ttl": 30, "lease": 3.0, "wait": 0.4, "early": 0}
FOREIGN = b"unstale:lease:" + b"f" * 32
PATIENCE = 10.0


class Client:
    """The program under test. Events of each get are kept apart."""

    def __init__(self, command: list[str], server: Server | Cluster, **options: float) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.events: dict[int, queue.Queue] = {0: queue.Queue()}
        self.next = 0
        threading.Thread(target=self._listen, daemon=True).start()
        self.say(do="open", redis=server.url, cluster=isinstance(server, Cluster), **{**OPTIONS, **options})
        assert self.events[0].get(timeout=30)["event"] == "ready"

    def _listen(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)
            self.events[event.get("id", 0)].put(event)

    def say(self, **words: object) -> None:
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()

    def get(self, key: str) -> "Get":
        self.next += 1
        self.events[self.next] = queue.Queue()
        self.say(do="get", id=self.next, key=key)
        return Get(self, self.next)

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Get:
    def __init__(self, client: Client, number: int) -> None:
        self.client, self.number = client, number

    def event(self, seconds: float = PATIENCE) -> dict | None:
        try:
            return self.client.events[self.number].get(timeout=seconds)
        except queue.Empty:
            return None

    def loads(self) -> "Get":
        event = self.event()
        assert event and event["event"] == "load", f"a load was due, not {event}"
        return self

    def answer(self, value: object) -> "Get":
        self.client.say(do="loaded", id=self.number, value=value)
        return self

    def fail(self) -> "Get":
        self.client.say(do="failed", id=self.number)
        return self

    def gives(self, value: object, seconds: float = PATIENCE) -> None:
        event = self.event(seconds)
        assert event and event["event"] == "got" and event["value"] == value, f"{value} was due, not {event}"

    def is_quiet(self, seconds: float) -> None:
        event = self.event(seconds)
        assert event is None, f"nothing was due, not {event}"


class World:
    def __init__(self, server: Server | Cluster, command: list[str], driver: bool) -> None:
        self.server, self.command, self.driver = server, command, driver
        self.redis = server.connect()
        self.client = Client(command, server)

    def get(self, key: str) -> Get:
        return self.client.get(key)

    def stored(self, key: str):
        """The value in Redis, or None; a lease is not one."""
        raw = self.redis("GET", key)
        return None if raw is None or raw.startswith(b"unstale:lease:") else raw

    def wait_for(self, key: str, seconds: float = PATIENCE) -> bytes:
        deadline = time.monotonic() + seconds
        while (raw := self.stored(key)) is None:
            assert time.monotonic() < deadline, f"{key} was never stored"
            time.sleep(0.005)
        return raw

    def read_again(self, key: str, value: object) -> None:
        """What is read now must be `value`, from Redis or from the database."""
        again = self.get(key)
        event = again.event()
        if event and event["event"] == "load":
            again.answer(value)
            event = again.event()
        assert event and event["event"] == "got" and event["value"] == value, f"{value} was due, not {event}"


def a_miss_takes_a_lease_loads_once_and_stores(w: World) -> None:
    get = w.get("k").loads()
    assert LEASE.match(w.redis("GET", "k") or b""), "while it loads, the key holds a lease"
    assert 0 < w.redis("PTTL", "k") <= 3000, "the lease expires by itself"
    get.answer({"v": 1}).gives({"v": 1})
    w.wait_for("k")
    assert 24_000 < w.redis("PTTL", "k") <= 30_000, "ttl, shortened by some jitter"


def a_hit_is_one_command_and_loads_nothing(w: World) -> None:
    w.get("k").loads().answer({"v": 1}).gives({"v": 1})
    w.wait_for("k")
    node = w.server.node_of("k")
    monitor = node.connect()
    monitor("MONITOR")
    w.get("k").gives({"v": 1})
    node.connect()("PING", "mark")
    seen = []
    while "mark" not in (line := monitor.read()):
        if '"k"' in line:  # a new connection says hello
            seen.append(line)
    assert len(seen) == 1, f"one command, not {seen}"


def each_lease_is_new(w: World) -> None:
    leases = set()
    for _ in range(3):
        get = w.get("k").loads()
        leases.add(w.redis("GET", "k"))
        w.redis("UNLINK", "k")
        get.answer(1).gives(1)
    assert len(leases) == 3, f"a token for each fill: {leases}"


def a_delete_during_the_load_refuses_the_fill(w: World) -> None:
    get = w.get("k").loads()
    w.redis("UNLINK", "k")
    get.answer("old").gives("old")
    assert w.stored("k") is None
    w.read_again("k", "new")


def a_fill_does_not_replace_another_readers_lease(w: World) -> None:
    get = w.get("k").loads()
    w.redis("SET", "k", FOREIGN, "PX", 5000)
    get.answer("old").gives("old")
    assert w.redis("GET", "k") == FOREIGN


def a_fill_does_not_replace_another_readers_value(w: World) -> None:
    get = w.get("k").loads()
    w.redis("SET", "k", b'"new"', "PX", 5000)
    get.answer("old").gives("old")
    assert w.redis("GET", "k") == b'"new"'


def of_two_fills_of_one_process_the_older_is_refused(w: World) -> None:
    old = w.get("k").loads()
    w.redis("UNLINK", "k")
    new = w.get("k").loads()
    old.answer("old").gives("old")
    assert w.stored("k") is None, "the first fill went through under the second one's lease"
    new.answer("new").gives("new")
    w.wait_for("k")
    w.read_again("k", "new")


def the_older_of_two_fills_comes_last(w: World) -> None:
    old = w.get("k").loads()
    w.redis("UNLINK", "k")
    w.get("k").loads().answer("new").gives("new")
    before = w.wait_for("k")
    old.answer("old").gives("old")
    assert w.redis("GET", "k") == before


def a_fill_after_the_lease_ran_out_is_refused(w: World) -> None:
    get = w.get("k").loads()
    w.redis("PEXPIRE", "k", 1)
    time.sleep(0.02)
    get.answer("old").gives("old")
    assert w.redis("GET", "k") is None


def readers_of_one_process_load_once(w: World) -> None:
    first = w.get("k").loads()
    others = [w.get("k") for _ in range(5)]
    others[0].is_quiet(0.1)
    first.answer(7).gives(7)
    for other in others:
        other.gives(7)


def readers_wait_for_another_process(w: World) -> None:
    w.redis("SET", "k", FOREIGN, "PX", 5000)
    get = w.get("k")
    get.is_quiet(0.1)
    w.redis("EVAL", "return redis.call('set', KEYS[1], ARGV[1], 'px', 9000)", 1, "k", b"" + value_of(w, 8))
    get.gives(8)


def waiting_is_bounded_and_stores_nothing(w: World) -> None:
    w.redis("SET", "k", FOREIGN, "PX", 60000)
    begun = time.monotonic()
    get = w.get("k").loads()
    assert 0.3 < time.monotonic() - begun < 5, "`wait` is 0.4 s"
    get.answer(9).gives(9)
    assert w.redis("GET", "k") == FOREIGN


def a_waiter_takes_over_from_a_dead_reader(w: World) -> None:
    w.redis("SET", "k", FOREIGN, "PX", 100)
    w.get("k").loads().answer(10).gives(10)
    w.wait_for("k")


def a_failed_load_is_the_callers_and_leaves_no_lease(w: World) -> None:
    failed = w.get("k").loads().fail().event()
    assert failed and failed["event"] == "failed", f"an error was due, not {failed}"
    if not w.driver:
        assert w.redis("GET", "k") is None, "the lease is given up"
        w.get("k").loads().answer(1).gives(1)


def nothing_is_cached_as_well(w: World) -> None:
    w.get("k").loads().answer(None).gives(None)
    w.wait_for("k")
    w.get("k").gives(None)


def a_value_that_is_being_loaded_anew_is_served(w: World) -> None:
    w.redis("SET", "k", FOREIGN + b"=" + value_of(w, 11), "PX", 9000)
    before = w.redis("GET", "k")
    w.get("k").gives(11)
    assert w.redis("GET", "k") == before


def an_early_load_is_fenced_too(w: World) -> None:
    client = Client(w.command, w.server, early=6)
    try:
        slow = client.get("k").loads()
        time.sleep(0.3)  # so that it is known how long a load takes
        slow.answer("old").gives("old")
        w.wait_for("k")
        early = loading_early(w, client, "old")
        assert LEASE.match(w.redis("GET", "k")[:46]), "the value is carried by a lease"
        client.get("k").gives("old")
        w.redis("UNLINK", "k")
        early.answer("old").gives("old")
        assert w.redis("GET", "k") is None, "a delete refuses the early fill"
        client.get("k").loads().answer("new").gives("new")
        w.wait_for("k")
        loading_early(w, client, "new").answer("newer").gives("newer")
        deadline = time.monotonic() + 2
        while (w.redis("GET", "k") or b"").startswith(b"unstale:lease:"):
            assert time.monotonic() < deadline
        client.get("k").gives("newer")
    finally:
        client.close()


def loading_early(w: World, client: Client, value: object) -> Get:
    """Reads until one of many readers is sent to the database although a value is there, which expires soon."""
    w.redis("PEXPIRE", "k", 1500)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        early = None
        for get in [client.get("k") for _ in range(20)]:
            event = get.event()
            if event["event"] == "load":
                assert early is None, "one reader loads early"
                raw, early = w.redis("GET", "k"), get
                assert raw and len(raw) > 46, f"it loads before the value expires, not after: {raw}"
            else:
                assert event["value"] == value
        if early:
            return early
        time.sleep(0.002)
    raise AssertionError("nobody loads before the value expires")


def without_redis_reads_go_to_the_database(w: World) -> None:
    w.server.kill()
    w.get("k").loads().answer(12).gives(12)
    w.server.start()
    w.redis = w.server.connect()
    deadline = time.monotonic() + PATIENCE
    while w.stored("k") is None:
        assert time.monotonic() < deadline, "it never came back to Redis"
        w.read_again("k", 13)
        time.sleep(0.05)


def value_of(w: World, value: object) -> bytes:
    """The bytes under which the client stores a value."""
    w.get("sample").loads().answer(value).gives(value)
    raw = w.wait_for("sample")
    w.redis("UNLINK", "sample")
    return raw


SCENARIOS = [thing for thing in list(globals().values()) if getattr(thing, "__annotations__", None) == {"w": World, "return": None}]


def main() -> int:
    words = argparse.ArgumentParser(usage=__doc__)
    words.add_argument("--server")
    words.add_argument("--cluster", action="store_true")
    words.add_argument("--driver", action="store_true")
    words.add_argument("--only", help="scenarios whose name has this in it")
    words.add_argument("--quiet", action="store_true", help="print what failed")
    words.add_argument("command", nargs="+")
    asked = words.parse_args()
    server = Cluster(asked.server) if asked.cluster else Server(asked.server)
    failures = tried = 0
    world = None
    try:
        world = World(server, asked.command, asked.driver)
        for scenario in SCENARIOS:
            if asked.only and asked.only not in scenario.__name__:
                continue
            tried += 1
            world.redis("FLUSHALL")
            try:
                scenario(world)
                if not asked.quiet:
                    print("ok    ", scenario.__name__)
            except (AssertionError, OSError) as error:
                failures += 1
                print("FAILED", scenario.__name__, "-", error)
                world.client.close()
                world.client = Client(asked.command, server)
    finally:
        if world:
            world.client.close()
        server.close()
    print(" ".join(asked.command), "-", f"{failures} failed" if failures else f"all {tried} hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
