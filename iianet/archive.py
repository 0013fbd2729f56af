"""The zip archives that torch.save writes, checked whole: torch's own reader does not look at their checksums."""

import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from iianet.errors import WeightsError

SIGNATURE = b"PK\x03\x04"
"""First bytes of a zip archive. Files of torch before 1.6 begin otherwise, and hold no checksums."""
CHUNK_BYTES = 1 << 20
DIRECTORY = 0x10
"""Bit of a member's attributes; torch's reader gives uninitialised memory for a member that has it."""

DAMAGE = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What zipfile raises on cut or altered archives."""


def refuse_damaged_archive(stream: BinaryIO, path: Path) -> None:
    """Read an archive of torch.save to its end, and compare every member with its CRC; other files are passed over.

    Members are read in pieces, and are as large as they are in the file, so no archive takes more memory than its size.

    Args:
        stream: The file, from its beginning; it is there again afterwards.
        path: Its name, for the error message.

    Raises:
        WeightsError: The archive is cut, was altered, or is none of torch.save's.
    """
    is_archive = stream.read(len(SIGNATURE)) == SIGNATURE
    stream.seek(0)
    if not is_archive:
        return
    try:
        problem = _problem(stream)
    except DAMAGE as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise WeightsError(
            f"{path}: is damaged: {problem}; expected the archive that torch.save wrote, with every checksum right. "
            "Copy it or download it again, or take another one: of a training run, any of its *.ckpt"
        )
    stream.seek(0)


def _problem(stream: BinaryIO) -> str | None:
    """What is wrong with an archive, if not already an exception of zipfile says so."""
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        size = stream.seek(0, 2)
        claimed = sum(member.file_size for member in members)
        if claimed > size:
            return f"its members claim {claimed:,} bytes, and the file has {size:,}"
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                return f"{member.filename} is compressed, which torch.save does not do"
            if member.external_attr & DIRECTORY:
                return f"{member.filename} is marked as a folder, which torch would not read"
            with archive.open(member) as content:
                while content.read(CHUNK_BYTES):  # raises at its end where the CRC differs
                    pass
    return None
