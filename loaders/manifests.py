"""Which examples there are: as the corpus' own lists say, or where they are not on this machine, as stores recorded."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from iianet.config.schema import Config
from iianet.errors import ManifestError
from shardwriter.corpus.manifest import Manifest, arrange, has_manifest, load_manifests, manifest_folders
from shardwriter.store.catalog import Catalog

logger = logging.getLogger(__name__)


def split_manifests(config: Config, catalogs: Sequence[Catalog], splits: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of some splits.

    Raises:
        ManifestError: One cannot be had, or contradicts itself.
        StoreError: A store does not say where its paths start.
    """
    folders = manifest_folders(config)
    own = [split for split in splits if not catalogs or has_manifest(folders[split])]
    recorded = catalogs[0].record.data_root if len(catalogs) == 1 else None
    manifests = load_manifests(config, own, recorded) if own else {}
    for split in splits:
        if split not in manifests:
            manifests[split] = joined(recorded_manifests(config, catalogs, split))
            logger.info("%s: no manifest in %s; the store's own audio lists decide", split, folders[split])
    return manifests


def recorded_manifests(
    config: Config, catalogs: Sequence[Catalog], split: str, root: Path | None = None, complete: bool = False
) -> list[Manifest]:
    """What each store recorded of a split, see `Catalog.manifest`; `root` wins over the config's data_root."""
    configured = config.datamodule.data_config.data_root
    given = root or (Path(os.path.abspath(configured)) if configured else None)
    return [catalog.manifest(split, given, complete=complete) for catalog in catalogs]


def joined(manifests: Sequence[Manifest]) -> Manifest:
    """The manifests of several stores as one, with paths relative to their common ancestor.

    Raises:
        ManifestError: Two of them have one key.
    """
    first = manifests[0]
    if len(manifests) == 1:
        return first
    root = Path(os.path.commonpath([manifest.data_root for manifest in manifests]))
    utterances, examples, before = [], [], 0
    for manifest in manifests:
        prefix = manifest.data_root.relative_to(root).as_posix()
        utterances.append(_prefixed(manifest.utterances.table, ["mouth"], prefix))
        moved = pc.add(manifest.examples.table["utterance"], before)
        examples.append(
            _prefixed(manifest.examples.table.set_column(0, "utterance", moved), ["mixture", "source"], prefix)
        )
        before += len(manifest.utterances)
    together = pa.concat_tables(utterances)
    counted = pc.value_counts(together["key"])
    doubled = counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1))
    if len(doubled):
        raise ManifestError(
            f"{first.split}: {len(doubled)} keys are in more than one of the stores (e.g. {doubled[0]['values']}). "
            "Build the stores with datamodule.data_config.key_from: path and a common data_root: keys are paths then."
        )
    return arrange(first.split, root, together, pa.concat_tables(examples))


def _prefixed(table: pa.Table, columns: Sequence[str], prefix: str) -> pa.Table:
    """The table with a folder put before the paths in some columns."""
    for name in columns if prefix != "." else ():
        paths = pc.binary_join_element_wise(pa.scalar(prefix), table[name], "/")
        table = table.set_column(table.schema.get_field_index(name), name, paths)
    return table
