"""The client as a program for clients/conformance: `conform.py [aio]`."""

import asyncio
import json
import sys
import threading

import redis
import redis.asyncio

import unstale
import unstale.aio


class Failed(Exception):
    """The database's error."""


def say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def of_threads(words: dict) -> unstale.Cache:
    library = redis.RedisCluster if words["cluster"] else redis.Redis
    client = library.from_url(words["redis"])
    return unstale.Cache(client, words["ttl"], words["lease"], wait=words["wait"], early=words["early"])


def of_tasks(words: dict) -> unstale.aio.Cache:
    library = redis.asyncio.RedisCluster if words["cluster"] else redis.asyncio.Redis
    client = library.from_url(words["redis"])
    return unstale.aio.Cache(client, words["ttl"], words["lease"], wait=words["wait"], early=words["early"])


def threads(opened=of_threads) -> None:
    answers: dict[int, tuple[threading.Event, dict]] = {}

    def load(number: int):
        answers[number] = (threading.Event(), {})
        say(event="load", id=number)
        answers[number][0].wait()
        if "value" not in answers[number][1]:
            raise Failed
        return answers[number][1]["value"]

    def get(cache, number: int, key: str) -> None:
        try:
            say(event="got", id=number, value=cache.get_or_set(key, lambda: load(number)))
        except Failed:
            say(event="failed", id=number)

    cache = None
    for line in sys.stdin:
        words = json.loads(line)
        if words["do"] == "open":
            cache = opened(words)
            say(event="ready")
        elif words["do"] == "get":
            threading.Thread(target=get, args=(cache, words["id"], words["key"]), daemon=True).start()
        else:
            done, answer = answers[words["id"]]
            answer.update(words)
            done.set()


async def tasks(opened=of_tasks) -> None:
    answers: dict[int, asyncio.Future] = {}
    running = set()

    async def load(number: int):
        answers[number] = asyncio.get_running_loop().create_future()
        say(event="load", id=number)
        words = await answers[number]
        if "value" not in words:
            raise Failed
        return words["value"]

    async def get(cache, number: int, key: str) -> None:
        try:
            say(event="got", id=number, value=await cache.get_or_set(key, lambda: load(number)))
        except Failed:
            say(event="failed", id=number)

    cache = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        words = json.loads(line)
        if words["do"] == "open":
            cache = opened(words)
            say(event="ready")
        elif words["do"] == "get":
            task = asyncio.create_task(get(cache, words["id"], words["key"]))
            running.add(task)
            task.add_done_callback(running.discard)
        else:
            answers[words["id"]].set_result(words)


if __name__ == "__main__":
    if sys.argv[1:] == ["aio"]:
        asyncio.run(tasks())
    else:
        threads()
