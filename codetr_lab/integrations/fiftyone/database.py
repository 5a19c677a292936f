"""Which database FiftyOne will use, said beforehand; no server that is not FiftyOne's own is started or stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from codetr_lab import doctor
from codetr_lab.integrations.records import IntegrationError

FIFTYONE_MEND = 'pip install -e ".[fiftyone]" -c constraints.txt'


def describe_database() -> str:
    """One line on the database that FiftyOne will use.

    Raises:
        IntegrationError: FiftyOne or a database is missing; says how to get it.
    """
    if importlib.util.find_spec("fiftyone") is None:
        raise IntegrationError(f"FiftyOne is not installed; {FIFTYONE_MEND}")
    address = doctor.find_mongod()
    if address is None:
        raise IntegrationError(f"FiftyOne has no database here; {doctor.MONGOD_MEND}")
    if os.environ.get("FIFTYONE_DATABASE_URI"):
        return f"database: the running server at {_without_password(address)} (FIFTYONE_DATABASE_URI)"
    return f"database: FiftyOne's own mongod ({address}), started or joined, stopped when its last user leaves"


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else address


def open_fiftyone() -> None:
    """Import FiftyOne without telemetry and reach its database.

    Raises:
        IntegrationError: it is missing, or its database does not start or answer.
    """
    words = describe_database()
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    with answering(f"cannot use the {words}; look at the server's log, or unset FIFTYONE_DATABASE_URI"):
        import fiftyone as fo

        fo.list_datasets()


@contextlib.contextmanager
def answering(problem: str) -> Iterator[None]:
    """Turn a database that does not answer into one line that begins with `problem`.

    Raises:
        IntegrationError: the database failed.
    """
    try:
        yield
    except Exception as error:
        kind = type(error)
        if kind.__module__.split(".")[0] in ("pymongo", "mongoengine") or kind.__name__ in (
            "FiftyOneConfigError", "FiftyOneConnectionError", "ServiceExecutableNotFound",
        ):  # fmt: skip
            reason = (str(error).splitlines() or [kind.__name__])[0][:160]
            raise IntegrationError(f"{problem} ({reason})") from error
        raise
