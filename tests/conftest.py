"""Fixtures of all tests."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny tensors gain nothing from more, and tests start many

import pytest
from helpers.builds import quick_encoder

if TYPE_CHECKING:
    from helpers.s3 import S3Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts behind itself, with "&"


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Let builds of this module encode with a QuickEncoder."""
    with quick_encoder():
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator["S3Server"]:
    """Run an S3 server for the tests of a module; `helpers.bucket.bucket` empties it for each."""
    from helpers.s3 import s3_server  # here, so that tests that use none do not load it

    with s3_server() as running:
        yield running
