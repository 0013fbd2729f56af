"""A split's utterances and examples, whatever they were read from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from shardwriter.corpus.tables import EXAMPLE_SCHEMA, Examples, Utterances, hash_order

DIGESTED_ROWS = 65536
"""Lines put together at a time."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A split's utterances in hash order, and their examples, utterance by utterance.

    Attributes:
        split: train, val or test.
        data_root: Folder that every path is relative to.
        utterances: In hash order of their keys.
        examples: Those of utterance 0, then those of utterance 1, ...; within one, in the corpus' own order.
    """

    split: str
    data_root: Path
    utterances: Utterances
    examples: Examples

    def digest(self) -> str:
        """Which examples there are, whatever the folders they lie in: 16 hexadecimal digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        keys = self.utterances.column("key").take(self.examples.column("utterance"))
        mixtures = pc.replace_substring_regex(self.examples.column("mixture"), pattern="^.*/", replacement="")
        numbers = [self.examples.column(name).cast(pa.string()) for name in ("speaker", "num_samples")]
        lines = pc.binary_join_element_wise(keys, mixtures, *numbers, "\t")
        digest = xxhash.xxh3_64()
        for start in range(0, len(lines), DIGESTED_ROWS):
            digest.update("".join(f"{line}\n" for line in lines.slice(start, DIGESTED_ROWS).to_pylist()).encode())
        return str(digest.hexdigest())

    def utterance_of_example(self) -> npt.NDArray[np.int64]:
        """Index of each example's utterance, `(examples,)`."""
        return self.examples.numbers("utterance")

    def num_samples(self) -> npt.NDArray[np.int64]:
        """Length of each example, samples, `(examples,)`."""
        return self.examples.numbers("num_samples")


def arrange(split: str, data_root: Path, utterances: pa.Table, examples: pa.Table) -> Manifest:
    """Put utterances (rows of `UTTERANCE_SCHEMA`) and examples (of `EXAMPLE_SCHEMA`, whose `utterance` is a row of the
    former) into hash order."""
    order = hash_order(utterances["key"])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    placed = place[examples["utterance"].to_numpy()]
    arranged = np.argsort(placed, kind="stable")
    moved = examples.take(arranged).set_column(0, EXAMPLE_SCHEMA.field("utterance"), pa.array(placed[arranged]))
    return Manifest(
        split=split, data_root=data_root, utterances=Utterances(utterances.take(order)), examples=Examples(moved)
    )
