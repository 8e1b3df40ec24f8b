"""Each client and driver against the suite that any client can be run against."""

import os
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT.parent / "conformance" / "suite.py"


class Conformance(unittest.TestCase):
    def suite(self, *words: str) -> None:
        before, after = words[: words.index("--")], words[words.index("--") + 1 :]
        program, *rest = after
        command = [sys.executable, SUITE, "--quiet", *before, "--", sys.executable, ROOT / "programs" / program, *rest]
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)

    def test_threads(self):
        self.suite("--", "conform.py")

    def test_tasks(self):
        self.suite("--", "conform.py", "aio")

    @unittest.skipIf("CLIENTS_QUICK" in os.environ, "left to the whole run")
    def test_threads_on_a_cluster(self):
        self.suite("--cluster", "--", "conform.py")

    @unittest.skipIf("CLIENTS_QUICK" in os.environ, "left to the whole run")
    def test_tasks_on_a_cluster(self):
        self.suite("--cluster", "--", "conform.py", "aio")

    def test_django(self):
        self.suite("--driver", "--", "conform_django.py")

    def test_django_in_tasks(self):
        self.suite("--driver", "--", "conform_django.py", "aio")
