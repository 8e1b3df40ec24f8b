"""What the suite cannot see from outside."""

import asyncio
import threading
import unittest

import redis
import redis.asyncio

import unstale
import unstale.aio

from .servers import Server


class Caches(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.redis = redis.Redis.from_url(cls.server.url)

    @classmethod
    def tearDownClass(cls):
        cls.redis.close()
        cls.server.close()

    def setUp(self):
        self.redis.flushall()

    def test_the_applications_own_bytes_are_stored(self):
        cache = unstale.Cache(self.redis, encode=lambda value: value, decode=lambda payload: payload)
        for payload in (b"", b"\x00\xff=", b"x" * 100_000):
            self.assertEqual(cache.get_or_set(payload[:3], lambda: payload), payload)
            self.assertEqual(self.redis.get(payload[:3]), payload)
            self.assertEqual(cache.get_or_set(payload[:3], None), payload)

    def test_a_value_that_looks_like_a_lease_is_not_stored(self):
        cache = unstale.Cache(self.redis, encode=str.encode, decode=bytes.decode)
        self.assertEqual(cache.get_or_set("k", lambda: "unstale:lease:mine"), "unstale:lease:mine")
        self.assertIsNone(self.redis.get("k"))
        self.assertEqual(cache.counters.refused, 1)

    def test_nothing_has_a_ttl_of_its_own(self):
        cache = unstale.Cache(self.redis, ttl=1000, negative_ttl=10)
        self.assertIsNone(cache.get_or_set("k", lambda: None))
        self.assertLessEqual(self.redis.ttl("k"), 10)

    def test_a_value_that_cannot_be_decoded_is_loaded_and_counted(self):
        self.redis.set("k", b"\x80old")
        cache = unstale.Cache(self.redis)
        self.assertEqual(cache.get_or_set("k", lambda: 1), 1)
        self.assertEqual((self.redis.get("k"), cache.counters.errors), (b"\x80old", 1))

    def test_a_key_of_another_type_is_loaded_and_counted(self):
        self.redis.hset("k", "a", 1)
        cache = unstale.Cache(self.redis)
        self.assertEqual(cache.get_or_set("k", lambda: 1), 1)
        self.assertEqual(cache.counters.errors, 1)

    def test_what_a_broken_connection_raises_is_counted_whatever_it_is(self):
        class Breaking(redis.Redis):
            def execute_command(self, *_words, **_options):
                raise AttributeError("'NoneType' object has no attribute 'writelines'")

        cache = unstale.Cache(Breaking.from_url(self.server.url))
        self.assertEqual(cache.get_or_set("k", lambda: 1), 1)
        self.assertEqual(cache.counters.errors, 1)

    def test_clients_that_decode_are_understood(self):
        text = redis.Redis.from_url(self.server.url, decode_responses=True)
        cache = unstale.Cache(text)
        self.assertEqual([cache.get_or_set("k", lambda: "ü") for _ in range(3)], ["ü"] * 3)
        self.redis.set("k", b"unstale:lease:" + b"0" * 32 + b'="\xc3\xbc"')
        self.assertEqual(cache.get_or_set("k", None), "ü")
        text.close()

    def test_threads_load_once_and_are_counted(self):
        cache = unstale.Cache(self.redis)
        begun, go = threading.Event(), threading.Event()

        def load():
            begun.set()
            go.wait()
            return 7

        found = []
        threads = [threading.Thread(target=lambda: found.append(cache.get_or_set("k", load))) for _ in range(20)]
        threads[0].start()
        begun.wait()
        for thread in threads[1:]:
            thread.start()
        while cache.counters.waits < 19:
            threading.Event().wait(0.001)
        go.set()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [7] * 20)
        counted = cache.counters
        self.assertEqual((counted.misses, counted.fills, counted.waits, counted.timeouts), (1, 1, 19, 0))

    def test_a_cancelled_task_gives_its_lease_up(self):
        async def run():
            client = redis.asyncio.Redis.from_url(self.server.url)
            cache = unstale.aio.Cache(client)
            loading = asyncio.Event()

            async def load():
                loading.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(cache.get_or_set("k", load))
            await loading.wait()
            self.assertIsNotNone(await client.get("k"))
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertIsNone(await client.get("k"))
            await client.aclose()

        asyncio.run(run())

    def test_a_retried_take_finds_its_own_lease(self):
        cache = unstale.Cache(self.redis)
        lease = cache.new_lease()
        self.redis.set("k", lease)
        self.assertIsNone(cache._carry_out(cache.take("k", lease), None))
