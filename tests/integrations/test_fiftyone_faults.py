"""What goes wrong while a dataset is built: it says so in one line, and the next build goes on where it stopped."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mongo_server import PATIENCE, Server, until

import codetr_lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.integrations.fiftyone import build_dataset

pytestmark = [pytest.mark.fiftyone, pytest.mark.slow]
IMAGES, CHUNK = 96, 16


def build(server: Server, folder: Path, media: str = "media") -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "codetr_lab.cli", "fiftyone", "--model", "lab_baseline", "--compare", "--name", "faults",
        "--limit", str(IMAGES), "--media", str(folder / media), "--no-open",
    ]  # fmt: skip
    address = f"{server.address}?serverSelectionTimeoutMS=5000"  # how long a dead server is waited for
    environment = os.environ | {"FIFTYONE_DATABASE_URI": address, "FIFTYONE_DATABASE_VALIDATION": "false"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_builds_and_servers_lose_nothing(mongod: str, tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        first = build(server, tmp_path)
        until(lambda: first.poll() is not None or (server.count() or 0) >= CHUNK, "a chunk is written")
        assert first.poll() is None
        first.send_signal(signal.SIGSTOP)
        other = build(server, tmp_path, "elsewhere")
        _, err = other.communicate(timeout=PATIENCE)
        assert other.returncode == 2 and "another build of faults is at work" in err.splitlines()[-1], err
        first.kill()
        first.communicate()
        kept = server.count()
        assert kept is not None and CHUNK <= kept < IMAGES - CHUNK

        second = build(server, tmp_path)
        until(lambda: second.poll() is not None or (server.count() or 0) > kept, "the build goes on")
        second.send_signal(signal.SIGSTOP)
        server.kill()
        second.send_signal(signal.SIGCONT)
        out, err = second.communicate(timeout=PATIENCE)
        assert second.returncode == 2, out + err
        assert "the database stopped answering while faults was built; run the same command to go on" in err
        assert "Traceback" not in err

        server.start()
        assert (server.count() or 0) >= kept  # what came last may not have reached the disk
        out, err = build(server, tmp_path).communicate(timeout=PATIENCE)
        assert server.count() == IMAGES and f"faults: {IMAGES} images" in out, out + err
        assert f"/{IMAGES} " not in err.split("evaluate")[0]  # the bar counts what was left only
    finally:
        server.kill()


def test_a_file_that_cannot_be_written(fiftyone: Any, tmp_path: Path) -> None:
    model = {"lab_baseline": codetr_lab.load("lab_baseline")}
    data = Shapes("val", images=2)
    build_dataset(model, data, "full", media=tmp_path, limit=1, progress=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as on a full disk: the write itself fails
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
            build_dataset(model, data, "full", media=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fiftyone.load_dataset("full").values("image_id") == [0]
    assert len(build_dataset(model, data, "full", media=tmp_path, progress=False)) == 2
    assert not list((tmp_path / "images").glob("*.part"))
    fiftyone.delete_dataset("full")
