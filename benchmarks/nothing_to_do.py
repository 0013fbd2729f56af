"""How long does a build take that finds nothing to do, how much memory, and does it write anything?

    python benchmarks/nothing_to_do.py [--utterances 1000000] [--folder build/nothing-to-do] [--output FILE.md]

The corpus is made once: lists of two speakers' mixtures, and for every mouth a link to one small npz. Its store is
written once, by the product's own build, with one embedding for all in place of an encoder. Then build-shards runs
again, in a process of its own each time. Beside it, another process asks the system for size and time of every npz,
which the build has to do too: seconds beyond that are the build's. Memory is `VmHWM` of /proc, the highest that it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import machine
from made_utterances import key_of, once
from spread import spread
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import load_config
from shardwriter.build.build import build
from shardwriter.build.difference import STAT_THREADS
from shardwriter.build.options import BuildOptions
from shardwriter.build_cli import main as build_shards
from shardwriter.encode.clips import source_state
from shardwriter.encode.sources import Planned, finish_sample
from shardwriter.encode.write_shards import Progress, write_shards
from shardwriter.execute.executor import Job
from shardwriter.format.plan import ShardTask
from shardwriter.format.record import Identity
from shardwriter.storage.folder import Folder

NUM_SAMPLES = 640
SECONDS, GIGABYTES = 30.0, 1.0
"""Targets: seconds beyond the stats, and memory."""


def main() -> None:
    """Make what is missing, measure, and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("build/nothing-to-do"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = (arguments.folder / str(arguments.utterances)).absolute()
    if arguments.child:
        print(json.dumps(measure(MEASURED[arguments.child], folder)))
        return
    once(folder, lambda begun: make_corpus(begun, arguments.utterances))
    config = load_config(folder / "config.yml")
    build(config, Folder(folder / "store"), BuildOptions(splits=("train",), device=CPU, executor=SameForAll()))
    before = listing(folder / "store")
    children = [sys.executable, __file__, "--folder", arguments.folder, "--utterances", arguments.utterances]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
    for _ in tqdm(range(arguments.rounds), desc="rounds", leave=False):
        for name in MEASURED:
            command = [*map(str, children), "--child", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    text = report(found, len(before), listing(folder / "store") == before, arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


CPU = torch.device("cpu")


def make_corpus(folder: Path, count: int) -> None:
    """Mixtures of two speakers, and a config."""
    final = folder.with_name(folder.name.removesuffix(".begun"))
    (folder / "mouths").mkdir(parents=True)
    np.savez(folder / "one.npz", data=np.zeros((1, 96, 96), dtype=np.uint8))
    names = [key_of(number) for number in range(count)]
    for name in tqdm(names, desc="links", leave=False):
        (folder / "mouths" / f"{name}.npz").symlink_to("../one.npz")
    pairs = list(zip(names[::2], names[1::2], strict=True))
    for split, listed in (("tr", pairs), ("cv", []), ("tt", [])):
        lists = folder / "json" / split
        lists.mkdir(parents=True)
        mixtures = [f"audio/{one}_{other}.wav" for one, other in listed]
        write(lists / "mix.json", [[mixture, NUM_SAMPLES] for mixture in mixtures])
        for kind, which in (("s1", 0), ("s2", 1)):
            spoken = [(pair[which], mixture) for pair, mixture in zip(listed, mixtures, strict=True)]
            write(
                lists / f"{kind}.json", [[f"{kind}/{wav}", f"mouths/{name}.npz", NUM_SAMPLES] for name, wav in spoken]
            )
    directories = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
    data = {key: str(final / "json" / name) for key, name in directories.items()} | {"data_root": str(final)}
    write(folder / "config.yml", {"datamodule": {"data_config": data}, "exp": {"exp_name": "benchmark"}})


def write(path: Path, document: object) -> None:
    """JSON, which is YAML too."""
    path.write_text(json.dumps(document), encoding="utf-8")


@dataclass(frozen=True)
class SameForAll:
    """An executor that stores one embedding for every utterance. See `Executor` and `Samples`."""

    identity: Identity | None = None
    data_root: Path = Path()

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """Write the shards here."""
        write_shards(job.storage, tasks, SameForAll(job.source.identity, job.source.data_root), progress)  # type: ignore[attr-defined]

    def read(self, tasks: Iterator[ShardTask]) -> Generator[tuple[ShardTask, Iterator[Planned]]]:
        """The same embedding for each row."""
        for task in tasks:
            yield task, self._samples(task)

    def _samples(self, task: ShardTask) -> Iterator[Planned]:
        assert self.identity is not None
        embedding = np.zeros((self.identity.dim, 1), dtype=np.float32)
        for row in task.rows.to_pylist():
            source = source_state(self.data_root / row["mouth"], row["mouth"])
            yield Planned(row["key"], row["mouth"], finish_sample(row, embedding, None, source, self.identity))


def run_build(folder: Path) -> None:
    """What a user starts again."""
    words = [
        "--conf_dir",
        folder / "config.yml",
        "--data_split",
        "train",
        "--shards",
        folder / "store",
        "--device",
        "cpu",
    ]
    try:
        build_shards(list(map(str, words)))
    except SystemExit as ended:
        if ended.code:
            raise


def stat_all(folder: Path) -> None:
    """Size and time of each npz, by as many threads as the build has."""
    paths = [entry.path for entry in os.scandir(folder / "mouths")]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        for chunk in pool.map(lambda some: [os.stat(path) for path in some], np.array_split(np.array(paths), 100)):
            assert chunk


MEASURED: dict[str, Callable[[Path], None]] = {"build-shards": run_build, "the stats alone": stat_all}


def measure(run: Callable[[Path], None], folder: Path) -> dict[str, float]:
    """Seconds and gigabytes of this process."""
    started = time.perf_counter()
    sys.stdout, kept = sys.stderr, sys.stdout
    run(folder)
    sys.stdout = kept
    seconds = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {"s": seconds, "GB": next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM:"))}


def listing(store: Path) -> dict[str, tuple[int, int, int]]:
    """Number, size and time of every file of the store; the lock names who builds, and the log is the build's."""
    stats = {path.name: path.stat() for path in store.iterdir() if path.name not in (".lock", "logs")}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def report(
    found: dict[str, list[dict[str, float]]], files: int, is_unchanged: bool, arguments: argparse.Namespace
) -> str:
    """The table, in Markdown."""
    rows = [
        (name, what, *spread([figures[what] for figures in processes]))
        for name, processes in found.items()
        for what in processes[0]
    ]
    beyond = [one["s"] - other["s"] for one, other in zip(found["build-shards"], found["the stats alone"], strict=True)]
    rows.append(("build-shards beyond the stats", "s", *spread(beyond)))
    table = tabulate(rows, headers=["", "", "median", "lowest", "highest"], floatfmt=".2f", tablefmt="github")
    memory = spread([figures["GB"] for figures in found["build-shards"]])[0]
    reached = {
        f"{SECONDS:.0f} s beyond the stats": spread(beyond)[0] <= SECONDS,
        f"{GIGABYTES:.0f} GB": memory <= GIGABYTES,
        "nothing written": is_unchanged,
    }
    targets = ", ".join(f"{target}: {'reached' if yes else 'missed'}" for target, yes in reached.items())
    options = f"{arguments.utterances:,} utterances in {files:,} files, {arguments.rounds} rounds."
    where = machine(CPU, "pyarrow")
    return f"# A build that has nothing to do\n\n{where}\n\n{options}\n\n{table}\n\nTargets: {targets}.\n"


if __name__ == "__main__":
    main()
