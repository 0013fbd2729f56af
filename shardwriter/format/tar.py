"""Read tars strictly: tarfile takes a damaged header, or a missing end, for the end of a tar."""

import tarfile
from typing import Final, Self

BLOCK_BYTES: Final = tarfile.BLOCKSIZE
"""Length of a header; every member's content starts at a multiple of it."""

NAME_BYTES: Final = 100
"""Longest name of a member in its header."""
_SIZE = slice(124, 136)

END: type[tarfile.HeaderError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
CUT = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]

EXTENSIONS = tuple(bytes([kind]) for kind in b"LKxgX")
"""Types of headers that say more of the next one: long names, and pairs of key and value."""
EXTENSION_BYTES = 1 << 20
"""Longest of them; each is read into memory."""


class StrictTarInfo(tarfile.TarInfo):
    """Give it to `tarfile.open(..., tarinfo=StrictTarInfo)`: damage before the end raises tarfile.ReadError.

    A tar ends with blocks of zeros. Everything after another end would be lost without a word. Headers whose sizes
    would lead backwards, or fill the memory, are damage too, and so are sparse files, which unpack to any size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's block, before what it announces is read; a negative size would lead backwards for ever."""
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in EXTENSIONS and info.size > EXTENSION_BYTES):
            raise tarfile.InvalidHeaderError(f"a header that announces {info.size:,} bytes")  # type: ignore[attr-defined]
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header."""
        try:
            info = super().fromtarfile(archive)
            if info.size < 0 or info.issparse():
                what = "is a sparse file" if info.issparse() else f"has {info.size:,} bytes"
                raise tarfile.ReadError(f"at byte {archive.offset:,}: {info.name[:100]!r} {what}; expected a plain one")
            return info
        except RecursionError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: a chain of headers without end") from error
        except END:
            raise
        except CUT as error:
            raise tarfile.ReadError(f"it breaks off at byte {archive.offset:,}") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error}") from error

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Read no map of a sparse file, which may be of any length."""
        raise tarfile.ReadError("it has a sparse file; expected plain ones")


class OwnTarInfo(StrictTarInfo):
    """The same for tars of stores, which hold plain files alone: other headers may stand for any number of bytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's block."""
        info = super().frombuf(buf, encoding, errors)
        if info.type != tarfile.REGTYPE:
            raise tarfile.InvalidHeaderError(f"an entry of type {info.type!r}; expected plain files")  # type: ignore[attr-defined]
        return info


def member_info(name: str, size: int) -> tarfile.TarInfo:
    """What stores write of a member: mtime 0, uid and gid 0, no names, so the same bytes on every machine."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a block is the header of a member of this name and size, bytes, as stores write it."""
    return block[:NAME_BYTES] == name.encode().ljust(NAME_BYTES, b"\0") and block[_SIZE] == b"%011o\0" % size
