"""Readers in Python, for clients/race: `race.py KIND MODE`. Rows come from PostgreSQL, with pauses that make races likely."""

import asyncio
import json
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parent.parent / "conformance"):
    sys.path.insert(0, str(folder))

import asyncpg
import psycopg
import redis
import redis.asyncio

import unstale
import unstale.aio

DATABASE, REDIS = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
TASKS, KEYS = int(os.environ.get("RACE_TASKS", 8)), int(os.environ.get("RACE_KEYS", 50))
TTL = float(os.environ.get("RACE_TTL", 3600))
CLUSTER = "RACE_CLUSTER" in os.environ
SQL = "select version from items where id = %s"
LEASE_SECONDS = 5


class Plain:
    """Cache-aside as everybody writes it."""

    def __init__(self, client, ttl):
        self.redis, self.ttl = client, ttl

    def get_or_set(self, key, load):
        found = self.redis.get(key)
        if found is not None:
            return json.loads(found)
        value = load()
        self.redis.set(key, json.dumps(value), ex=max(1, int(self.ttl)))
        return value


class AsyncPlain(Plain):
    async def get_or_set(self, key, load):
        found = await self.redis.get(key)
        if found is not None:
            return json.loads(found)
        value = await load()
        await self.redis.set(key, json.dumps(value), ex=max(1, int(self.ttl)))
        return value


def opened(kind: str, early: float = 1):
    """The cache of a kind, and whether it is of asyncio."""
    is_async = kind.endswith("aio")
    if is_async:
        # The usual pool refuses the 101st connection, which sends that read to the database.
        pool = redis.asyncio.BlockingConnectionPool.from_url(REDIS, max_connections=20, timeout=None, socket_timeout=2)
        client = redis.asyncio.RedisCluster.from_url(REDIS, socket_timeout=2) if CLUSTER else redis.asyncio.Redis(connection_pool=pool)
    else:
        client = (redis.RedisCluster if CLUSTER else redis.Redis).from_url(REDIS, socket_timeout=2)
    if kind in ("plain", "plain-aio"):
        return (AsyncPlain if is_async else Plain)(client, TTL), is_async
    if kind == "client":
        return unstale.Cache(client, TTL, LEASE_SECONDS, early=early, wait=4), False
    if kind == "client-aio":
        return unstale.aio.Cache(client, TTL, LEASE_SECONDS, early=early, wait=4), True
    if kind.startswith("django"):
        import conform_django

        words = {"redis": REDIS, "lease": LEASE_SECONDS, "wait": 1, "early": early, "ttl": TTL}
        backend = "django.core.cache.backends.redis.RedisCache" if "plain" in kind else "unstale.django.Cache"
        reads = conform_django.AsyncReads if is_async else conform_django.Reads
        return conform_django.opener(reads, backend)(words), is_async
    import broken

    return broken.FLAWS[kind](client, TTL, LEASE_SECONDS), False


def pause() -> float:
    return random.uniform(0, 0.02) if random.random() < 0.9 else random.uniform(0, 0.2)


class Log:
    """One line for each read: when it began, by the wall clock, the key and the version that it got."""

    def __init__(self):
        self.file = open(f"{os.environ['RACE_LOG']}.{os.getpid()}", "w", buffering=1 << 11)

        self.lock = threading.Lock()  # text files are not for several threads

    def __call__(self, begun, number, version):
        with self.lock:
            self.file.write(f"{begun} {number} {version}\n")


def race_threads(cache) -> None:
    log = Log()

    def read() -> None:
        database = psycopg.connect(DATABASE, autocommit=True)

        def load(number):
            version = database.execute(SQL, (number,)).fetchone()[0]
            time.sleep(pause())
            return {"id": number, "version": version, "text": "x" * 100}

        while True:
            number = random.randrange(KEYS)
            begun = time.time_ns()
            try:
                value = cache.get_or_set(f"item:{number}", lambda: load(number))
            except (redis.RedisError, OSError):  # of plain readers
                time.sleep(0.01)
                continue
            log(begun, number, value["version"])

    for _ in range(TASKS):
        threading.Thread(target=read, daemon=True).start()
    threading.Event().wait()


async def race_tasks(cache) -> None:
    log = Log()

    async def read() -> None:
        database = await asyncpg.connect(DATABASE)

        async def load(number):
            version = await database.fetchval(SQL.replace("%s", "$1"), number)
            await asyncio.sleep(pause())
            return {"id": number, "version": version, "text": "x" * 100}

        while True:
            number = random.randrange(KEYS)
            begun = time.time_ns()
            try:
                value = await cache.get_or_set(f"item:{number}", lambda: load(number))
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.01)
                continue
            log(begun, number, value["version"])

    await asyncio.gather(*(read() for _ in range(TASKS)))


def report(**words) -> None:
    print(json.dumps(words), flush=True)


async def cold_tasks(cache) -> None:
    """One key that is not there, wanted by all at once."""
    loads = 0

    async def load():
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.1)
        return {"id": 1}

    await asyncio.sleep(max(0, float(os.environ["RACE_START"]) - time.time()))
    await asyncio.gather(*(cache.get_or_set("cold", load) for _ in range(TASKS)))
    report(loads=loads)


def cold_threads(cache) -> None:
    loads = []

    def load():
        loads.append(1)
        time.sleep(0.1)
        return {"id": 1}

    def read():
        time.sleep(max(0, float(os.environ["RACE_START"]) - time.time()))
        cache.get_or_set("cold", load)

    threads = [threading.Thread(target=read) for _ in range(TASKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report(loads=len(loads))


async def hot_tasks(cache) -> None:
    """One key that expires every second, and is read all the time."""
    loads, took = [], []
    end = time.monotonic() + float(os.environ["RACE_SECONDS"])

    async def load():
        loads.append(time.monotonic())
        await asyncio.sleep(0.02)
        return {"id": 1}

    async def read():
        await asyncio.sleep(random.random())
        while time.monotonic() < end:
            begun = time.perf_counter()
            await cache.get_or_set("hot", load)
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(random.uniform(0.1, 0.3))

    # The first reads open the pool's connections, which takes as long as ten reads.
    await asyncio.gather(*(cache.get_or_set("hot", load) for _ in range(TASKS)))
    loads.clear()
    await asyncio.gather(*(read() for _ in range(TASKS)))
    took.sort()
    report(reads=len(took), loads=len(loads), p50_ms=took[len(took) // 2] * 1e3, p99_ms=took[len(took) * 99 // 100] * 1e3)


def bench(kinds) -> None:
    """Hits and misses a second of one thread or task, beside the plain client, in alternating rounds."""
    rounds = {kind: ([], []) for kind in kinds}
    caches = {kind: opened(kind, early=1) for kind in kinds}

    async def tasks(cache, count, miss):
        async def load():
            return {"id": 1, "text": "x" * 100}

        for i in range(count):
            await cache.get_or_set(f"bench:{i}:{miss}" if miss else "bench", load)

    def threads(cache, count, miss):
        for i in range(count):
            cache.get_or_set(f"bench:{i}:{miss}" if miss else "bench", lambda: {"id": 1, "text": "x" * 100})

    with asyncio.Runner() as runner:
        for turn in range(8):
            for kind in kinds:
                cache, is_async = caches[kind]
                for column, count, miss in ((0, 3000, None), (1, 800, random.random())):
                    begun = time.perf_counter()
                    if is_async:
                        runner.run(tasks(cache, count, miss))
                    else:
                        threads(cache, count, miss)
                    if turn:
                        rounds[kind][column].append((time.perf_counter() - begun) / count * 1e6)
    for kind, (hits, misses) in rounds.items():
        report(kind=kind, hit_us=round(statistics.median(hits), 1), miss_us=round(statistics.median(misses), 1))


def main() -> None:
    kind, mode = sys.argv[1:3]
    if mode == "bench":
        return bench(kind.split(","))
    cache, is_async = opened(kind)
    if is_async:
        asyncio.run({"race": race_tasks, "cold": cold_tasks, "hot": hot_tasks}[mode](cache))
    else:
        {"race": race_threads, "cold": cold_threads}[mode](cache)


main()
