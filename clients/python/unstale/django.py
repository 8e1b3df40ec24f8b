"""A cache backend for Django that cannot put stale data back, for applications that keep their reads as they are:

    CACHES = {"default": {"BACKEND": "unstale.django.Cache", "LOCATION": "redis://...", "OPTIONS": {"lease": 5, "wait": 0.2}}}

A `get` that finds nothing takes a lease, which is remembered for the thread or task and the key; the `set` or `add` that follows
is a fill, and is refused if the key was deleted in between. A `set` that no miss came before is written as it is, or refused
with `"strict": True`. Keys, versions, prefixes and values are Django's own.
"""

import asyncio
import contextvars
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Mapping

import redis.asyncio
from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache, RedisCacheClient

import unstale
import unstale.aio

from .protocol import FAILURES, FILL, LENGTH, Counters, Protocol, Steps, Step, is_lease

# A miss that no `set` followed is forgotten after this long, or at the request's end. Until then a late `set` is refused.
REMEMBERED_SECONDS = 60
FOR_EVER_SECONDS = 10 * 365 * 86400

_MISSING = object()


@dataclass(eq=False)
class Miss:
    name: tuple[str, str]
    at: float
    lease: bytes | None  # None: somebody else loads, or Redis failed, so nothing may be stored
    early: bool = False


# Never changed in place: a task that another one started sees its own misses and those of before.
_misses: contextvars.ContextVar[Mapping[Any, Miss]] = contextvars.ContextVar("unstale_misses", default={})


class Outstanding:
    """All misses of this process that no `set` followed yet, oldest first: for a `set` whose context has not seen its miss, as
    after `asyncio.gather(cache.aget(a), cache.aget(b))`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[Any, list[Miss]] = {}
        self._all: dict[Miss, None] = {}

    def add(self, miss: Miss) -> None:
        with self._lock:
            self._all[miss] = None
            self._by_name.setdefault(miss.name, []).append(miss)
            while (oldest := next(iter(self._all))).at < miss.at - REMEMBERED_SECONDS:
                self._forget(oldest)

    def take(self, miss: Miss) -> bool:
        with self._lock:
            return self._forget(miss)

    def take_any(self, name: Any) -> Miss | None:
        """The only one; of several, one that may not store: nobody knows whose `set` it is."""
        with self._lock:
            misses = self._by_name.get(name)
            if not misses:
                return None
            if len(misses) > 1:
                for miss in misses:
                    miss.lease = None
            oldest = misses[0]
            self._forget(oldest)
            return oldest

    def _forget(self, miss: Miss) -> bool:
        if miss not in self._all:
            return False
        del self._all[miss]
        same = self._by_name[miss.name]
        same.remove(miss)
        if not same:
            del self._by_name[miss.name]
        return True


_outstanding = Outstanding()

_of_loops: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


class LeasedClient(RedisCacheClient):
    counters = Counters()
    unleased = 0  # values written by `set` without a miss before

    def __init__(self, servers, *, lease=5, wait=0.2, early=1, jitter=0, strict=False, **options):
        super().__init__(servers, **options)
        self._settings = {"lease": lease, "wait": wait, "early": early, "jitter": jitter}
        self._strict = strict
        self._identity = (servers[0], repr(sorted(self._settings.items())))
        client = self.get_client(write=True)  # leases are on the primary, and so are the reads
        self._here = self._counting(unstale.Cache(client, **self._settings))

    def _counting(self, cache: Protocol) -> Any:
        cache.counters = self.counters
        return cache

    def _in_loop(self) -> unstale.aio.Cache:
        """The connections of an event loop outlive Django's backend, which is made anew for each request."""
        caches = _of_loops.setdefault(asyncio.get_running_loop(), {})
        if self._identity not in caches:
            client = redis.asyncio.Redis.from_url(self._servers[0])
            caches[self._identity] = self._counting(unstale.aio.Cache(client, **self._settings))
        return caches[self._identity]

    # --- Misses of this task. ---

    def _remember(self, key: str, lease: bytes | None, early: bool = False) -> None:
        now = time.monotonic()
        miss = Miss((self._servers[0], key), now, lease, early)
        kept = {name: old for name, old in _misses.get().items() if now - old.at < REMEMBERED_SECONDS}
        if miss.name in kept:
            _outstanding.take(kept[miss.name])
        _misses.set({**kept, miss.name: miss})
        _outstanding.add(miss)

    def _recall(self, key: str, adding: bool = False) -> Miss | None:
        """The miss that a `set` answers."""
        misses = dict(_misses.get())
        miss = misses.pop((self._servers[0], key), None)
        if miss:
            _misses.set(misses)
            if not _outstanding.take(miss):  # another task's `set` has answered it
                miss.lease = None
        else:
            miss = _outstanding.take_any((self._servers[0], key))
        if miss is None and not adding:
            if self._strict:
                return Miss(("", key), 0, None)
            LeasedClient.unleased += 1
        return miss

    def give_up(self) -> None:
        """At the end of a request: nobody has to wait for what it did not store."""
        misses = _misses.get()
        for name, miss in misses.items():
            if name[0] == self._servers[0] and _outstanding.take(miss) and miss.lease:
                self._here._carry_out(self._here.give_up(name[1], miss.lease), None)
        if misses:
            _misses.set({})

    # --- Steps, for threads and for asyncio. ---

    def _seek(self, cache: Protocol, key: str) -> Steps:
        try:
            early, lease, found = yield from cache.find(key)
        except FAILURES:
            self.counters.errors += 1
            early, lease, found = False, None, None
        if found is None:
            self._remember(key, lease, early)
            return _MISSING
        return self._serializer.loads(found)

    def _fill(self, cache: Protocol, key: str, miss: Miss, value: Any, timeout: int | None) -> Steps:
        """Whether it was stored. A refused fill is no error: what is there now is newer."""
        if miss.lease is None:
            self.counters.refused += 1
            return False
        cache.took(time.monotonic() - miss.at)
        payload = self._payload(value)
        try:
            if timeout == 0:
                yield Step("redis", lambda r: r.delete(key))
                return True
            seconds = FOR_EVER_SECONDS if timeout is None else timeout
            stored = yield from cache.fill(key, miss.lease, payload, seconds, miss.early)
        except FAILURES:
            self.counters.errors += 1
            return False
        if stored:
            self.counters.fills += 1
        else:
            self.counters.refused += 1
        return stored

    def _payload(self, value: Any) -> bytes:
        payload = self._serializer.dumps(value)
        return payload if isinstance(payload, bytes) else str(payload).encode()

    def _is_there(self, key: str) -> bool:
        raw = self.get_client(key, write=True).get(key)
        return raw is not None and (not is_lease(raw) or len(raw) > LENGTH)

    # --- What Django calls. ---

    def get(self, key, default):
        found = self._here._carry_out(self._seek(self._here, key), None)
        return default if found is _MISSING else found

    async def aget(self, key, default):
        cache = self._in_loop()
        found = await cache._carry_out(self._seek(cache, key), None)
        return default if found is _MISSING else found

    def set(self, key, value, timeout):
        if miss := self._recall(key):
            self._here._carry_out(self._fill(self._here, key, miss, value, timeout), None)
        else:
            super().set(key, value, timeout)

    def add(self, key, value, timeout):
        miss = self._recall(key, adding=True)
        if miss is None:
            return super().add(key, value, timeout)
        return self._here._carry_out(self._fill(self._here, key, miss, value, timeout), None)

    async def aset(self, key, value, timeout, add=False):
        """None if no miss came before."""
        if miss := self._recall(key, adding=add):
            cache = self._in_loop()
            return await cache._carry_out(self._fill(cache, key, miss, value, timeout), None)
        return None

    def get_many(self, keys):
        """Waits for nobody: what others are loading is missing, and is not stored."""
        keys = list(keys)
        client = self.get_client(None, write=True)
        found = {}
        for key, raw in zip(keys, client.mget(keys) if keys else ()):
            if raw is None:
                lease = self._here.new_lease()
                raw = self._here._carry_out(self._here.take(key, lease), None)
                if raw is None:
                    self.counters.misses += 1
                    self._remember(key, lease)
                    continue
            if not is_lease(raw) or len(raw) > LENGTH:
                self.counters.hits += 1
                found[key] = self._serializer.loads(raw[LENGTH + 1 :] if is_lease(raw) else raw)
            else:
                self._remember(key, None)
        return found

    def set_many(self, data, timeout):
        for key, value in data.items():
            self.set(key, value, timeout)

    def has_key(self, key):
        return self._is_there(key)

    def touch(self, key, timeout):
        return self._is_there(key) and super().touch(key, timeout)

    def incr(self, key, delta):
        if not self._is_there(key):
            raise ValueError("Key '%s' not found." % key)
        return super().incr(key, delta)


class Cache(RedisCache):
    """Django's own, with leases."""

    def __init__(self, server, params):
        super().__init__(server, params)
        self._class = LeasedClient

    @property
    def counters(self) -> Counters:
        """Of all threads and tasks of this process."""
        return LeasedClient.counters

    async def aget(self, key, default=None, version=None):
        return await self._cache.aget(self.make_and_validate_key(key, version=version), default)

    async def aset(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        name = self.make_and_validate_key(key, version=version)
        if await self._cache.aset(name, value, self.get_backend_timeout(timeout)) is None:
            await sync_to_async(self._plain_set)(name, value, timeout)

    async def aadd(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        name = self.make_and_validate_key(key, version=version)
        stored = await self._cache.aset(name, value, self.get_backend_timeout(timeout), add=True)
        return await sync_to_async(self.add)(key, value, timeout, version) if stored is None else stored

    def _plain_set(self, name, value, timeout):
        RedisCacheClient.set(self._cache, name, value, self.get_backend_timeout(timeout))

    async def ahas_key(self, key, version=None):
        return await sync_to_async(self.has_key)(key, version)

    async def aincr(self, key, delta=1, version=None):
        return await sync_to_async(self.incr)(key, delta, version)

    def close(self, **kwargs):
        self._cache.give_up()
