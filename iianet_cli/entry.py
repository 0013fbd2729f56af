"""Where the installed commands and train.py start: before the imports, which take seconds, so that Ctrl-C ends them."""

import os
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from iianet.interruption import INTERRUPTED


def build_shards() -> None:
    """Start build-shards."""
    _main_of("shardwriter.build_cli")()


def inspect_shards() -> None:
    """Start inspect-shards."""
    _main_of("shardwriter.inspect_cli")()


def train(prog: str = "train-iianet") -> None:
    """Start the training command.

    Args:
        prog: Name of the command in its help and errors.
    """
    _main_of("iianet_cli.train_cli")(prog=prog)


def _main_of(module: str) -> Callable[..., Any]:
    """Import a command's `main`; Ctrl-C meanwhile ends the process as it would later.

    It ends there and then: libraries turn an exception in the middle of their imports into errors of their own.
    """
    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, _end)
    try:
        main: Callable[..., Any] = import_module(module).main
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, before)
    return main


def _end(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
