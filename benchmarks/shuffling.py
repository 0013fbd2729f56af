"""How well does our order mix, which reads a few blocks at a time, against other ways?

    python benchmarks/shuffling.py [--examples 100000] [--epochs 5] [--folder benchmarks/results]

A block is 1000 examples that lie together, as a shard does. Two questions: how far from each other do the examples of
one block come in an epoch, and from how many blocks are the 32 examples of a batch? Ours is `loaders.order.Order`;
webdataset's is its own shuffle filter, behind permuted shards of 1000. Writes shuffling.md and shuffling.png.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import webdataset
from machine import machine
from matplotlib import pyplot
from matplotlib.axes import Axes
from tabulate import tabulate

from loaders.order import Indices, Order

BLOCK, BATCH_SIZE = 1000, 32
PAIRS = 200
"""Of each block, whose distance is taken."""


class Mixed(NamedTuple):
    """What a way of shuffling did: distances within blocks, in examples, and distinct blocks of each batch."""

    name: str
    distances: Indices
    blocks: Indices


def main() -> None:
    """Shuffle, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    found = [mixed(name, way, arguments.examples, arguments.epochs) for name, way in ways().items()]
    text = report(found, arguments)
    print(text)
    (arguments.folder / "shuffling.md").write_text(text, encoding="utf-8")
    plot(found, arguments)


def ways() -> dict[str, Callable[[int, int], Indices]]:
    """Each takes the number of examples and an epoch, and returns the order."""
    return {
        "storage order": lambda count, _: np.arange(count),
        "webdataset, shuffle(1000)": lambda count, epoch: buffered(count, epoch, 1000),
        "webdataset, shuffle(5000)": lambda count, epoch: buffered(count, epoch, 5000),
        "ours, windows of 4 blocks": lambda count, epoch: windows(count, epoch, 4),
        "ours, windows of 16 blocks": lambda count, epoch: windows(count, epoch, 16),
        "full permutation": lambda count, epoch: np.random.default_rng(epoch).permutation(count),
    }


def windows(count: int, epoch: int, window_blocks: int) -> Indices:
    """Ours."""
    everything = np.arange(count, dtype=np.int64)
    order = Order(
        utterance_of_example=everything,
        eligible=everything,
        seed=0,
        batch_size=BATCH_SIZE,
        shuffle=True,
        dynamic_mixing=False,
        drop_last=True,
        block_size=BLOCK,
        window_blocks=window_blocks,
    )
    return order.epoch(epoch).example


def buffered(count: int, epoch: int, buffer: int) -> Indices:
    """webdataset's: shards permuted, then its buffer, filled before the first is given out."""
    shards = np.random.default_rng(epoch).permutation(-(-count // BLOCK))
    stream = (number for shard in shards for number in range(shard * BLOCK, min((shard + 1) * BLOCK, count)))
    shuffled = webdataset.shuffle(buffer, initial=buffer, rng=random.Random(epoch))
    return np.fromiter(shuffled(stream), dtype=np.int64)


def mixed(name: str, way: Callable[[int, int], Indices], count: int, epochs: int) -> Mixed:
    """Both measures, of some epochs."""
    distances, blocks = [], []
    for epoch in range(epochs):
        order = way(count, epoch)
        assert len(np.unique(order)) == count, name
        position = np.empty(count, dtype=np.int64)
        position[order] = np.arange(count)
        distances.append(_distances(position, epoch))
        batches = order[: count // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE) // BLOCK
        blocks.append(np.array([len(np.unique(batch)) for batch in batches]))
    return Mixed(name, np.concatenate(distances), np.concatenate(blocks))


def _distances(position: Indices, seed: int) -> Indices:
    """Between the positions of two random examples of one block."""
    of_block = position[: len(position) // BLOCK * BLOCK].reshape(-1, BLOCK)
    first, second = np.random.default_rng(seed).integers(BLOCK, size=(2, len(of_block), PAIRS))
    apart = np.abs(np.take_along_axis(of_block, first, 1) - np.take_along_axis(of_block, second, 1))
    chosen: Indices = apart[first != second]
    return chosen


def report(found: list[Mixed], arguments: argparse.Namespace) -> str:
    """The table, in Markdown."""
    rows = [
        (
            one.name,
            *np.percentile(one.distances, [50, 5, 95]).astype(int),
            int(one.distances.max()),
            float(one.blocks.mean()),
            *np.percentile(one.blocks, [5, 95]).astype(int),
        )
        for one in found
    ]
    headers = ["", "distance, median", "5 %", "95 %", "most", "blocks in a batch, mean", "5 %", "95 %"]
    table = tabulate(rows, headers=headers, floatfmt=".1f", intfmt=",", tablefmt="github")
    where = machine(torch.device("cpu"), "webdataset")
    options = (
        f"{arguments.examples:,} examples in blocks of {BLOCK}, {arguments.epochs} epochs, batches of {BATCH_SIZE}. "
        f"Distance: between two random examples of one block, in examples."
    )
    return f"# Shuffling\n\n{where}\n\n{options}\n\n{table}\n\n![shuffling](shuffling.png)\n"


def plot(found: list[Mixed], arguments: argparse.Namespace) -> None:
    """Both measures side by side."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = ["0.6", "#e6ab02", "#d95f02", "#1b9e77", "#0b5c45", "#3b4cc0"]
    for one, colour in zip(found, colours, strict=True):
        steps = np.sort(one.distances)
        left.plot(steps, np.linspace(0, 100, len(steps)), color=colour, linewidth=2, label=one.name)
        counts = np.bincount(one.blocks, minlength=BATCH_SIZE + 1)
        right.step(
            np.arange(BATCH_SIZE + 1), 100 * counts.cumsum() / counts.sum(), where="post", color=colour, linewidth=2
        )
    left.set_xscale("log")
    left.set_xlim(10, arguments.examples)
    _label(left, "How far apart two examples of a block come", "distance, examples", "% of pairs, up to that")
    _label(right, f"From how many blocks a batch of {BATCH_SIZE} is", "distinct blocks", "% of batches, up to that")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(arguments.folder / "shuffling.png", dpi=130)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
