"""Write one shard: samples in, a tar and the rows of its index out, ready to be published."""

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import xxhash

from shardwriter.format.files import temporary_path
from shardwriter.format.index import MEMBER_COLUMNS, ShardRecord, index_table
from shardwriter.format.names import member_name
from shardwriter.format.npy import NPY_HEADER_BYTES
from shardwriter.format.sample import Failed, Sample, Source
from shardwriter.format.tar import BLOCK_BYTES, member_info


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard that is written and not published yet.

    Attributes:
        tar: Temporary file of the tar, synced; None where every utterance failed.
        tar_size: Bytes; 0 where there is no tar.
        tar_digest: xxh3_64 of the tar, hexadecimal.
        index: Rows of its index.
    """

    tar: Path | None
    tar_size: int
    tar_digest: str
    index: pa.Table

    @property
    def audio_bytes(self) -> int:
        """Bytes of the audio in it."""
        lengths: list[int] = self.index["audio_length"].drop_null().to_pylist()
        return sum(lengths) - NPY_HEADER_BYTES * len(lengths)

    def record(self, shard: str) -> ShardRecord:
        """What the index says of it under a name."""
        return ShardRecord(shard=shard, tar_size=self.tar_size, tar_digest=self.tar_digest, rows=len(self.index))


class ShardWriter:
    """A shard that is being written, in a temporary file. Leaving the block by an exception deletes it.

    The bytes depend only on what is added: no time, owner or machine is recorded.

    Args:
        staging: Folder for the file.
    """

    def __init__(self, staging: Path) -> None:
        self._rows: list[dict[str, Any]] = []
        self._temporary = temporary_path(staging / "shard")

    def __enter__(self) -> "ShardWriter":
        self._stream = _DigestingFile(self._temporary)
        self._tar = tarfile.TarFile(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, key: str, sample: Sample | Failed) -> None:
        """Append a sample, or record that an utterance could not be stored, and why."""
        if isinstance(sample, Failed):
            self._rows.append({**_row(key, 0, sample.source), "error": sample.reason})
            return
        row = _row(key, sample.frames, sample.source)
        for member, content in sample.members.items():
            row[f"{MEMBER_COLUMNS[member]}_offset"] = self._append(member_name(key, member), content)
            row[f"{MEMBER_COLUMNS[member]}_length"] = len(content)
        self._rows.append(row)

    def finish(self) -> WrittenShard:
        """End the tar."""
        index = index_table(self._rows)
        if all(row.get("error") is not None for row in self._rows):
            self._stream.close()
            self._temporary.unlink()
            return WrittenShard(tar=None, tar_size=0, tar_digest="", index=index)
        self._tar.close()
        self._stream.sync()
        self._stream.close()
        size, digest = self._stream.size, self._stream.digest()
        return WrittenShard(tar=self._temporary, tar_size=size, tar_digest=digest, index=index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()  # writes what is buffered, which a full disk refuses
        finally:
            if kind is not None:
                self._temporary.unlink(missing_ok=True)

    def _append(self, name: str, content: bytes) -> int:
        start = self._tar.offset + BLOCK_BYTES
        self._tar.addfile(member_info(name, len(content)), io.BytesIO(content))
        return start


def _row(key: str, frames: int, source: Source) -> dict[str, Any]:
    return {
        "key": key,
        "mouth": source.mouth,
        "frames": frames,
        "source_size": source.size,
        "source_mtime_ns": source.mtime_ns,
        "source_digest": source.digest,
    }


def source_of(row: Mapping[str, Any]) -> Source:
    """What a row of an index says of its source."""
    return Source(
        mouth=row["mouth"], size=row["source_size"], mtime_ns=row["source_mtime_ns"], digest=row["source_digest"]
    )


class _DigestingFile(io.RawIOBase):
    """A file that is digested as it is written, front to back: of what is meant, not of what a disk then gives back."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb", buffering=1 << 20)
        self._digest = xxhash.xxh3_64()
        self.size = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def digest(self) -> str:
        return str(self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()
        super().close()
