"""Opens the App on this machine, with the plugin, and stays until it is stopped."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import codetr_lab
from codetr_lab.integrations.fiftyone.look import WORKSPACE
from codetr_lab.integrations.records import IntegrationError

if TYPE_CHECKING:
    import fiftyone as fo

PLUGIN = Path(codetr_lab.__file__).parents[1] / "apps" / "fiftyone_plugin"
HOST = "127.0.0.1"


def install_plugin(folder: Path | None = None) -> Path | None:
    """Copy the plugin to where FiftyOne looks for plugins; None where the source tree is not at hand."""
    import fiftyone as fo

    if not PLUGIN.is_dir():
        return None
    target = (folder or Path(fo.config.plugins_dir)) / "@codetr_lab" / "label_assignment"
    shutil.copytree(PLUGIN, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def launch(dataset: fo.Dataset, port: int) -> None:
    """Serve the App on 127.0.0.1 until Ctrl-C.

    Raises:
        IntegrationError: the port is taken, or FiftyOne's server does not start.
    """
    import fiftyone as fo

    install_plugin()
    _start_server(port)
    spaces = dataset.load_workspace(WORKSPACE) if WORKSPACE in dataset.list_workspaces() else None
    session = fo.launch_app(dataset, spaces=spaces, remote=True, address=HOST, port=port)
    print(f"FiftyOne is at http://{HOST}:{port}/datasets/{dataset.name}   (Ctrl-C stops it)", flush=True)
    try:
        session.wait(-1)
    finally:
        session.close()


def _start_server(port: int) -> None:
    """FiftyOne's server, answering.

    `fo.launch_app` would start it too, but gives up after 60 s. Before it listens, the server imports FiftyOne twice,
    which takes longer on a busy machine. This waits as long as the server lives.

    Raises:
        IntegrationError: the port is taken, or the server ended.
    """
    import fiftyone as fo
    from fiftyone.core.service import ServerService
    from fiftyone.core.session import session

    class Server(ServerService):
        def _wait_for_child_port(self, port: int, **_: Any) -> None:
            while not listens(port):
                if self.child.poll() is not None:
                    raise IntegrationError(f"FiftyOne's server ended before it listened on port {port}; see above")
                time.sleep(0.5)

    if listens(port):
        raise IntegrationError(f"port {port} is taken; stop what runs there, or choose another one with --port")
    print("starting FiftyOne's server ...", flush=True)
    session._server_services[port] = Server(port, address=HOST, do_not_track=fo.config.do_not_track)


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    with socket.socket() as caller:
        caller.settimeout(2)
        return caller.connect_ex((HOST, port)) == 0
