"""The log file of a build, which keeps every utterance where the terminal keeps what matters.

Apart from the command, to whose flags it owes nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from iianet.errors import StoreError
from iianet.terminal import PrintableFormatter, complain
from shardwriter.format.files import make_own_folder
from shardwriter.format.names import LOG_FOLDER
from shardwriter.storage.storage import Storage

logger = logging.getLogger(__name__)


@contextmanager
def log_file(storage: Storage, ending: str = "") -> Iterator[Path]:
    """Log to a file of its own below the store, while the block runs; gives its path.

    Raises:
        StoreError: It cannot be written.
    """
    folder = storage.staging / LOG_FOLDER
    try:
        make_own_folder(folder)
        path = folder / f"build-{datetime.now():%Y%m%d-%H%M%S-%f}{ending}.log"
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room or fix its rights, or choose "
            "another --shards folder"
        ) from error
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("shardwriter")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)  # the file keeps every utterance, the terminal what matters
    try:
        yield path
    except BaseException:
        logger.debug("stopped", exc_info=True)
        complain(f"log: {path}")
        raise
    finally:
        ours.setLevel(level)
        root.removeHandler(handler)
        handler.close()
