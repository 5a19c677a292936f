"""What the tests of the workbench share."""

from __future__ import annotations

import apps_case
import pytest

pytest.importorskip("gradio", reason='gradio not found; pip install -e ".[app]" -c constraints.txt')

from apps.bench import Bench


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench(apps_case.models(), apps_case.images())
