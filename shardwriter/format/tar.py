"""Read tars strictly: tarfile takes a damaged header, or a missing end, for the end of a tar."""

import tarfile
from typing import Self

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
