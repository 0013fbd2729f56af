"""Does build-shards gain by several processes on one machine? Clips per second of 1 and of N, in one run.

    python benchmarks/processes.py [--processes 2] [--clips 128] [--batch_size 8] [--rounds 5] [--output FILE.md]

All use the same number of threads for the encoder: one process has them all, N processes share them. Rounds alternate,
and ratios are of rounds side by side, since machines are noisy. Processes have to start and to load the encoder, which
a build of hours does not feel and one of seconds does; so the rate is shown with it, and from then on.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import machine
from made_corpus import make_clips
from spread import spread
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import Config, load_config
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.encode.write_shards import Event, NotStored, Progress, Published
from shardwriter.execute.executor import Executor, Job, OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.execute.processes import Processes
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8, help="clips in a pack, and in a shard")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.clips < 2 * arguments.processes * arguments.batch_size:
        sys.exit(f"--clips {arguments.clips}: too few, each process should write at least two shards of --batch_size")
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder), arguments.clips, arguments.batch_size)
        shards = f"shardwriter.utterances_per_shard={arguments.batch_size}"
        config = load_config(Path(folder) / "config.yml", [shards])
        executors: dict[int, Executor] = {
            1: OneProcess(CPU),
            arguments.processes: Processes([CPU] * arguments.processes),
        }
        rounds = [
            {
                count: _rates(config, Path(folder) / f"store-{number}-{count}", executor, count)
                for count, executor in executors.items()
            }
            for number in tqdm(range(arguments.rounds), desc="rounds", leave=False)
        ]
    text = report(rounds, arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


@dataclass
class Timed:
    """An executor, and when each shard was published."""

    executor: Executor
    started: float = 0.0
    published: list[tuple[float, int]] = field(default_factory=list)

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """See `Executor`."""
        listed = list(tasks)
        lengths = {task.shard: len(task.rows) for task in listed}
        self.started = time.monotonic()
        self.executor.run(job, listed, _Watched(progress, lengths, self.published))


@dataclass
class _Watched:
    progress: Progress
    lengths: dict[str, int]
    published_at: list[tuple[float, int]]

    def __call__(self, event: Event) -> None:
        if isinstance(event, NotStored):
            sys.exit(": ".join(event))  # the made clips are fine
        if isinstance(event, Published):
            self.published_at.append((time.monotonic(), self.lengths[event.shard]))
        self.progress(event)


def _rates(config: Config, store: Path, executor: Executor, count: int) -> tuple[float, float]:
    """Clips per second from the first npz to the last shard, and from each process' first shard on."""
    timed = Timed(executor)
    made = prepare(config, Folder(store), BuildOptions(device=CPU, splits=("train",), executor=timed))
    run_operation(made, made.storage, timed)
    (first, _), (last, _) = timed.published[count - 1], timed.published[-1]
    clips = [length for _, length in timed.published]
    return sum(clips) / (last - timed.started), sum(clips[count:]) / (last - first)


def report(rounds: Sequence[dict[int, tuple[float, float]]], arguments: argparse.Namespace) -> str:
    """The table, in Markdown."""
    rows = []
    for which, when in enumerate(("with their start", "once they run")):
        for count in (1, arguments.processes):
            name = "1 process" if count == 1 else f"{count} processes"
            rows.append((f"{name}, {when}", *spread([rates[count][which] for rates in rounds])))
        ratios = [rates[arguments.processes][which] / rates[1][which] for rates in rounds]
        rows.append((f"ratio, {when}, round by round", *spread(ratios)))
    table = tabulate(rows, headers=["clips/s", "median", "lowest", "highest"], floatfmt=".2f", tablefmt="github")
    options = (
        f"{arguments.clips} clips of 50 frames, shards and packs of {arguments.batch_size}, {arguments.rounds} rounds; "
        f"{torch.get_num_threads()} threads in all"
    )
    return f"# Processes\n\n{machine(CPU, 'pyarrow')}\n\n{options}\n\n{table}\n"


if __name__ == "__main__":
    main()
