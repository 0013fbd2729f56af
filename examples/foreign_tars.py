"""Make a store of tars that others made: webdataset reads them, shardwriter.write_store writes them.

    inspect-shards 'their/train-{000000..000003}.tar'             shows what they hold
    python examples/foreign_tars.py STORE train their/train-*.tar
    python examples/foreign_tars.py STORE val their/val-*.tar     once for each split
    inspect-shards STORE --verify

Each sample of theirs is here `<key>.lips.npy`, `(frames, dim)`, and `<key>.json`. Both stay bytes until `samples` reads
them, so nothing is ever unpickled. Change it to what yours hold: it gives the key, the embedding `(dim, frames)` in
float16 or float32, and what the sample's json is to say. Any WebDataset reader opens the store,
loaders.ShardedEmbeddings gives batches of it, and train.py --trust_imported trains from it, where keys and dim are as
it expects.
"""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import webdataset

from shardwriter import write_store
from shardwriter.build.write_store import Sample

IDENTITY = {"name": "theirs", "imported": True}
"""What is known of the encoder, in your words; `imported` where its weights are not: then train.py asks."""


def samples(tars: Sequence[str]) -> Iterator[Sample]:
    """Read what others wrote."""
    paths = [str(Path(tar).resolve(strict=True)) for tar in tars]  # webdataset runs a command for `pipe:` and others
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        embedding = np.load(io.BytesIO(sample["lips.npy"]), allow_pickle=False)
        yield sample["__key__"], embedding.T.astype(np.float32), json.loads(sample["json"])


def main(store: str, split: str, *tars: str) -> None:
    """Write one split of a store."""
    count = write_store(store, samples(tars), split, IDENTITY, fps=25, dtype="float16")
    print(f"{store}: {count} utterances in {split}")


if __name__ == "__main__":
    main(*sys.argv[1:])
