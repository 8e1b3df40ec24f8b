"""A Redis for the tests of a module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "conformance"))

from redis_server import Server  # noqa: E402, F401
