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


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a block is the header of a member of this name and size, bytes, as stores write it."""
    return block[:NAME_BYTES] == name.encode().ljust(NAME_BYTES, b"\0") and block[_SIZE] == b"%011o\0" % size
