"""Tars, npy and pickles as other tools make them."""

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
    """Write an array as npy; `version` is that of the npy format."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version=version, allow_pickle=allow_pickle)
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of members, by name. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def embedding(number: int, dim: int = 6, dtype: str = "float16") -> npt.NDArray[Any]:
    """Draw a small embedding, `(dim, 3 + number)`; each number has its own."""
    return np.random.default_rng(number).normal(size=(dim, 3 + number)).astype(dtype)


def own_members(key: str, values: npt.NDArray[Any], **metadata: Any) -> dict[str, bytes]:
    """Make the members of a sample as our own stores have them."""
    return {f"{key}.embedding.npy": npy(values), f"{key}.json": json.dumps(metadata).encode()}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def traps(path: Path) -> tuple[bytes, bytes]:
    """Make a pickle and an npy of objects; whoever unpickles one of them makes a file at `path`."""
    return pickle.dumps(Trap(path)), npy(np.array([Trap(path)], dtype=object), allow_pickle=True)
