"""Kill a build at random moments, again and again: does it end with the shards of one that was never killed?

    python benchmarks/kills.py [--kills 200] [--utterances 24] [--seed 0] [--output FILE.md]

Each attempt is a process that is forked from this one, and killed by SIGKILL after a random part of the time that a
whole build takes; the next one resumes. When an attempt completes, its store is compared with that of an uninterrupted
build, byte by byte, and the next one begins a new store, until so many were killed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import machine
from made_corpus import make_clips
from tqdm import tqdm

from iianet.config.schema import Config, load_config
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder

FRAMES = 4
PER_SHARD = 2


def main() -> None:
    """Kill, compare, and say how often; exits with 1 at the first difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no team of threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder, arguments.utterances, batch_size=PER_SHARD, num_workers=1, frames=FRAMES)
        config = load_config(folder / "config.yml", [f"shardwriter.utterances_per_shard={PER_SHARD}"])
        found = run(config, folder, arguments.kills, random.Random(arguments.seed))
    print(found)
    if arguments.output:
        arguments.output.write_text(f"# Kills\n\n{machine(torch.device('cpu'))}\n\n{found}.\n", encoding="utf-8")


def run(config: Config, folder: Path, kills: int, chance: random.Random) -> str:
    """Kill so many builds. Exits where a store comes out wrong."""
    started = time.monotonic()
    if _attempt(config, folder / "whole", None):
        sys.exit("the uninterrupted build failed")
    seconds = time.monotonic() - started
    expected = _contents(folder / "whole")
    store = folder / "killed"
    killed = complete = resumed = 0
    with tqdm(total=kills, desc="kills") as bar:
        while killed < kills or resumed:
            if _attempt(config, store, chance.uniform(0, seconds) if killed < kills else None):
                killed, resumed = killed + 1, resumed + 1
                bar.update()
                continue
            _compare(store, expected)
            complete, resumed = complete + 1, 0
            shutil.rmtree(store)
    return (
        f"{killed} kills, {complete} stores completed after them, each equal to the uninterrupted one byte by byte "
        f"({len(expected)} files; an uninterrupted build took {seconds:.1f} s)"
    )


def _attempt(config: Config, store: Path, seconds: float | None) -> int:
    """Build in a process of its own, and kill it after so long. Returns 0 where it was done before."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # the parent's is shared, and a killed child would hold it for ever
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            build(config, Folder(store), BuildOptions(splits=("train",), device=torch.device("cpu")))
        except BaseException as error:
            print(f"{store}: {error!r}", flush=True)
            os._exit(2)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # of one that has ended, it does nothing
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        sys.exit(f"{store}: the build ended with {status}")
    return status


def _contents(store: Path) -> dict[str, bytes]:
    """All files but logs and the lock, which say when and by whom they were written."""
    return {path.name: path.read_bytes() for path in sorted(store.iterdir()) if path.is_file() and path.name != ".lock"}


def _compare(store: Path, expected: dict[str, bytes]) -> None:
    found = _contents(store)
    if found.keys() != expected.keys():
        sys.exit(f"{store}: other files: {sorted(found.keys() ^ expected.keys())}")
    different = [name for name, content in found.items() if content != expected[name]]
    if different:
        sys.exit(f"{store}: other contents: {', '.join(different)}")


if __name__ == "__main__":
    main()
