"""Read a Parquet file: every page is checked, and each column is one piece of memory.

pq.read_table gives a column in eight pieces, so that whoever needs it whole copies it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(source: Path | IO[bytes], columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file whole.

    Args:
        source: Path, or the open file.
        columns: To read, in the file's order; all by default.

    Raises:
        pa.ArrowException: It is damaged. OSError, KeyError, TypeError and ValueError may be of damage, too.
    """
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
        return file.read(None if columns is None else list(columns))
