"""Augmented views: more embeddings of each utterance, of random crops and flips as the reference trains with.

A view is laid out as a split of its own, in the order of the split that it is a view of.
"""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from shardwriter.corpus.manifest_data import Manifest, Utterances
from shardwriter.format.names import view_key, view_split

AUGMENTED_SPLIT = "train"
"""The one split that has views: validation and test see the centre crop, as in the reference."""


def view_manifest(manifest: Manifest, view: int) -> Manifest:
    """The manifest of a split's view: the same mouths and examples, under keys and a split name of their own."""
    table = manifest.utterances.table
    keys = pa.array([view_key(key, view) for key in table["key"].to_pylist()], type=pa.string())
    utterances = Utterances(table.set_column(0, table.schema.field("key"), keys))
    return replace(manifest, split=view_split(manifest.split, view), utterances=utterances)


def with_views(manifests: Mapping[str, Manifest], views: int) -> dict[str, Manifest]:
    """The manifests, and those of `views` views of the training split where it is among them."""
    if AUGMENTED_SPLIT not in manifests:
        return dict(manifests)
    added = (view_manifest(manifests[AUGMENTED_SPLIT], view) for view in range(1, views + 1))
    return {**manifests, **{manifest.split: manifest for manifest in added}}
