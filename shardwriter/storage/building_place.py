"""Where a store is built, and where what is written there goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardwriter.format.names import plan_number
from shardwriter.storage.lease import claimed
from shardwriter.storage.locate import Cache, is_remote, store_folder
from shardwriter.storage.mirror import forget_written, open_mirror
from shardwriter.storage.objects import RemoteStore
from shardwriter.storage.outlet import Folder, Outlet, uploading


@contextmanager
def place_to_build(word: str, cache: Cache) -> Iterator[tuple[Path, Outlet]]:
    """The folder to build a store in, and where what is written there goes.

    Raises:
        StoreError: What is behind a URL cannot be had or written, or another build is at it.
    """
    if not is_remote(word):
        yield store_folder(word, cache), Folder()
        return
    with claimed(RemoteStore.at(word)) as claim:
        ending = "-build"  # a folder of its own: it holds what is not uploaded yet
        before = forget_written(word, cache.folder, ending)
        plans = {name: file.version for name, file in before.items() if plan_number(name) is not None}
        mirror = open_mirror(word, cache.folder, cache.limit, ending)
        with uploading(mirror, plans, claim.check) as upload:
            yield mirror.folder, upload
