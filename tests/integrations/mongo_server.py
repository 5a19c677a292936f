"""A mongod of a test's own. FiftyOne's own one would be shared with any FiftyOne that runs on the machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from codetr_lab import doctor

PATIENCE = 600


class Server:
    """A mongod that FiftyOne neither starts nor stops."""

    def __init__(self, folder: Path) -> None:
        executable = doctor.own_mongod()
        assert executable is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "db").mkdir()
        self.command = [executable, "--dbpath", str(folder / "db"), "--port", str(self.port), "--bind_ip", "127.0.0.1"]
        self.log = folder / "mongod.log"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until(lambda: self.count("admin") is not None, "mongod answers")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def address(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/"

    def count(self, database: str = "fiftyone") -> int | None:
        """How many samples there are; None while the server does not answer."""
        import pymongo

        with pymongo.MongoClient(self.address, serverSelectionTimeoutMS=1000) as client:
            try:
                names = [n for n in client[database].list_collection_names() if n.startswith("samples.")]
                return sum(client[database][name].count_documents({}) for name in names)
            except pymongo.errors.PyMongoError:
                return None


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s until {what}"
        time.sleep(0.05)
