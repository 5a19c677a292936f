"""Starting, checking, and refusing to start."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import apps_case
import pytest

from apps import workbench
from apps.workbench import WorkbenchError


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = workbench.build(apps_case.models(), apps_case.images(), missing=["lab_co_k2"])
    yield workbench.serve(page, workbench.free_port())
    page.close(verbose=False)


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        return answer.read()


def test_check_counts_every_candidate(url: str) -> None:
    model = apps_case.models()["lab_co_k2"]
    drawn = workbench.check(url, "lab_co_k2")
    # 340 anchors and 50 queries; the proposals vary.
    assert 340 + model.config.num_queries < drawn <= 340 + model.config.num_queries + 150 + 15


def test_check_says_what_is_wrong(url: str) -> None:
    with pytest.raises(WorkbenchError, match="gives no figure"):
        workbench.check(url, "no_such_model")


def test_served_to_this_machine_alone_and_without_other_hosts(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    assert "127.0.0.1" in os.environ["NO_PROXY"]
    page = fetch(url).decode()
    assert "Trained weights are missing for lab_co_k2" in page
    assert "fonts.googleapis.com" not in page
    assert "https://cdn.plot.ly" not in page


def test_no_file_is_served_but_plotlys_script(url: str) -> None:
    from apps.plot import PLOTLY_SCRIPT

    assert len(fetch(f"{url}gradio_api/file={PLOTLY_SCRIPT}")) > 1_000_000
    for other in (__file__, str(PLOTLY_SCRIPT.parent / "widgetbundle.js"), "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError):
            fetch(f"{url}gradio_api/file={other}")


def test_interface_tells_its_names(url: str) -> None:
    named = json.loads(fetch(f"{url}gradio_api/info"))["named_endpoints"]
    assert {"/assign", "/heads"} <= set(named)


def test_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkbenchError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            workbench.free_port(port)
        with pytest.raises(WorkbenchError, match=f"port {port}"):
            workbench.main(port=port)


def test_first_free_port_is_taken_if_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(workbench, "FIRST_PORT", port)
        assert workbench.free_port() > port
        monkeypatch.setattr(workbench, "PORTS_TRIED", 1)
        with pytest.raises(WorkbenchError, match="are all in use"):
            workbench.free_port()


@pytest.mark.parametrize("port", [0, 70000])
def test_ports_that_do_not_exist(port: int) -> None:
    with pytest.raises(WorkbenchError, match=f"port {port} does not exist"):
        workbench.free_port(port)


def test_missing_weights_are_told_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "shipped_models", dict)
    models, missing = workbench.lab_models(("lab_baseline",))
    assert missing == ["lab_baseline"]
    assert not models["lab_baseline"].training


def test_smoke_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert workbench.main(smoke=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("the workbench answers at http://127.0.0.1:")


def test_first_image_has_a_few_objects() -> None:
    dataset = apps_case.images()
    assert 4 <= len(dataset.target(workbench.first_image(dataset))["labels"]) <= 6


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("9", 5), ("-1", 5), ("x", 5), (None, 5)])
def test_numbers_in_the_address(text: str | None, expected: int) -> None:
    assert workbench._number(text, 0, 8, default=5) == expected
