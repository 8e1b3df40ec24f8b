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

    def node_of(self, _key: str) -> "Server":
        return self

    @property
    def nodes(self) -> list["Server"]:
        return [self]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Cluster:
    """Three primaries, and what the suite asks of a server."""

    def __init__(self, program: str | None = None, *options: str) -> None:
        # The bus wants a port above it, below 65536.
        options += ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
        self.nodes = [Server(program, *options, "--cluster-port", str(free_port())) for _ in range(3)]
        self.url = self.nodes[0].url
        first, *others = [node.connect() for node in self.nodes]
        for connection, (low, high) in zip((first, *others), ((0, 5460), (5461, 10922), (10923, 16383))):
            connection("CLUSTER", "ADDSLOTSRANGE", low, high)
        for node in self.nodes[1:]:
            first("CLUSTER", "MEET", "127.0.0.1", node.port, node.options[-1])
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 20
        while not all(b"cluster_known_nodes:3" in (info := node.connect()("CLUSTER", "INFO")) and b"state:ok" in info for node in self.nodes):
            if time.monotonic() > deadline:
                raise SystemExit("the cluster does not come up")
            time.sleep(0.05)

    def connect(self):
        """Follows keys to their nodes."""
        connections = {node.port: node.connect() for node in self.nodes}

        def ask(*words: object):
            if words[0] == "FLUSHALL":
                return [connection(*words) for connection in connections.values()]
            try:
                return connections[self.nodes[0].port](*words)
            except Refused as refused:
                if not str(refused).startswith("MOVED"):
                    raise
                return connections[int(str(refused).rsplit(":", 1)[1])](*words)

        return ask

    def node_of(self, key: str) -> Server:
        try:
            self.nodes[0].connect()("GET", key)
            return self.nodes[0]
        except Refused as refused:
            port = int(str(refused).rsplit(":", 1)[1])
            return next(node for node in self.nodes if node.port == port)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait()

    def close(self) -> None:
        for node in self.nodes:
            node.close()
