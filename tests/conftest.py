"""Fixtures of all tests."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny tensors gain nothing from more, and tests start many

import pytest
from helpers.builds import quick_encoder

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts behind itself, with "&"


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Builds of this module encode with a stand-in that costs nothing."""
    with quick_encoder():
        yield
