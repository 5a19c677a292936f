"""The command `codetr`; each command lives in `codetr_lab/commands/`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from codetr_lab.commands.data import Data
from codetr_lab.commands.demo import Demo
from codetr_lab.commands.experiment import Experiment
from codetr_lab.commands.fiftyone import FiftyOne
from codetr_lab.commands.machine import Bench, BuildOps, Doctor
from codetr_lab.commands.models import Models
from codetr_lab.commands.predict import Predict
from codetr_lab.commands.train import Eval, Train
from codetr_lab.usage import parse

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Experiment, tyro.conf.subcommand("experiment")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[FiftyOne, tyro.conf.subcommand("fiftyone")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[BuildOps, tyro.conf.subcommand("build-ops")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def is_users(error: BaseException) -> bool:
    """Whether an error tells a person what to change: our own ValueErrors, and whatever the system refuses."""
    ours = type(error).__module__.split(".")[0] in ("codetr_lab", "apps")
    return isinstance(error, OSError) or (isinstance(error, ValueError) and ours)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 after a user's mistake, said in one line on stderr; 130 when stopped. A crash of ours keeps its traceback.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    description = "See how label assignment trains a DETR."
    command = parse(Command, prog="codetr", description=description, arguments=arguments)
    try:
        return command.run()
    except KeyboardInterrupt as stop:
        print(f"\ncodetr: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if not is_users(error):
            raise
        print(f"codetr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
