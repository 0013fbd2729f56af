"""How long does opening a store of a million utterances take, and how much memory?

    python benchmarks/million.py [--utterances 1000000] [--folder build/million] [--output FILE.md] [--profile]

The embeddings are tiny, (4, 2), since only the index and the order grow with their number. The store is made once by
write_store, and used again. Each figure is of a process of its own: seconds from after the imports, and how much more
memory it then held (`VmHWM` of /proc, the highest that it was, and `VmRSS` after the imports).
"""

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from made_utterances import key_of, once
from spread import spread
from tabulate import tabulate
from tqdm import tqdm

from loaders import ShardedEmbeddings
from loaders.reader import StoreReader
from shardwriter import write_store
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

SHAPE = (4, 2)
SECONDS, MEGABYTES = 2.0, 300.0
"""To be reached until the first batch."""


def main() -> None:
    """Make the store, measure in processes of their own, and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("build/million"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", action="store_true", help="print what the first batch spends its time on, and end")
    parser.add_argument("--child", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    store = arguments.folder / str(arguments.utterances)
    if arguments.child:
        print(json.dumps(measure(MEASURED[arguments.child], store)))
        return
    started = time.monotonic()
    once(store, lambda begun: write_store(begun, samples(arguments.utterances)))
    made = time.monotonic() - started
    if arguments.profile:
        profile(store)
        return
    children = [sys.executable, __file__, "--folder", arguments.folder, "--utterances", arguments.utterances]
    text = report(run_all(list(map(str, children)), arguments.rounds), made, arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def samples(count: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Keys as long as real ones, and one tiny embedding for all."""
    embedding = np.ones(SHAPE, dtype=np.float16)
    for number in tqdm(range(count), desc="utterances", delay=1.0, leave=False):
        yield key_of(number), embedding, {}


def first_batch(store: Path) -> object:
    """What training waits for."""
    dataset = ShardedEmbeddings(store)
    return dataset, next(iter(dataset))


def reader(store: Path) -> object:
    """The index alone."""
    return StoreReader([Snapshot.open(Folder(store))], "train")


MEASURED: dict[str, Callable[[Path], object]] = {
    "ShardedEmbeddings until the first batch": first_batch,
    "its index, as train.py opens it": reader,
}


def measure(run: Callable[[Path], object], store: Path) -> dict[str, float]:
    """Seconds and megabytes of this process."""
    before = _status("VmRSS")
    started = time.perf_counter()
    kept = run(store)
    seconds = time.perf_counter() - started
    after, highest = _status("VmRSS"), _status("VmHWM")
    assert kept
    return {"s": seconds, "MB grown": after - before, "MB grown at the highest": highest - before, "MB RSS": after}


def run_all(command: list[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The figures of every process, what is measured alternating."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name in MEASURED:
            done = subprocess.run([*command, "--child", name], check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout))
    return found


def profile(store: Path) -> None:
    """Print the functions that the first batch spends most in."""
    with cProfile.Profile() as profiler:
        kept = first_batch(store)
    assert kept
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def report(found: dict[str, list[dict[str, float]]], made: float, arguments: argparse.Namespace) -> str:
    """The table, in Markdown."""
    rows = [
        (name, what, *spread([figures[what] for figures in processes]))
        for name, processes in found.items()
        for what in processes[0]
    ]
    table = tabulate(rows, headers=["", "", "median", "lowest", "highest"], floatfmt=".2f", tablefmt="github")
    first = found["ShardedEmbeddings until the first batch"]
    reached = {
        f"{SECONDS:.0f} s": spread([figures["s"] for figures in first])[0] <= SECONDS,
        f"{MEGABYTES:.0f} MB": spread([figures["MB grown at the highest"] for figures in first])[0] <= MEGABYTES,
    }
    targets = ", ".join(f"{target}: {'reached' if yes else 'missed'}" for target, yes in reached.items())
    options = f"{arguments.utterances:,} utterances of {SHAPE}, 1000 a shard, {arguments.rounds} processes each."
    writing = f"write_store took {made:.0f} s." if made > 1 else "The store was there already."
    where = machine(torch.device("cpu"), "pyarrow")
    aim = f"Targets, until the first batch: {targets}."
    return f"# Opening a large store\n\n{where}\n\n{options} {writing}\n\n{table}\n\n{aim}\n"


def _status(name: str) -> float:
    """A line of /proc/self/status, megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
