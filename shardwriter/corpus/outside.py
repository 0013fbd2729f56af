"""Paths that come out of stores and tars, which anybody may have written: they are to lie below data_root."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from iianet.wording import counted, printable
from shardwriter.corpus.manifest_data import Manifest

_OUTSIDE = r"^/|(^|/)\.\.(/|$)|\x00"
"""Absolute paths, those with `..`, and those that no system takes."""


def is_outside(path: str) -> bool:
    """Whether a path that should be relative to data_root leads out of it."""
    return re.search(_OUTSIDE, path) is not None


def refuse_outside(manifest: Manifest, store: str) -> None:
    """Raise StoreError where files of a manifest that a store recorded lie outside its data_root."""
    columns = (manifest.utterances.column("mouth"), manifest.examples.column("mixture"))
    paths = pa.concat_arrays([*columns, manifest.examples.column("source")])
    outside = paths.filter(pc.match_substring_regex(paths, _OUTSIDE)).unique()
    if len(outside):
        raise StoreError(
            f"{store}: {manifest.split} names {counted(len(outside), 'file')} outside data_root, which is "
            f"{manifest.data_root}, e.g. {printable(outside[0], keep='')}; expected paths below it, since anybody may "
            "have written a store. Build it with a --data_root above all its files, or where you trust it, give "
            "--set datamodule.data_config.allow_outside_root=true"
        )
