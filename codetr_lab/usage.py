"""Commands from dataclasses by tyro, with wrong usage said in one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro


def parse(commands: Any, *, prog: str, description: str, arguments: Sequence[str] | None = None) -> Any:
    """The command that the arguments name: an instance of one of the dataclasses in the union `commands`.

    Raises:
        SystemExit: code 2 after wrong usage, which was said in one line on stderr; 0 after `--help`.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                commands,
                prog=prog,
                description=description,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"{prog}: {one_line(errors.getvalue())}", file=sys.stderr)
        raise


def one_line(box: str) -> str:
    """Tyro's boxed complaint as one line: what is wrong, what may have been meant, where help is.

    Sections are parted by rules. The title lies in the frame, or in a section of its own where stdout is not UTF-8.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip(" │")
        if re.fullmatch("[─-]{3,}", text):
            sections.append([])
        elif not text.startswith(("╭", "╰")):
            sections[-1].append(text)
    parts = [" ".join(" ".join(section).split()) for section in sections]
    parts = [part for part in (parts if "╭" in box else parts[1:]) if part]
    if not parts:
        return "wrong usage; see --help"
    wrong = re.sub(r"^Error parsing __tyro\S*: ", "", parts[0]).rstrip(". ")
    hints = [re.sub(r"^Perhaps you meant: (\S+).*", r"did you mean \1?", part) for part in parts[1:]]
    return "; ".join([wrong, *hints])
