"""The protocol of docs/readers.md, once, for threads and for asyncio.

A read is a generator of steps: what to ask Redis, when to sleep, when to load. `Cache` and `aio.Cache` carry the steps out.
No step's failure is ignored: an error of Redis sends the read to the database, and is counted.
"""

import json
import math
import os
import random
import time
from dataclasses import dataclass
from typing import Any, Callable, Generator, NamedTuple

from redis.exceptions import ResponseError

PREFIX = b"unstale:lease:"
LENGTH = len(PREFIX) + 32
"""A lease is this long; one that carries the previous value goes on with `=` and the value."""

LOOK = "return {redis.call('get', KEYS[1]), redis.call('pttl', KEYS[1])}"

TAKE_EARLY = """local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 14) ~= 'unstale:lease:' then
  return redis.call('set', KEYS[1], ARGV[1] .. '=' .. v, 'keepttl')
end"""

FILL = """if redis.call('getrange', KEYS[1], 0, 45) == ARGV[1] then
  return redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
end"""

GIVE_UP = """local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 46) == ARGV[1] then
  if #v == 46 then return redis.call('del', KEYS[1]) end
  return redis.call('set', KEYS[1], string.sub(v, 48), 'keepttl')
end"""

# One hit in so many asks for the key's remaining time along with its value: a hot key has hits enough.
SAMPLE = 16

# How long a load is believed to take before this process has seen one.
FIRST_GUESS_SECONDS = 0.05

# Not only redis-py's own errors: what it raises where a connection breaks under it is also an AttributeError, of its asyncio cluster.
FAILURES = Exception


@dataclass
class Counters:
    hits: int = 0
    misses: int = 0  # nothing was there, and this reader took the lease
    waits: int = 0  # another reader was loading
    timeouts: int = 0  # and did not finish within `wait`: this reader asked the database, and stored nothing
    early: int = 0  # loaded before the value expired
    fills: int = 0
    refused: int = 0  # loaded, but the key was deleted meanwhile, or the lease ran out: nothing was stored
    errors: int = 0  # of Redis, or of decoding: the read went to the database


class Step(NamedTuple):
    kind: str  # redis, load, sleep or join
    what: Any = None


Steps = Generator[Step, Any, Any]


class Fill:
    """A load of this process, that its other readers wait for."""

    def __init__(self, done: Any) -> None:
        self.done = done
        self.payload: bytes | None = None


def is_lease(reply: bytes) -> bool:
    return reply.startswith(PREFIX)


def as_bytes(reply: Any) -> bytes | None:
    """A client made with `decode_responses=True` answers with text."""
    return reply.encode() if isinstance(reply, str) else reply


class Protocol:
    """Everything but how a step is carried out."""

    _event: Callable[[], Any]

    def __init__(
        self,
        redis: Any,
        ttl: float = 3600,
        lease: float = 5,
        encode: Callable[[Any], bytes | str] = json.dumps,
        decode: Callable[[bytes], Any] = json.loads,
        *,
        wait: float = 1,
        jitter: float = 0.1,
        negative_ttl: float | None = None,
        early: float = 1,
    ) -> None:
        """Times are seconds. `lease` bounds a load, `wait` the waiting for another reader's load. A ttl is shortened by up to
        `jitter` of itself. `negative_ttl` is for loads that return None. `early` is XFetch's beta: 0 turns early loads off."""
        self._redis = redis
        self._ttl, self._lease, self._wait = ttl, lease, wait
        self._encode, self._decode = encode, decode
        self._jitter, self._negative_ttl, self._early = jitter, negative_ttl, early
        self._set_nx_get = self._set_ifeq = True  # until the server says that it knows no such thing
        self._fills: dict[bytes, Fill] = {}
        self._load_seconds = FIRST_GUESS_SECONDS
        self.counters = Counters()

    def new_lease(self) -> bytes:
        """Never one for two fills: the first could store what it loaded before a delete under the second's lease."""
        return PREFIX + os.urandom(16).hex().encode()

    def took(self, seconds: float) -> None:
        self._load_seconds += 0.2 * (seconds - self._load_seconds)

    # --- What is asked of Redis. ---

    def take(self, key: Any, lease: bytes) -> Steps:
        """None if the lease is ours now, else what is there. A retry by the client library finds our own."""
        ms = max(1, int(self._lease * 1000))
        if self._set_nx_get:
            try:
                reply = as_bytes((yield Step("redis", lambda r: r.set(key, lease, nx=True, get=True, px=ms))))
                return None if reply == lease else reply
            except ResponseError as error:  # Redis 6.2
                if "syntax" not in str(error).lower():
                    raise
                self._set_nx_get = False
        while True:
            pipeline = lambda r: r.pipeline(transaction=False).set(key, lease, nx=True, px=ms).get(key).execute()
            taken, reply = yield Step("redis", pipeline)
            if taken or as_bytes(reply) == lease:
                return None
            if reply is not None:  # else it was deleted between the two
                return as_bytes(reply)

    def fill(self, key: Any, lease: bytes, payload: bytes, ttl: float, early: bool = False) -> Steps:
        """Whether it was stored: only if the key has held this lease all the time."""
        ms = max(1, int(ttl * (1 - self._jitter * random.random()) * 1000))
        if self._set_ifeq and not early:
            try:
                ask = lambda r: r.execute_command("SET", key, payload, "IFEQ", lease, "PX", ms)
                return bool((yield Step("redis", ask)))
            except ResponseError as error:  # before Redis 8.4, Valkey 8.1
                if "syntax" not in str(error).lower():
                    raise
                self._set_ifeq = False
        return bool((yield Step("redis", lambda r: r.eval(FILL, 1, key, lease, payload, ms))))

    def give_up(self, key: Any, lease: bytes) -> Steps:
        try:
            yield Step("redis", lambda r: r.eval(GIVE_UP, 1, key, lease))
        except FAILURES:
            self.counters.errors += 1  # it expires by itself

    def look(self, key: Any) -> Steps:
        """The value or lease, and the lease of a load that should begin before the value expires."""
        if not self._early or random.random() * SAMPLE >= 1:
            return as_bytes((yield Step("redis", lambda r: r.get(key)))), None
        # A script, because a pipeline of redis-py costs as much as three commands.
        reply, left_ms = yield Step("redis", lambda r: r.eval(LOOK, 1, key))
        reply = as_bytes(reply)
        # XFetch (Vattani et al. 2015), for a reader of which one hit in SAMPLE draws.
        ahead = self._load_seconds * self._early * (math.log(SAMPLE) - math.log(1 - random.random()))
        ahead = min(ahead, self._ttl / 10)  # a load as slow as the ttl is long would never end
        if reply is None or is_lease(reply) or not 0 <= left_ms <= ahead * 1000:
            return reply, None
        lease = self.new_lease()
        try:
            if (yield Step("redis", lambda r: r.eval(TAKE_EARLY, 1, key, lease))):
                return reply, lease
        except FAILURES:
            self.counters.errors += 1
        return reply, None

    # --- A read. ---

    def read(self, key: Any, ttl: float | None) -> Steps:
        try:
            early, lease, found = yield from self.find(key)
        except FAILURES:
            self.counters.errors += 1
            return (yield Step("load"))
        if lease:
            return (yield from self.load_and_fill(key, lease, ttl, early))
        if found is None:
            return (yield Step("load"))
        try:
            return self._decode(found)
        except Exception:
            self.counters.errors += 1
            return (yield Step("load"))

    def find(self, key: Any) -> Steps:
        """(early, lease, value): a lease to fill under, or a value, or neither after waiting for too long."""
        deadline = None
        pause = 0.002
        reply, lease = yield from self.look(key)
        if lease:
            self.counters.early += 1
            return True, lease, None
        while True:
            if reply is None:
                lease = self.new_lease()
                reply = yield from self.take(key, lease)
                if reply is None:
                    self.counters.misses += 1
                    return False, lease, None
            if not is_lease(reply):
                self.counters.hits += 1
                return False, None, reply
            if len(reply) > LENGTH:  # the previous value, which is being loaded anew
                self.counters.hits += 1
                return False, None, reply[LENGTH + 1 :]
            now = time.monotonic()
            if deadline is None:
                self.counters.waits += 1
                deadline = now + self._wait
            if now >= deadline:
                self.counters.timeouts += 1
                return False, None, None
            if fill := self._fills.get(reply):  # this process loads it: no need to ask Redis again and again
                yield Step("join", (fill.done, deadline - now))
                if fill.payload is not None:
                    return False, None, fill.payload
            else:
                yield Step("sleep", min(pause * random.uniform(0.5, 1.5), deadline - now))
                pause = min(pause * 1.5, 0.05)
            reply = as_bytes((yield Step("redis", lambda r: r.get(key))))

    def load_and_fill(self, key: Any, lease: bytes, ttl: float | None, early: bool) -> Steps:
        fill = self._fills[lease] = Fill(self._event())
        try:
            begun = time.monotonic()
            try:
                value = yield Step("load")
                payload = as_bytes(self._encode(value))
            except BaseException:
                yield from self.give_up(key, lease)
                raise
            if is_lease(payload):  # readers would wait for it
                self.counters.refused += 1
                yield from self.give_up(key, lease)
                return value
            self.took(time.monotonic() - begun)
            if ttl is None:
                ttl = self._negative_ttl if value is None and self._negative_ttl is not None else self._ttl
            try:
                stored = yield from self.fill(key, lease, payload, ttl, early)
            except FAILURES:
                self.counters.errors += 1
                return value
            if stored:
                self.counters.fills += 1
                fill.payload = payload
            else:
                self.counters.refused += 1
            return value
        finally:
            del self._fills[lease]
            fill.done.set()
