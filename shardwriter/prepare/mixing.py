"""All mixtures of a list, made in several processes: what is there already is not made again."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from iianet.errors import AudioError, ConfigError, OutputError
from iianet.interruption import begin_helper
from iianet.wording import printable
from shardwriter.format.files import delete_dead_temporary_files
from shardwriter.prepare.mixing_list import Pair
from shardwriter.prepare.mixture import is_made, mix, num_samples_of, write_mixture
from shardwriter.prepare.output import make_folder, writing
from shardwriter.prepare.recordings import KINDS

FAILED_FILE = "failed.tsv"
"""What lies beside the folders of wavs: the mixtures that could not be made, and why."""
SETTINGS_FILE = "mixing.json"
"""What lies there too: how the wavs were made, so that no folder holds some that were made otherwise."""
MADE, THERE = "made", "there"
AT_A_TIME = 8
"""Mixtures that a process takes at a time."""


class Failed(NamedTuple):
    """A mixture that could not be made: the name of its wavs, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the mixtures of a list.

    Attributes:
        made: How many were made.
        there: How many were there already.
        failed: Those that could not be made.
    """

    made: int
    there: int
    failed: Sequence[Failed]


def make_mixtures(pairs: Sequence[Pair], folder: Path, level: str, num_processes: int) -> Outcome:
    """Make the mixtures of a list into the folders mix, s1 and s2 below `folder`, with a progress bar.

    Args:
        pairs: What to make.
        folder: Made if missing.
        level: How levels are measured, see `LEVELS`.
        num_processes: Processes; 1 is this one alone.

    Raises:
        ConfigError: The folder holds wavs that were made otherwise.
        OutputError: A file cannot be written, or a process was ended. What was made is whole.
    """
    _claim(folder, level)
    make = partial(_make, folder=folder, level=level)
    counts: Counter[str] = Counter()
    failed: list[Failed] = []
    with _mapped(num_processes) as mapped, tqdm(total=len(pairs), desc="mixing", unit="mix", delay=1.0) as bar:
        for outcome in mapped(make, pairs):
            if isinstance(outcome, Failed):
                failed.append(outcome)
            else:
                counts[outcome] += 1
            bar.update()
    lines = ["mixture\treason", *(f"{printable(one.name, '')}\t{printable(one.reason, '')}" for one in failed)]
    with writing(folder / FAILED_FILE) as stream:
        stream.write("".join(f"{line}\n" for line in lines).encode())
    return Outcome(made=counts[MADE], there=counts[THERE], failed=failed)


def _make(pair: Pair, folder: Path, level: str) -> str | Failed:
    """Make a mixture, if it is not there. Raises OutputError where it cannot be written."""
    try:
        if is_made(pair, folder, num_samples_of(pair)):
            return THERE
        wavs = mix(pair, level)
    except AudioError as error:
        return Failed(pair.name, str(error))
    write_mixture(wavs, folder, pair.name)
    return MADE


def _claim(folder: Path, level: str) -> None:
    """Make the folders, and record how their wavs are made; refuse those of others."""
    settings, found = {"level": level}, _recorded(folder)
    if found is None and any(entry.name.endswith(".wav") for entry in _entries(folder / "mix")):
        raise ConfigError(
            f"{folder}: holds wavs, and no {SETTINGS_FILE} that says how they were made; expected a new folder, or one "
            "that prepare-mixtures made. Give another --out folder"
        )
    if found not in (None, settings):
        raise ConfigError(
            f"{folder}: its mixtures were made with {json.dumps(found)}, and now {json.dumps(settings)} is asked for; "
            "give the same --level, or another --out folder"
        )
    for kind in KINDS:
        make_folder(folder / kind)
        delete_dead_temporary_files(folder / kind)
    if found is None:
        with writing(folder / SETTINGS_FILE) as stream:
            stream.write(json.dumps(settings).encode())


def _recorded(folder: Path) -> object:
    """How the wavs of a folder were made; None where nothing says it."""
    try:
        return json.loads((folder / SETTINGS_FILE).read_bytes())
    except OSError:
        return None
    except ValueError:
        return "an unreadable mixing.json"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


@contextmanager
def _mapped(num_processes: int) -> Iterator[Callable[..., Iterable[str | Failed]]]:
    """A `map` that keeps the order, over some processes or in this one."""
    if num_processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=begin_helper)
    try:
        with pool:
            yield partial(pool.map, chunksize=AT_A_TIME)
    except BrokenProcessPool as error:
        raise OutputError(
            "a process that mixed was ended, often because memory ran out. What was made is whole: run the command "
            "again to resume, with fewer --num_processes"
        ) from error
