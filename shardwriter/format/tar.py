"""Read tars strictly: tarfile takes a damaged header, or a missing end, for the end of a tar."""

import tarfile
from typing import Final, Self

BLOCK_BYTES: Final = tarfile.BLOCKSIZE
"""Of a header; every member's content starts at a multiple of it."""

NAME_BYTES: Final = 100
"""Of a member's name in its header."""
_SIZE = slice(124, 136)

END: type[tarfile.HeaderError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
CUT = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class StrictTarInfo(tarfile.TarInfo):
    """Give it to `tarfile.open(..., tarinfo=StrictTarInfo)`: damage before the end raises tarfile.ReadError.

    A tar ends with blocks of zeros. Everything after another end would be lost without a word.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's block. A negative size would lead back to what was read already, for ever."""
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise tarfile.InvalidHeaderError(f"a size of {info.size:,} bytes")  # type: ignore[attr-defined]
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except END:
            raise
        except CUT as error:
            raise tarfile.ReadError(f"it breaks off at byte {archive.offset:,}") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error}") from error


class OwnTarInfo(StrictTarInfo):
    """The same for tars of stores, which hold plain files alone: other headers may stand for any number of bytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's block."""
        info = super().frombuf(buf, encoding, errors)
        if info.type != tarfile.REGTYPE:
            raise tarfile.InvalidHeaderError(f"an entry of type {info.type!r}; expected plain files")  # type: ignore[attr-defined]
        return info


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a block is the header of a member of this name and size, bytes, as stores write it."""
    return block[:NAME_BYTES] == name.encode().ljust(NAME_BYTES, b"\0") and block[_SIZE] == b"%011o\0" % size
