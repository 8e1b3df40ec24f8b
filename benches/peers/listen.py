"""Deletes the keys of what a trigger announces for each row: asyncpg and redis-py, many keys to a command.

What happens while its connection is lost is forgotten.
"""

import asyncio
import json
import os

import asyncpg
import redis.asyncio as redis


async def main() -> None:
    cache = redis.Redis(unix_socket_path=os.environ["REDIS_SOCKET"])
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    keys: list[str] = []
    wake = asyncio.Event()

    def heard(_connection, _pid, _channel, payload: str) -> None:
        change = json.loads(payload)
        for row in change.get("rows") or (change.get("new"), change.get("old")):
            if row:
                keys.append(f"user:{row['id']}")
        wake.set()

    await connection.add_listener(await connection.fetchval("select unstale.channel()"), heard)
    print("ready", flush=True)
    while True:
        await wake.wait()
        wake.clear()
        while keys:
            batch, keys[:1000] = keys[:1000], []
            await cache.unlink(*batch)


asyncio.run(main())
