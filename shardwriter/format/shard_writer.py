"""Write one shard: samples in, one published tar and its index out."""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from shardwriter.format.files import sync_folder, temporary_path
from shardwriter.format.index import ShardRecord, write_index
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    INDEX_COLUMNS,
    METADATA_MEMBER,
    NPY_HEADER_BYTES,
    SCALE_MEMBER,
    TAR_SUFFIX,
    member_name,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The npz that an embedding was made from, as it was read.

    Attributes:
        mouth: Path relative to data_root.
        size: Bytes; None where the file was missing.
        mtime_ns: Modification time, nanoseconds.
        digest: xxh3_64, hexadecimal; None where it was not read whole.
    """

    mouth: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    digest: str | None = None


class ShardWriter:
    """A shard being written. Leaving the block publishes it; leaving by an exception leaves nothing behind.

    The bytes depend only on what is added: no time, owner or machine is recorded.

    Attributes:
        stored_bytes: Of the published tar.
        audio_bytes: Of the audio in it.
    """

    def __init__(self, store: Path, shard: str, plan: str) -> None:
        self.store = store
        self.shard = shard
        self.plan = plan
        self.stored_bytes = 0
        self.audio_bytes = 0
        self._rows: list[dict[str, Any]] = []
        self._path = store / f"{shard}{TAR_SUFFIX}"
        self._temporary = temporary_path(self._path)

    def __enter__(self) -> "ShardWriter":
        self._stream = _DigestingFile(self._temporary)
        self._tar = tarfile.TarFile(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def add(
        self,
        key: str,
        embedding: npt.NDArray[Any],
        metadata: Mapping[str, Any],
        source: Source = Source(),
        *,
        scale: npt.NDArray[np.float32] | None = None,
        audio: npt.NDArray[Any] | None = None,
    ) -> None:
        """Append a sample.

        Args:
            key: Its WebDataset key.
            embedding: `(dim, frames)`, in the store's dtype.
            metadata: What its json member says.
            source: Where it came from.
            scale: Of each row of an int8 embedding, `(dim,)`.
            audio: Samples of its wavs one after the other, see `embedded_audio`; where the store holds audio.
        """
        assert embedding.ndim == 2, embedding.shape
        self.audio_bytes += 0 if audio is None else audio.nbytes
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        members = {
            EMBEDDING_MEMBER: _npy(embedding),
            SCALE_MEMBER: None if scale is None else _npy(scale),
            METADATA_MEMBER: text,
            AUDIO_MEMBER: None if audio is None else _npy(audio),
        }
        row = _row(key, embedding.shape[1], source)
        for member, content in members.items():
            if content is not None:
                row[f"{INDEX_COLUMNS[member]}_offset"] = self._append(member_name(key, member), content)
                row[f"{INDEX_COLUMNS[member]}_length"] = len(content)
        self._rows.append(row)

    def copy(self, row: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Append a sample as another shard holds it.

        Args:
            row: Of that shard's index, with the columns of `INDEX_SCHEMA`.
            members: Content of its members, in the order of the tar.
        """
        places = {name: None for column in INDEX_COLUMNS.values() for name in (f"{column}_offset", f"{column}_length")}
        copied = {**row, **places}
        for member, content in members.items():
            copied[f"{INDEX_COLUMNS[member]}_offset"] = self._append(member_name(row["key"], member), content)
            copied[f"{INDEX_COLUMNS[member]}_length"] = len(content)
        self._rows.append(copied)

    def fail(self, key: str, reason: str, source: Source) -> None:
        """Record an utterance that could not be stored, and why."""
        self._rows.append({**_row(key, 0, source), "error": reason})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            try:
                self._stream.close()  # writes what is buffered, which a full disk refuses
            finally:
                self._temporary.unlink(missing_ok=True)

    def _publish(self) -> None:
        stored = any(row.get("error") is None for row in self._rows)
        if stored:
            self._tar.close()
            self._stream.sync()
            self._temporary.replace(self._path)
            sync_folder(self.store)
        else:
            self._path.unlink(missing_ok=True)  # of an earlier time, when something could be stored
        self.stored_bytes = self._stream.size if stored else 0
        record = ShardRecord(
            shard=self.shard,
            plan=self.plan,
            tar_size=self.stored_bytes,
            tar_digest=self._stream.digest() if stored else "",
            rows=len(self._rows),
        )
        write_index(self.store, record, self._rows)

    def _append(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names: the same bytes on every machine
        info.size = len(content)
        info.mode = 0o644
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(content))
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


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    assert buffer.tell() == NPY_HEADER_BYTES + array.nbytes, buffer.tell()
    return buffer.getvalue()


class _DigestingFile(io.RawIOBase):
    """A file that is digested as it is written, since it is written front to back."""

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
