"""The race: readers, writers and the listener on real servers, and no reader is left with an old row.

    race.py race KIND ... [--seconds 60] [--reads 500000] [--kill] [--cluster]
                                                                      stale reads and stale keys, for each kind
    race.py compare [KIND ...] [--seconds 60]                         plain readers, the second delete, leases: stale keys and database reads
    race.py standby [KIND ...] [--seconds 30]                         readers that read a standby two seconds behind, without and with replicas.urls
    race.py cold KIND ...                                             one cold key wanted by 500 readers in five processes at once
    race.py hot KIND ... [--seconds 20] [--ttl 1]                     one key that expires every second, under 200 readers
    race.py tracking                                                  a client that Redis tracks hears the listener's delete
    race.py bench                                                     hits and misses beside the plain clients, in one run

Kinds: see READERS. A read is stale if it gives a version that was overtaken by a commit whose delete was over when the read began. Which
deletes are over is known from a canary: a row that is changed after the commit, and whose key is seen to go. A key is stale if its cached value is
not the row's when all is quiet. `--kill` kills Redis (of a cluster, a primary), the listener and readers with SIGKILL on the way. Exit code 1 if a kind that has leases failed.
"""

import argparse
import bisect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "conformance"))

from redis_server import Cluster, Refused, Server, free_port

import psycopg

KEYS, READERS_AT_ONCE, WRITERS = 50, 16, 3
# The keys that are written change every so often: a stale value of a key that rests is seen for long.
EPOCH_SECONDS, GROUPS = 4, 5
# The canary is announced while another change is found in the log a moment later, and on a busy machine that is long; after a kill
# catching up deletes in no order. A value that was put back stays for many seconds.
MARGIN_SECONDS, AFTER_KILL_SECONDS, MARGIN_AFTER_KILL_SECONDS = 1.0, 10.0, 3.0

PYTHON = [sys.executable, str(HERE.parent / "python/programs/race.py")]
NODE = ["node", str(HERE.parent / "node/programs/race.js")]
RUST = [str(HERE.parent / "rust/target/release/examples/race")]
# Command, kind as the program knows it, processes, whether it promises anything.
READERS = {
    "python-plain": (PYTHON, "plain", 4, False),
    "python": (PYTHON, "client", 4, True),
    "python-aio-plain": (PYTHON, "plain-aio", 2, False),
    "python-aio": (PYTHON, "client-aio", 2, True),
    "django-plain": (PYTHON, "django-plain", 4, False),
    "django": (PYTHON, "django", 4, True),
    "django-aio": (PYTHON, "django-aio", 2, True),
    "node-plain": (NODE, "plain-ioredis", 2, False),
    "node": (NODE, "ioredis", 2, True),
    "node-redis": (NODE, "node-redis", 2, True),
    "keyv": (NODE, "keyv-ioredis", 2, True),
    "cache-manager": (NODE, "cache-manager-ioredis", 2, True),
    "rust-plain": (RUST, "plain", 2, False),
    "rust": (RUST, "client", 2, True),
    "rails": (["ruby", str(HERE.parent / "rails/programs/race.rb")], "client", 4, True),
    "rails-plain": (["ruby", str(HERE.parent / "rails/programs/race.rb")], "plain", 4, False),
    # Broken on purpose.
    "one-token": (PYTHON, "one-token", 2, False),
    "blind-fill": (PYTHON, "blind-fill", 2, False),
    "old-snapshot": (PYTHON, "old-snapshot", 2, False),
}


class Postgres:
    """A cluster of our own, on loopback, which forgets everything; or a standby of another, held back."""

    def __init__(self, primary: "Postgres | None" = None, behind_seconds: float = 0) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        self.programs = Path(os.environ.get("PG_BIN_DIR") or (found[-1].parent if found else Path(shutil.which("initdb") or "").parent))
        self.folder = tempfile.mkdtemp(prefix="unstale-pg-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.port = free_port()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        self.user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        if primary:
            to_copy = ("--checkpoint=fast", "--write-recovery-conf", "--no-sync")
            self._run("pg_basebackup", "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "--pgdata", self.folder, *to_copy)
        else:
            self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--pgdata", self.folder)
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories= -c fsync=off -c max_connections=200"
        options += f" -c recovery_min_apply_delay={behind_seconds}s"
        self._run("pg_ctl", "start", "--wait", "--pgdata", self.folder, "--log", f"{self.folder}/log", "--options", options)

    def _run(self, program: str, *words: str) -> None:
        subprocess.run([self.programs / program, *words], check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user)

    def close(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate", "--pgdata", self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


class Stage:
    """The servers, the listener, and who is to be ended."""

    def __init__(self, asked) -> None:
        self.postgres = Postgres()
        self.redis = (Cluster if asked.cluster else Server)(asked.server, "--appendonly", "yes")
        self.environment = {**os.environ, "DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url, "UNSTALE_LOG__FILTER": "error"}
        # What the readers have instead: their libraries do not know a cluster by its URL.
        self.readers_environment = {"RACE_CLUSTER": "yes"} if asked.cluster else {}
        if asked.cluster:
            self.environment["REDIS_URL"] = self.redis.url.replace("redis://", "redis-cluster://").removesuffix("/0")
            self.readers_environment["REDIS_URL"] = self.redis.url
        # Leases must do without the second delete.
        self.environment["UNSTALE_REPEAT__AFTER"] = asked.repeat
        self.standby: Postgres | None = None
        self.unstale = asked.unstale
        self.listener: subprocess.Popen | None = None
        self.kills: list[float] = []
        with psycopg.connect(self.postgres.url, autocommit=True) as database:
            database.execute(
                "create table items (id int primary key, version int not null default 1, updated_at timestamptz not null default now())"
            )
            database.execute("insert into items (id) select generate_series(0, %s)", (KEYS,))
            subprocess.run([self.unstale, "migrate"], env=self.environment, check=True, stdout=subprocess.DEVNULL)
            database.execute("select unstale.watch('public.items', keys => array['item:{id}'])")

    def listen(self) -> None:
        self.listener = subprocess.Popen([self.unstale, "run"], env=self.environment, stderr=subprocess.DEVNULL)

    def listen_again(self, **environment: str) -> None:
        """With other settings."""
        self.listener.kill()
        self.listener.wait()
        self.environment |= environment
        self.listen()
        time.sleep(2)

    def loads(self) -> int:
        """Reads of rows where the readers read, the writers' included."""
        time.sleep(2)  # until the sessions that are idle have told their figures
        with psycopg.connect((self.standby or self.postgres).url, autocommit=True) as database:
            return database.execute("select idx_scan + seq_scan from pg_stat_user_tables where relname = 'items'").fetchone()[0]

    def close(self) -> None:
        if self.listener:
            self.listener.kill()
            self.listener.wait()
        if self.standby:
            self.standby.close()
        self.redis.close()
        self.postgres.close()


class Writers:
    """Each raises the version of one of the keys that are written just now, pauses, and notes when the commit was answered."""

    def __init__(self, stage: Stage) -> None:
        self.commits: dict[int, list[tuple[int, int]]] = {number: [(1, 0)] for number in range(KEYS)}
        self.stop = threading.Event()
        # When a key was seen to be gone, and when its row's change began.
        self.canaries: list[tuple[float, float]] = [(0.0, 0.0)]
        self.threads = [threading.Thread(target=self._write, args=(stage,)) for _ in range(WRITERS)]
        self.threads.append(threading.Thread(target=self._sing, args=(stage,)))
        for thread in self.threads:
            thread.start()

    def _write(self, stage: Stage) -> None:
        sql = "update items set version = version + 1, updated_at = clock_timestamp() where id = %s returning version"
        with psycopg.connect(stage.postgres.url, autocommit=True) as database:
            while not self.stop.is_set():
                group = int(time.time() / EPOCH_SECONDS) % GROUPS
                number = random.randrange(KEYS // GROUPS) * GROUPS + group
                version = database.execute(sql, (number,)).fetchone()[0]
                self.commits[number].append((version, time.time_ns()))
                time.sleep(random.choice((0, 0.005, 0.01, 0.05)))

    def _sing(self, stage: Stage) -> None:
        with psycopg.connect(stage.postgres.url, autocommit=True) as database:
            while not self.stop.is_set():
                try:
                    redis = stage.redis.connect()
                    redis("SET", f"item:{KEYS}", "canary")
                    begun = time.time()
                    database.execute("update items set updated_at = clock_timestamp() where id = %s", (KEYS,))
                    while redis("EXISTS", f"item:{KEYS}") and not self.stop.is_set():
                        time.sleep(0.005)
                    if not self.stop.is_set():
                        self.canaries.append((time.time(), begun))
                except (OSError, Refused):
                    pass  # Redis was killed
                time.sleep(0.05)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        for commits in self.commits.values():
            commits.sort()


def start_readers(stage: Stage, kind: str, mode: str, processes: int, **environment: object) -> list[subprocess.Popen]:
    command, name, _, _ = READERS[kind]
    database = {"DATABASE_URL": stage.standby.url} if stage.standby else {}
    environment = {**stage.environment, **stage.readers_environment, **database, **{word: str(value) for word, value in environment.items()}}
    return [subprocess.Popen([*command, name, mode], env=environment, stdout=subprocess.PIPE) for _ in range(processes)]


def count_reads(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).iterdir()) // 25  # bytes of a line, about


def kill_things(stage: Stage, kind: str, readers: list, folder: str, until: threading.Event) -> None:
    """Redis, the listener, and a reader, again and again."""
    _, _, processes, _ = READERS[kind]
    turn = 0
    while not until.wait(15):
        victim = turn % 3
        turn += 1
        if victim == 0:
            node = random.choice(stage.redis.nodes)
            node.kill()
            time.sleep(0.3)
            node.start()
        elif victim == 1:
            stage.listener.kill()
            stage.listener.wait()
            time.sleep(0.3)
            stage.listen()
        else:
            reader = readers.pop(0)
            reader.kill()
            reader.wait()
            readers += start_readers(
                stage, kind, "race", 1, RACE_LOG=f"{folder}/reads", RACE_TASKS=READERS_AT_ONCE // processes, RACE_KEYS=KEYS
            )
        stage.kills.append(time.time())


def judge(folder: str, commits: dict, canaries: list[tuple[float, float]], kills: list[float]) -> tuple[int, int, float]:
    """Reads, stale reads, and the age of the oldest."""
    times = {number: [at for _, at in of_key] for number, of_key in commits.items()}
    reads = stale = 0
    oldest = 0.0
    for path in Path(folder).iterdir():
        for line in path.read_text().splitlines():
            words = line.split(" ")
            if len(words) != 3 or not all(word.isdigit() for word in words):
                continue  # cut off by a kill
            begun, number, version = int(words[0]), int(words[1]), int(words[2])
            reads += 1
            near = any(0 <= begun / 1e9 - at < AFTER_KILL_SECONDS for at in kills)
            before = begun / 1e9 - (MARGIN_AFTER_KILL_SECONDS if near else MARGIN_SECONDS)
            deleted = canaries[max(0, bisect.bisect_right(canaries, (before, 0.0)) - 1)][1]
            due = max(0, bisect.bisect_right(times[number], int(deleted * 1e9)) - 1)
            if version < commits[number][due][0]:
                stale += 1
                overtaken = next(at for later, at in commits[number] if later > version)
                oldest = max(oldest, (begun - overtaken) / 1e9)
    return reads, stale, oldest


def race(stage: Stage, kind: str, asked) -> dict:
    _, _, processes, _ = READERS[kind]
    folder = tempfile.mkdtemp(prefix="unstale-race-")
    with psycopg.connect(stage.postgres.url, autocommit=True) as database:
        database.execute("update items set version = 1, updated_at = clock_timestamp()")
    time.sleep(1 + 2 * asked.behind)
    stage.redis.connect()("FLUSHALL")
    stage.kills.clear()
    loads = stage.loads()
    writers = Writers(stage)
    tasks = READERS_AT_ONCE // processes
    readers = start_readers(stage, kind, "race", processes, RACE_LOG=f"{folder}/reads", RACE_TASKS=tasks, RACE_KEYS=KEYS)
    over = threading.Event()
    killer = threading.Thread(target=kill_things, args=(stage, kind, readers, folder, over))
    if asked.kill:
        killer.start()
    begun = time.monotonic()
    try:
        while (took := time.monotonic() - begun) < asked.seconds or (count_reads(folder) < asked.reads and took < asked.at_most):
            time.sleep(0.5)
            if asked.until_stale and judge(folder, {number: sorted(of_key) for number, of_key in list(writers.commits.items())}, list(writers.canaries), [])[1]:
                break
            assert all(reader.poll() is None for reader in readers), f"a reader of {kind} ended"
    finally:
        over.set()
        if asked.kill:
            killer.join()
        writers.end()
    time.sleep((5 if asked.kill else 3) + 2 * asked.behind)  # fills that are under way, and deletes
    loads = stage.loads() - loads
    for reader in readers:
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    stale_keys = 0
    redis = stage.redis.connect()
    for number, commits in writers.commits.items():
        raw = redis("GET", f"item:{number}")
        raw = raw[47:] if raw and raw.startswith(b"unstale:lease:") else raw
        if raw and f'"version": {commits[-1][0]}'.encode() not in raw.replace(b'":', b'": ').replace(b":  ", b": "):
            # A value of Django's is pickled.
            if not (raw[:1] == b"\x80" and version_in_pickle(raw) == commits[-1][0]) and marshalled(raw) != commits[-1][0]:
                stale_keys += 1
    reads, stale, oldest = judge(folder, writers.commits, writers.canaries, list(stage.kills))
    shutil.rmtree(folder)
    seconds = round(time.monotonic() - begun)
    writes = sum(len(of_key) for of_key in writers.commits.values()) - KEYS
    if not stage.standby:
        loads -= writes + len(writers.canaries)  # each update reads its row
    return {
        "kind": kind, "reads": reads, "stale_reads": stale, "oldest_s": round(oldest, 1), "stale_keys": stale_keys, "of_keys": KEYS,
        "writes": writes, "kills": len(stage.kills), "canaries": len(writers.canaries), "seconds": seconds, "loads": loads,
    }


def compare(stage: Stage, kinds: list[str], asked) -> None:
    """The same race without help, with the second delete, and with leases."""
    for kind in kinds:
        for after in ("", "1s"):
            stage.listen_again(UNSTALE_REPEAT__AFTER=after)
            print(json.dumps({"repeat.after": after, **race(stage, f"{kind}-plain", asked)}), flush=True)
        stage.listen_again(UNSTALE_REPEAT__AFTER="")
        print(json.dumps({"repeat.after": "", **race(stage, kind, asked)}), flush=True)


def standby(stage: Stage, kinds: list[str], asked) -> None:
    """Readers that look on a standby after a miss: what is stale once it has caught up."""
    asked.behind = 2
    stage.standby = Postgres(stage.postgres, asked.behind)
    for kind in kinds:
        for kind in (f"{kind}-plain", kind):
            for urls in ("", stage.standby.url):
                stage.listen_again(UNSTALE_REPLICAS__URLS=urls)
                print(json.dumps({"replicas.urls": bool(urls), **race(stage, kind, asked)}), flush=True)


def version_in_pickle(raw: bytes) -> int:
    import pickle

    return pickle.loads(raw)["version"]


def marshalled(raw: bytes) -> int:
    """The version in a value of Rails', as Ruby marshals it."""
    if not raw.startswith(b"\x04\x08"):
        return -1
    at = raw.index(b"Ti", raw.index(b"version")) + 2
    size = raw[at]
    return int.from_bytes(raw[at + 1 : at + 1 + size], "little") if size <= 4 else size - 5


def cold(stage: Stage, kind: str, asked) -> dict:
    stage.redis.connect()("FLUSHALL")
    start = time.time() + 3
    readers = start_readers(stage, kind, "cold", 5, RACE_TASKS=100, RACE_START=start)
    loads = sum(json.loads(reader.communicate()[0])["loads"] for reader in readers)
    return {"kind": kind, "readers": 500, "loads": loads}


def hot(stage: Stage, kind: str, asked) -> dict:
    stage.redis.connect()("FLUSHALL")
    (reader,) = start_readers(stage, kind, "hot", 1, RACE_TASKS=200, RACE_TTL=asked.ttl, RACE_SECONDS=asked.seconds)
    figures = json.loads(reader.communicate()[0])
    return {"kind": kind, "seconds": asked.seconds, **{name: round(value, 2) for name, value in figures.items()}}


def tracking(stage: Stage, _kind: str, asked) -> None:
    """CLIENT TRACKING: what an in-process cache rests on."""
    listening, reading = stage.redis.connect(), stage.redis.connect()
    number = listening("CLIENT", "ID")
    listening("SUBSCRIBE", "__redis__:invalidate")
    reading("CLIENT", "TRACKING", "ON", "REDIRECT", number)
    with psycopg.connect(stage.postgres.url, autocommit=True) as database:
        reading("SET", "item:7", "old")
        reading("GET", "item:7")
        # Also found if the listener is not ready yet.
        database.execute("update items set version = version + 1, updated_at = clock_timestamp() where id = 7")
    message = listening.read()
    print(json.dumps({"kind": "tracking", "invalidated": [key.decode() for key in message[2]]}), flush=True)
    assert message[2] == [b"item:7"]


def bench(stage: Stage, _kind: str, asked) -> None:
    for command, kinds in ((PYTHON, "plain,client,plain-aio,client-aio"), (NODE, "plain-ioredis,ioredis,plain-node-redis,node-redis"), (RUST, "plain,client")):
        if not Path(command[-1]).exists():
            continue  # not built
        stage.redis.connect()("FLUSHALL")
        print(Path(command[-1]).name, flush=True)
        subprocess.run([*command, kinds, "bench"], env=stage.environment, check=True)


def main() -> int:
    words = argparse.ArgumentParser(usage=__doc__)
    words.add_argument("mode", choices=("race", "compare", "standby", "cold", "hot", "tracking", "bench"))
    words.add_argument("--until-stale", action="store_true", help="ends when a stale key is found, and fails if there is none")
    words.add_argument("kinds", nargs="*", default=["python"])
    words.add_argument("--seconds", type=float, default=20)
    words.add_argument("--reads", type=int, default=0)
    words.add_argument("--at-most", type=float, default=240, help="seconds, however few reads there were")
    words.add_argument("--ttl", type=float, default=1, help="seconds that the hot key lives; 3600: what reading alone takes")
    words.add_argument("--repeat", default="", help="the listener's repeat.after")
    words.set_defaults(behind=0)
    words.add_argument("--kill", action="store_true")
    words.add_argument("--cluster", action="store_true")
    words.add_argument("--server")
    words.add_argument("--unstale", default=str(HERE.parent.parent / os.environ.get("CARGO_TARGET_DIR", "target") / "debug/unstale"))
    asked = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers go, too
    stage = Stage(asked)
    failed = False
    try:
        stage.listen()
        if asked.mode in ("compare", "standby"):
            globals()[asked.mode](stage, asked.kinds, asked)
            return 0
        for kind in asked.kinds if asked.mode not in ("bench", "tracking") else [""]:
            figures = globals()[asked.mode](stage, kind, asked)
            if not figures:
                continue
            print(json.dumps(figures), flush=True)
            if asked.until_stale:
                failed |= not figures["stale_keys"] and not figures["stale_reads"]
                continue
            promised = READERS[kind][3]
            failed |= promised and bool(figures.get("stale_reads") or figures.get("stale_keys") or asked.mode in ("cold", "hot") and figures["loads"] > max(1, asked.seconds * 1.2 if asked.mode == "hot" else 1))
    finally:
        stage.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
