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
    """Builds of this module encode with a stand-in that costs nothing."""
    with quick_encoder():
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator["S3Server"]:
    """An S3 server on loopback for a module's tests; `helpers.remote.bucket` empties it for each."""
    from helpers.s3 import s3_server  # here, so that tests that use none do not load it

    with s3_server() as running:
        yield running
