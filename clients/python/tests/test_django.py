"""Django's own interface over keys that hold leases."""

import asyncio
import unittest

import django.conf
import redis


from .servers import Server

LEASE = b"unstale:lease:" + b"0" * 32


class Backend(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.redis = redis.Redis.from_url(cls.server.url)
        backend = {"BACKEND": "unstale.django.Cache", "LOCATION": cls.server.url}
        strict = {**backend, "OPTIONS": {"strict": True}}
        django.conf.settings.configure(CACHES={"default": {**backend, "KEY_PREFIX": "app", "VERSION": 3}, "strict": strict})
        django.setup()
        from django.core.cache import caches

        cls.caches = caches
        cls.cache = caches["default"]

    @classmethod
    def tearDownClass(cls):
        cls.redis.close()
        cls.server.close()

    def setUp(self):
        self.cache.close()
        self.redis.flushall()

    def key(self, name):
        return f"app:3:{name}"

    def test_keys_are_those_of_django(self):
        self.assertIsNone(self.cache.get("k"))
        self.assertTrue(self.redis.get(self.key("k")).startswith(b"unstale:lease:"))
        self.cache.set("k", {"a": 1}, 100)
        self.assertEqual(self.cache.get("k"), {"a": 1})
        self.assertIn(self.redis.ttl(self.key("k")), (99, 100))
        self.assertIsNone(self.cache.get("k", version=4))

    def test_a_set_after_a_delete_is_refused(self):
        self.cache.get("k")
        self.redis.unlink(self.key("k"))
        self.cache.set("k", "old")
        self.assertIsNone(self.redis.get(self.key("k")))

    def test_get_or_set_is_fenced(self):
        def load():
            self.redis.unlink(self.key("k"))
            return "old"

        self.assertEqual(self.cache.get_or_set("k", load), "old")
        self.assertNotIn(b"old", self.redis.get(self.key("k")) or b"")
        self.assertEqual(self.cache.get_or_set("k2", "new"), "new")
        self.assertEqual(self.cache.get("k2"), "new")

    def test_many_are_fenced_one_by_one(self):
        self.assertEqual(self.cache.get_many(["a", "b"]), {})
        self.redis.unlink(self.key("a"))
        self.cache.set_many({"a": "old", "b": "new"})
        self.assertEqual(self.cache.get_many(["b"]), {"b": "new"})
        self.assertIsNone(self.redis.get(self.key("a")))

    def test_a_lease_is_nothing_to_django(self):
        self.redis.set(self.key("k"), LEASE)
        self.assertFalse(self.cache.has_key("k"))
        self.assertFalse(self.cache.touch("k", 100))
        self.assertRaises(ValueError, self.cache.incr, "k")
        self.assertIsNone(self.cache.get("k"))
        self.assertEqual(self.cache.get_many(["k"]), {})

    def test_counters_count(self):
        self.assertIsNone(self.cache.get("n"))
        self.cache.set("n", 1)
        self.assertEqual(self.cache.incr("n"), 2)
        self.assertEqual(self.redis.get(self.key("n")), b"2")

    def test_a_set_without_a_miss_is_written_or_refused(self):
        self.cache.set("k", "written")
        self.assertEqual(self.cache.get("k"), "written")
        self.caches["strict"].set("k", "written")
        self.assertIsNone(self.redis.get(":1:k"))

    def test_the_end_of_a_request_gives_leases_up(self):
        self.cache.get("k")
        self.cache.close()
        self.assertIsNone(self.redis.get(self.key("k")))

    def test_a_set_of_another_task_than_the_get_is_fenced(self):
        async def run():
            await asyncio.gather(self.cache.aget("a"), self.cache.aget("b"))
            self.redis.unlink(self.key("a"))
            await self.cache.aset("a", "old")
            await self.cache.aset("b", "new")

        asyncio.run(run())
        self.assertIsNone(self.redis.get(self.key("a")))
        self.assertEqual(self.cache.get("b"), "new")

    def test_of_several_misses_of_unknown_tasks_none_is_stored(self):
        async def run():
            await asyncio.gather(self.cache.aget("a"))
            self.redis.unlink(self.key("a"))
            await asyncio.gather(self.cache.aget("a"))
            await self.cache.aset("a", "perhaps old")
            await self.cache.aset("a", "perhaps new")

        asyncio.run(run())
        self.assertTrue((self.redis.get(self.key("a")) or b"unstale:lease:").startswith(b"unstale:lease:"))

    def test_the_asynchronous_interface(self):
        async def run():
            self.assertIsNone(await self.cache.aget("k"))
            await self.cache.aset("k", 5)
            self.assertEqual(await self.cache.aget("k"), 5)
            self.assertEqual(await self.cache.aincr("k"), 6)
            self.assertTrue(await self.cache.ahas_key("k"))
            self.assertTrue(await self.cache.aadd("new", 1))
            self.assertFalse(await self.cache.aadd("new", 2))
            self.assertEqual(await self.cache.aget_or_set("other", 9), 9)
            self.assertEqual(await self.cache.aget_many(["k", "other"]), {"k": 6, "other": 9})
            self.assertTrue(await self.cache.adelete("k"))

        asyncio.run(run())
