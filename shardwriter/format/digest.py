"""xxh3_64 of files, read in pieces."""

from collections.abc import Callable
from typing import IO

import xxhash

CHUNK_BYTES = 1 << 20


def digest_of(stream: IO[bytes], progress: Callable[[int], object] = lambda _: None) -> tuple[str, int]:
    """Digest of what is left of a stream, 16 hexadecimal digits, and how many bytes it was."""
    digest, size = xxhash.xxh3_64(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return str(digest.hexdigest()), size
