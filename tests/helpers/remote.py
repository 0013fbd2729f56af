"""A bucket on loopback, and commands that use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import fsspec
import pytest
import tenacity

from helpers.s3 import BUCKET, S3Server, s3_server

URL = f"s3://{BUCKET}/lrs2"
PREFIX = "lrs2"


@contextmanager
def bucket(cache: Path, read_timeout: float = 20) -> Iterator[S3Server]:
    """A server, and an environment that leads all S3 clients to it and puts mirrors below `cache`; waits are short."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": read_timeout}})
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_none())
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of clients of another server
        urlopen(Request(f"{server.endpoint}/moto-api/reset", method="POST")).close()  # moto keeps buckets by process
        boto3.client("s3", endpoint_url=server.endpoint).create_bucket(Bucket=BUCKET)
        yield server
        fsspec.get_filesystem_class("s3").clear_instance_cache()
