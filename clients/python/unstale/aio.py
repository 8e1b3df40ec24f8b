"""The same for asyncio."""

import asyncio
from typing import Any, Awaitable, Callable

from .protocol import Counters, Protocol, Steps

__all__ = ["Cache", "Counters"]


class Cache(Protocol):
    """For one event loop, over `redis.asyncio.Redis` or `redis.asyncio.cluster.RedisCluster`."""

    _event = asyncio.Event

    async def get_or_set(self, key: Any, load: Callable[[], Awaitable[Any]], ttl: float | None = None) -> Any:
        """The cached value, or what `load` returns. `load` must read the database after it is called."""
        return await self._carry_out(self.read(key, ttl), load)

    async def _carry_out(self, steps: Steps, load: Callable[[], Awaitable[Any]]) -> Any:
        answer, error = None, None
        try:
            while True:
                kind, what = steps.throw(error) if error else steps.send(answer)
                answer = error = None
                try:
                    if kind == "redis":
                        answer = await what(self._redis)
                    elif kind == "load":
                        answer = await load()
                    elif kind == "sleep":
                        await asyncio.sleep(what)
                    else:
                        await asyncio.wait_for(what[0].wait(), what[1])
                except asyncio.TimeoutError as raised:
                    error = raised if kind != "join" else None
                except BaseException as raised:  # cancellation, too: the lease is given up
                    error = raised
        except StopIteration as end:
            return end.value
