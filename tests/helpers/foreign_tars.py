"""Tars that others made, for tests."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def npy(array: object, *, allow_pickle: bool = False, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version=version, allow_pickle=allow_pickle)
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write members under their names, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def embedding(number: int, dim: int = 6, dtype: str = "float16") -> npt.NDArray[Any]:
    """A small embedding, `(dim, 3 + number)`, of its own for each number."""
    return np.random.default_rng(number).normal(size=(dim, 3 + number)).astype(dtype)


def own_members(key: str, values: npt.NDArray[Any], **metadata: Any) -> dict[str, bytes]:
    """A sample as a store's own."""
    return {f"{key}.embedding.npy": npy(values), f"{key}.json": json.dumps(metadata).encode()}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def traps(path: Path) -> tuple[bytes, bytes]:
    """A pickle, and an npy of objects, that make a file at `path` where they are unpickled."""
    return pickle.dumps(Trap(path)), npy(np.array([Trap(path)], dtype=object), allow_pickle=True)
