"""Ten people at a running workbench, as a program of its own: `python load_people.py URL PEOPLE MOVES FOLDER`.

They speak the page's own protocol with urllib: Gradio's Python client needs more processor time for a request than the
server for its answer. Prints one JSON object: `seconds` per move, `wrong`, and `notes` (the captions that each person
saw, by score) of the data set's own images.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

PATIENCE = 300
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Person(threading.Thread):
    """One session that uploads a picture of its own width and then moves the score slider again and again."""

    def __init__(self, url: str, number: int, moves: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.moves, self.width = url.rstrip("/"), number, moves, 110 + 12 * number
        self.file = folder / f"picture{number}.png"
        Image.new("RGB", (self.width, 100), (20 * number, 90, 40)).save(self.file)
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.notes: dict[str, str] = {}

    def run(self) -> None:
        """Collect what went wrong instead of raising it in a thread."""
        try:
            self._ask("upload", [[{"path": self._sent(), "meta": {"_type": "gradio.FileData"}}]])
            for move in range(self.moves):
                start = time.monotonic()
                self._move(move)
                self.seconds.append(time.monotonic() - start)
        except Exception as error:
            self.wrong.append(f"person {self.number}: {type(error).__name__}: {error}")

    def _open(self, address: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        request = urllib.request.Request(f"{self.url}/gradio_api/{address}", body, {"Content-Type": kind})
        with OPENER.open(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def _sent(self) -> str:
        """Send the picture; gives the server's name for it."""
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{self.file.name}"\r\n\r\n'
        body = head.encode() + self.file.read_bytes() + b"\r\n--edge--\r\n"
        return str(json.loads(self._open("upload", body, "multipart/form-data; boundary=edge"))[0])

    def _ask(self, name: str, data: list[Any]) -> Any:
        """One event of this session's page, and its answer."""
        body = json.dumps({"data": data, "session_hash": f"person{self.number}"}).encode()
        ticket = json.loads(self._open(f"call/{name}", body))["event_id"]
        event = ""
        for line in self._open(f"call/{name}/{ticket}").splitlines():
            word, _, rest = line.partition(": ")
            if word == "event":
                event = rest
            elif event == "complete":
                return json.loads(rest)
            elif event == "error":
                raise RuntimeError(f"{name}: {rest}")
        raise RuntimeError(f"{name}: no answer")

    def _move(self, move: int) -> None:
        """Own picture, and the data set's in between."""
        own, score = move % 3 < 2, 0.02 + 0.01 * (move % 5)
        values = [self.number % 4, 0 if own else -1, None, None, False]
        made = self._ask("heads_score", [*values, ["lab_baseline"], score, "own", 0.5, False, 0.5])
        (panel,) = json.loads(next(part for part in made if str(part).startswith("[{")))
        height = panel["figure"]["layout"]["yaxis"]["range"][0]
        expected = round(128 * 100 / self.width) if own else 128  # the longer side is always 128
        if abs(height - expected) > 1:
            self.wrong.append(f"person {self.number}: a picture {height} high instead of {expected}")
        if not own:
            self.notes[f"{score:.2f}"] = panel["note"]


def main(url: str, people: str, moves: str, folder: str) -> None:
    """Let them all start at once, and print what they met."""
    crowd = [Person(url, number, int(moves), Path(folder)) for number in range(int(people))]
    for person in crowd:
        person.start()
    end = time.monotonic() + PATIENCE
    for person in crowd:
        person.join(max(0.0, end - time.monotonic()))
        if person.is_alive():
            person.wrong.append(f"person {person.number} still waits")
    met = {
        "seconds": [second for person in crowd for second in person.seconds],
        "wrong": [words for person in crowd for words in person.wrong],
        "notes": [person.notes for person in crowd],
    }
    print(json.dumps(met))


if __name__ == "__main__":
    main(*sys.argv[1:])
