"""Run one of our commands inside the test process."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """How a command ended, and what it wrote to its terminal."""

    code: object
    out: str
    err: str


def run_main(
    main: Callable[[Sequence[str] | None], object], arguments: Sequence[object], capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """Run a command's `main` with arguments, and leave logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("shardwriter")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
    return Outcome(ended.value.code, *capsys.readouterr())
