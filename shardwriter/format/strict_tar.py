"""tarfile without its leniency: it takes a damaged header, or a missing end, for the end of a tar."""

import tarfile
from typing import Self


class StrictTarInfo(tarfile.TarInfo):
    """Give it to `tarfile.open(..., tarinfo=StrictTarInfo)`: reading on behind damage raises tarfile.ReadError.

    A tar ends with blocks of zeros. Everything behind another end would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except END:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error}") from error


END: type[tarfile.HeaderError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
