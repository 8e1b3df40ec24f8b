"""The Django backend as a program for clients/conformance, with Django's own pattern of get and set: `conform_django.py [aio]`."""

import asyncio
import sys

import conform
import django
from django.conf import settings


class Reads:
    """An application's code: nothing here knows of leases."""

    def __init__(self, ttl):
        from django.core.cache import caches

        self.caches, self.ttl = caches, ttl

    def get_or_set(self, key, load):
        cache = self.caches["default"]
        value = cache.get(key, "nothing")
        if value == "nothing":
            value = load()
            cache.set(key, value, self.ttl)
        return value


class AsyncReads(Reads):
    async def get_or_set(self, key, load):
        cache = self.caches["default"]
        value = await cache.aget(key, "nothing")
        if value == "nothing":
            value = await load()
            await cache.aset(key, value, self.ttl)
        return value


def plain_key(name, prefix, version):
    return name


def opener(reads, backend="unstale.django.Cache"):
    def opened(words):
        options = {name: words[name] for name in ("lease", "wait", "early")}
        options = options if backend == "unstale.django.Cache" else {}
        location = {"BACKEND": backend, "LOCATION": words["redis"], "OPTIONS": options, "KEY_FUNCTION": plain_key}
        settings.configure(CACHES={"default": location})
        django.setup()
        return reads(words["ttl"])

    return opened


if __name__ == "__main__":
    if sys.argv[1:] == ["aio"]:
        asyncio.run(conform.tasks(opener(AsyncReads)))
    else:
        conform.threads(opener(Reads))
