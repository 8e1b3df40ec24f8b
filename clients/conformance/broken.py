"""The Python client broken on purpose, for the suite and the race to find: `broken.py FLAW`.

one-token    one token for all fills of a process, as rueidisaside has it
blind-fill   a fill that does not compare
old-snapshot the database is read before the lease is taken
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "programs"))

import unstale
from unstale.protocol import Step


class OneToken(unstale.Cache):
    def new_lease(self) -> bytes:
        return b"unstale:lease:" + b"0" * 32

    def load_and_fill(self, key, lease, ttl, early):
        # Nor can such a client tell its own fills apart.
        self._fills = type("Forgets", (dict,), {"__delitem__": lambda fills, key: fills.pop(key, None)})()
        return (yield from super().load_and_fill(key, lease, ttl, early))

    def take(self, key, lease):
        reply = yield Step("redis", lambda r: r.set(key, lease, nx=True, get=True, px=int(self._lease * 1000)))
        return reply


class BlindFill(unstale.Cache):
    def fill(self, key, lease, payload, ttl, early=False):
        yield Step("redis", lambda r: r.set(key, payload, px=int(ttl * 1000)))
        return True


class OldSnapshot(unstale.Cache):
    def get_or_set(self, key, load, ttl=None):
        value = load()  # in a transaction that began before, for example
        return super().get_or_set(key, lambda: value, ttl)


FLAWS = {"one-token": OneToken, "blind-fill": BlindFill, "old-snapshot": OldSnapshot}

if __name__ == "__main__":
    unstale.Cache = FLAWS[sys.argv.pop(1)]
    import conform

    conform.threads()
