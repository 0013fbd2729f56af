"""The page cache: put files out of it, and ask how much of them it holds."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder and its subfolders."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def warm(paths: Sequence[Path]) -> None:
    """Read files whole."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def evict(paths: Sequence[Path]) -> None:
    """Write files back, and advise the kernel to forget them; what is mapped somewhere stays."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(paths: Sequence[Path]) -> float:
    """Pages of these files that lie in memory, of all their pages, as mincore says."""
    held = [_resident(path) for path in paths if path.stat().st_size]
    return sum(count for count, _ in held) / max(sum(pages for _, pages in held), 1)


def _resident(path: Path) -> tuple[int, int]:
    """Pages in memory, and all pages, of one file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = -(-len(view) // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
        failed = _libc.mincore(address, length, states)
        del view  # a map with views on it cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore failed on {path}")
    return int((np.frombuffer(bytes(states), dtype=np.uint8) & 1).sum()), pages
