"""An empty bucket for a test, and the environment that leads all clients to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from helpers.s3 import BUCKET, S3Server
from shardwriter.storage import objects

URL = f"s3://{BUCKET}/lrs2"
PREFIX = "lrs2"
"""Where in the bucket the store lies."""
ATTEMPTS = 3
"""How often a request is tried."""


@contextmanager
def bucket(server: S3Server, cache: Path, read_timeout: float = 20) -> Iterator[S3Server]:
    """Empty the bucket, lead all clients to it, and let caches lie below `cache`.

    Waits are short in this process. Processes that it starts wait as the product does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(objects, "ATTEMPTS", ATTEMPTS)
        patch.setattr(objects, "READ_TIMEOUT", timedelta(seconds=read_timeout))
        patch.setattr(objects, "LONGEST_RETRY", timedelta(seconds=30))
        server.empty()
        objects._connect.cache_clear()
        yield server
        objects._connect.cache_clear()  # clients that wait so shortly
