"""A Redis of our own, and a connection to it, with nothing but the standard library."""

import os
import shutil
import socket
import subprocess
import tempfile
import time


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Refused(Exception):
    """An error that Redis answered with."""


class Connection:
    """Speaks RESP2. Replies are bytes, int, None, str for a status, or a list of them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")

    def send(self, *words: object) -> None:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))

    def read(self):
        line = self._file.readline()
        if not line:
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise Refused(rest.decode())
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if int(rest) < 0 else self._file.read(int(rest) + 2)[:-2]
        return None if int(rest) < 0 else [self.read() for _ in range(int(rest))]

    def __call__(self, *words: object):
        self.send(*words)
        return self.read()


class Server:
    """Private, on loopback, gone with the process that made it."""

    def __init__(self, program: str | None = None, *options: str) -> None:
        self.program = program or os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
        if not self.program:
            raise SystemExit("no redis-server or valkey-server on the PATH: name one with REDIS_SERVER")
        self.folder = tempfile.mkdtemp(prefix="unstale-redis-")
        self.port = free_port()
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        words = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder, *self.options]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                if self.connect()("PING") == "PONG":
                    return
            except (OSError, Refused):
                pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"{self.program} does not answer on port {self.port}")
            time.sleep(0.01)

    def connect(self) -> Connection:
        return Connection(self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
