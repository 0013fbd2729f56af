"""The dataset card of a store: for people, and for Hugging Face datasets, which opens the folder by it."""

from collections.abc import Mapping
from pathlib import Path

from shardwriter.catalog import read_store_record
from shardwriter.files import atomic_file
from shardwriter.format import CARD_FILE, TAR_SUFFIX


def write_card(store: Path, stored: Mapping[str, int]) -> None:
    """Publish the card.

    Args:
        store: The store.
        stored: Utterances stored, per split. A split with none is left out: there is no tar to open.
    """
    identity = read_store_record(store).identity
    files = "".join(
        f"      - split: {'validation' if split == 'val' else split}\n        path: {split}-*{TAR_SUFFIX}\n"
        for split, count in stored.items()
        if count
    )
    counts = "\n".join(f"| {split} | {count:,} |" for split, count in stored.items())
    encoder = ", ".join(f"{name} {value}" for name, value in identity.encoder.items() if value is not None)
    text = f"""---
configs:
  - config_name: default
    data_files:
{files}---

# Sharded embeddings

Each sample of the tar shards is `<key>.embedding.npy`, a ({identity.dim}, frames) {identity.dtype} array at
{identity.fps:g} frames per second, and `<key>.json`, which says what it was made from and which audio goes with it. Any
WebDataset reader opens them; `inspect-shards` shows them; `python train.py --shards` trains from them.

| split | utterances |
| --- | --- |
{counts}

Encoder: {encoder or "unknown"}.
"""
    with atomic_file(store / CARD_FILE) as stream:
        stream.write(text.encode())
