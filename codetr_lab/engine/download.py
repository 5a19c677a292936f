"""Large files from the web: resumed where they broke off, checked by their hash, never half there."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

CHUNK = 1 << 20


class DownloadError(OSError):
    """A file could not be fetched; the message names its address, the reason and what to do."""


class _Broken(Exception):
    """The connection ended early; going on may help."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    progress: bool = True,
    attempts: int = 4,
    timeout: float = 30,
    wait: Callable[[float], Any] = time.sleep,
) -> Path:
    """Fetch `url` into `path`, once. A broken download goes on where it stopped, also in a later call.

    Args:
        sha256: the first hex digits that the file's hash must have; empty takes the one that the server names
            (`X-Linked-Etag`, as Hugging Face does), if it names one.
        attempts: connections to try before giving up. `wait` is called with the seconds between two of them.
        timeout: seconds without any byte before a connection counts as broken.

    Raises:
        DownloadError: no network, no such file, or another file than expected (what was fetched is then deleted).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_file():
            return path
        reason = ""
        for attempt in range(attempts):
            if attempt:
                wait(2**attempt)
            try:
                named = _fetch(url, part, progress, timeout)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise DownloadError(
                        f"{url}: the server says {error.code} {error.reason}; {_by_hand(path)}"
                    ) from error
                reason = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException, _Broken) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            kept = f"{part.stat().st_size / 1e6:.0f} MB are kept, and the next try goes on there" if _size(part) else ""
            raise DownloadError(f"{url}: cannot be fetched ({reason}); {kept or _by_hand(path)}")
        _check(url, part, (sha256 or named).lower())
        part.replace(path)
    return path


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _by_hand(path: Path) -> str:
    return f"without network, fetch it elsewhere and put it there: {path}"


class _KeepHash(urllib.request.HTTPRedirectHandler):
    """Follows redirections and keeps the hash that the first answer names."""

    hash = ""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.hash = self.hash or _named_hash(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _named_hash(headers: Any) -> str:
    tag = (headers.get("X-Linked-Etag") or "").strip('"')
    return tag if re.fullmatch("[0-9a-f]{64}", tag) else ""


def _fetch(url: str, part: Path, progress: bool, timeout: float) -> str:
    """One connection: what is missing of the file is appended to `part`; returns the hash that the server names."""
    have, redirects = _size(part), _KeepHash()
    request = urllib.request.Request(url, headers={"User-Agent": "codetr_lab", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(redirects)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file is another one now: the hash will tell
            return redirects.hash or _named_hash(error.headers)
        raise
    with response:
        if response.status != 206:
            have = 0  # the server sends all of it
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1000, desc=url.rpartition("/")[2],
            disable=not progress,
        )  # fmt: skip
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and _size(part) < total:
            raise _Broken(f"the connection broke off after {_size(part) / 1e6:.0f} of {total / 1e6:.0f} MB")
        return redirects.hash or _named_hash(response.headers)


def _check(url: str, part: Path, expected: str) -> None:
    """Compare the file's hash with the first digits `expected`."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        part.unlink()
        raise DownloadError(
            f"{url}: the file's sha256 begins with {found[: max(8, len(expected))]} instead of {expected}, so it is "
            "damaged or another one; it was deleted: try again"
        )
