"""Reads through Redis that cannot put stale data back. The protocol: docs/readers.md."""

import threading
import time
from typing import Any, Callable

from .protocol import Counters, Protocol, Steps

__all__ = ["Cache", "Counters"]


class Cache(Protocol):
    """For threads, over `redis.Redis` or `redis.cluster.RedisCluster`. One for each kind of value, shared by all threads."""

    _event = threading.Event

    def get_or_set(self, key: Any, load: Callable[[], Any], ttl: float | None = None) -> Any:
        """The cached value, or what `load` returns. `load` must read the database after it is called."""
        return self._carry_out(self.read(key, ttl), load)

    def _carry_out(self, steps: Steps, load: Callable[[], Any]) -> Any:
        answer, error = None, None
        try:
            while True:
                kind, what = steps.throw(error) if error else steps.send(answer)
                answer = error = None
                try:
                    if kind == "redis":
                        answer = what(self._redis)
                    elif kind == "load":
                        answer = load()
                    elif kind == "sleep":
                        time.sleep(what)
                    else:
                        what[0].wait(what[1])
                except BaseException as raised:
                    error = raised
        except StopIteration as end:
            return end.value
