"""Ten people at once: nobody waits forever, nobody sees another's image."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import apps_case
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from apps import workbench
from apps.page import Page
from apps.picture import Picture

PEOPLE, MOVES = 10, 20
PATIENCE = 300


class Person(threading.Thread):
    """One session that uploads a picture of its own width and then moves the score slider again and again."""

    def __init__(self, url: str, number: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.width = url, number, 110 + 12 * number
        self.file = folder / f"picture{number}.png"
        Image.new("RGB", (self.width, 100), (20 * number, 90, 40)).save(self.file)
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        """Collect what went wrong instead of raising it in a thread."""
        try:
            client = Client(self.url, verbose=False, httpx_kwargs={"timeout": PATIENCE})
            client.predict([handle_file(str(self.file))], api_name="/upload")
            for move in range(MOVES):
                start = time.monotonic()
                self._move(client, move)
                self.seconds.append(time.monotonic() - start)
        except Exception as error:
            self.wrong.append(f"person {self.number}: {type(error).__name__}: {error}")

    def _move(self, client: Client, move: int) -> None:
        """Own picture, and the data set's in between."""
        own = move % 3 < 2
        score = 0.02 + 0.01 * (move % 5)
        made = client.predict(
            self.number % 4, 0 if own else -1, False, ["lab_baseline"], score, "own", 0.5, False, 0.5,
            api_name="/heads_score",
        )  # fmt: skip
        (panel,) = json.loads(next(part for part in _flat(made) if part.startswith("[{")))
        height = panel["figure"]["layout"]["yaxis"]["range"][0]
        expected = round(128 * 100 / self.width) if own else 128  # the longer side is always 128
        if abs(height - expected) > 1:
            self.wrong.append(f"person {self.number}: a picture {height} high instead of {expected}")
        self.notes = getattr(self, "notes", {}) | {(own, score): panel["note"]}


def _flat(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [text for item in items for text in _flat(item)]


@pytest.mark.slow
def test_ten_people_at_once(tmp_path: Path) -> None:
    page = Page(apps_case.models(), apps_case.images())
    url = workbench.serve(page.blocks, workbench.free_port())
    try:
        people = [Person(url, number, tmp_path) for number in range(PEOPLE)]
        for person in people:
            person.start()
        end = time.monotonic() + PATIENCE
        for person in people:
            person.join(max(0.0, end - time.monotonic()))
        assert not [person.number for person in people if person.is_alive()], "still waiting"
    finally:
        page.blocks.close(verbose=False)
    assert not [words for person in people for words in person.wrong]
    seconds = np.array([second for person in people for second in person.seconds])
    assert len(seconds) == PEOPLE * MOVES
    for person in people:
        found = page.bench.detections("lab_baseline", Picture(person.number % 4))["original"]
        for (own, score), note in person.notes.items():
            if not own:
                assert f"{int((found.scores >= score).sum())} detection" in note
    middle, late = np.quantile(seconds, [0.5, 0.95])
    print(f"{len(seconds)} moves of {PEOPLE} people at once: median {middle:.2f} s, 95 % within {late:.2f} s")
