"""Downloads against a server on the loopback interface: broken, damaged, absent, resumed."""

from __future__ import annotations

import hashlib
import socket
import threading

import pytest
from loopback import serving

from codetr_lab.engine.download import DownloadError, download

CONTENT = bytes(range(256)) * 5000
HASH = hashlib.sha256(CONTENT).hexdigest()
QUIET = {"progress": False, "wait": lambda seconds: None}


def test_a_file_comes_once(tmp_path, capsys) -> None:
    with serving(CONTENT) as (server, url):
        path = download(url, tmp_path / "deep" / "a.pth", sha256=HASH[:8])
        assert path.read_bytes() == CONTENT
        assert "weights-file.pth" in capsys.readouterr().err  # the progress bar
        assert download(url, path, sha256=HASH[:8]) == path
        assert server.asked == [None]
    assert download(url, path) == path  # the server is gone


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path) -> None:
    with serving(CONTENT) as (server, url):
        server.plan = [1000, "503", 2000]
        path = download(url, tmp_path / "a.pth", sha256=HASH, **QUIET)
        assert path.read_bytes() == CONTENT
        assert server.asked == [None, "bytes=1000-", "bytes=1000-", "bytes=3000-"]


def test_a_later_call_goes_on_too(tmp_path) -> None:
    path = tmp_path / "a.pth"
    with serving(CONTENT) as (server, url):
        server.plan = [600_000, 0, 0]
        with pytest.raises(DownloadError, match=r"broke off after 1 of 1 MB\); 1 MB are kept, and the next"):
            download(url, path, attempts=3, **QUIET)
        assert not path.exists() and (tmp_path / "a.pth.part").stat().st_size == 600_000
        assert download(url, path, sha256=HASH[:8], **QUIET).read_bytes() == CONTENT
        assert server.asked[-1] == "bytes=600000-"
        assert not (tmp_path / "a.pth.part").exists()


def test_a_server_without_ranges_sends_all_again(tmp_path) -> None:
    with serving(CONTENT) as (server, url):
        server.plan = [1000, "no ranges"]
        assert download(url, tmp_path / "a.pth", sha256=HASH, **QUIET).read_bytes() == CONTENT


def test_nothing_missing_but_the_name(tmp_path) -> None:
    (tmp_path / "a.pth.part").write_bytes(CONTENT)
    with serving(CONTENT) as (server, url):
        assert download(url, tmp_path / "a.pth", sha256=HASH, **QUIET).read_bytes() == CONTENT
        assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_hash_is_refused_and_deleted(tmp_path) -> None:
    with serving(CONTENT) as (_, url):
        with pytest.raises(DownloadError, match=rf"sha256 begins with {HASH[:8]} instead of 00000000.*it was deleted"):
            download(url, tmp_path / "a.pth", sha256="00000000", **QUIET)
        assert list(tmp_path.glob("a.pth*")) == [tmp_path / "a.pth.lock"]


def test_the_hash_that_hugging_face_names(tmp_path) -> None:
    with serving(CONTENT) as (server, url):
        server.plan, server.etag = ["redirect"], HASH
        assert download(url, tmp_path / "a.pth", **QUIET).read_bytes() == CONTENT
        server.plan, server.etag = ["redirect"], "1" * 64
        with pytest.raises(DownloadError, match="instead of 1111"):
            download(url, tmp_path / "b.pth", **QUIET)


def test_no_such_file_and_no_network(tmp_path) -> None:
    with serving(CONTENT) as (server, url):
        server.plan = ["404"]
        with pytest.raises(DownloadError, match="the server says 404 Not Found; without network, fetch it elsewhere"):
            download(url, tmp_path / "a.pth", **QUIET)
        assert len(server.asked) == 1
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.pth"
        with pytest.raises(DownloadError, match=r"cannot be fetched \(.*refused.*put it there: .*a\.pth"):
            download(url, tmp_path / "a.pth", **QUIET)


def test_two_at_once_fetch_it_once(tmp_path) -> None:
    with serving(CONTENT) as (server, url):
        threads = [
            threading.Thread(target=download, args=(url, tmp_path / "a.pth"), kwargs=QUIET | {"sha256": HASH})
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.asked == [None] and (tmp_path / "a.pth").read_bytes() == CONTENT
