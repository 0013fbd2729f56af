"""Try cases in worker processes, each with a limit of memory and of time, and count what came of them."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from helpers.builds import quick_encoder
from helpers.campaign.cases import ALLOWED, READERS, Outcome, choose, run
from helpers.campaign.place import Place, make_place
from helpers.campaign.readers import Seen

MEMORY = 1_500_000_000
"""Bytes that a worker may take more than it has at its start."""
SECONDS = 60.0
"""How long a case may take."""


class Result(NamedTuple):
    """A case that was tried."""

    number: int
    case: str
    outcome: Outcome
    seconds: float


@dataclass
class Tally:
    """What came of cases.

    Attributes:
        outcomes: How many cases of each kind of file had each outcome.
        failures: First of each kind of failure, by its sign, and how many there were.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[tuple[str, str], list[Result]] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        self.outcomes[result.case.partition(":")[0], result.outcome.word] += 1
        if result.outcome.word not in ALLOWED:
            self.failures.setdefault((result.outcome.word, result.outcome.sign), []).append(result)

    @property
    def failed(self) -> int:
        return sum(len(results) for results in self.failures.values())


class _Worker:
    """A process that tries one case after the other; it is replaced when it dies or hangs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.number: int | None = None
        self.begun = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, self.pipe, self.folder, self.seed)
        )
        self.process.start()
        theirs.close()

    def give(self, number: int | None) -> None:
        self.number, self.begun = number, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(number)

    def take(self) -> Result:
        """The result of a case; a worker that died or was killed is replaced."""
        assert self.number is not None
        try:
            return self.pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionResetError):
            self.process.join()
            seconds = time.monotonic() - self.begun
            stack = (self.folder / "stack.txt").read_text(errors="replace")
            case = (self.folder / "case.txt").read_text()
            word = "hang" if "Timeout" in stack else "died"
            sign = _place_of(stack) if stack else f"exit code {self.process.exitcode}"
            result = Result(self.number, case, Outcome(word, sign, stack[-2500:]), seconds)
            self._start()
            return result

    def end(self) -> None:
        self.give(None)
        self.process.join(10)
        self.process.kill()


def tried(folder: Path, seed: int, numbers: Iterable[int], processes: int) -> Iterator[Result]:
    """Try cases, in the order in which they end."""
    left = iter(numbers)
    workers = [_Worker(folder / f"worker-{number:02d}", seed) for number in range(processes)]
    busy: dict[Connection, _Worker] = {}
    try:
        for worker in workers:
            if (number := next(left, None)) is not None:
                worker.give(number)
                busy[worker.pipe] = worker
        while busy:
            for pipe in wait(list(busy)):
                worker = busy.pop(pipe)  # type: ignore[arg-type]
                yield worker.take()
                if (number := next(left, None)) is not None:
                    worker.give(number)
                    busy[worker.pipe] = worker
    finally:
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, parents: Connection, folder: Path, seed: int) -> None:
    parents.close()
    folder.mkdir(parents=True, exist_ok=True)
    stack = (folder / "stack.txt").open("w+")
    faulthandler.enable(stack)
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / "place" / "cache")
    place = make_place(folder)
    os.chdir(place.here)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000_000, 300_000_000))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with quick_encoder(), contextlib.suppress(EOFError):  # the parent is gone
        while (number := pipe.recv()) is not None:
            pipe.send(try_one(place, seed, number, folder, stack))


def try_one(place: Place, seed: int, number: int, folder: Path, stack: object) -> Result:
    """Try one case in this process, which ends where it takes too long."""
    (folder / "case.txt").write_text(f"unknown: case {number} could not be made")
    case = choose(place, seed, number)
    files = " and ".join(str(path.relative_to(place.root)) for path in case.files)
    said = f"{case.kind.name}: {files}: {case.what}: {case.reader} ({case.store})"
    (folder / "case.txt").write_text(said)
    expected = _expected(place, case.reader, case.store, folder)
    begun = time.monotonic()
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))  # what damages has no limit
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=stack)  # type: ignore[arg-type]
    outcome = run(place, case, expected)
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Result(number, said, outcome, time.monotonic() - begun)


_known: dict[tuple[str, str], Seen] = {}


def _expected(place: Place, reader: str, store: str, folder: Path) -> Seen:
    """What a reader sees in an undamaged place."""
    name = folder / f"{reader.replace(' ', '_')}-{store}.seen"
    if (reader, store) not in _known:
        if not name.exists():
            seen = READERS[reader](place, store)
            place.restore()
            name.write_bytes(pickle.dumps(seen))
        _known[reader, store] = pickle.loads(name.read_bytes())
    return _known[reader, store]


def _place_of(stack: str) -> str:
    """The innermost line of our packages in what faulthandler wrote, of the thread that was running."""
    for line in stack.splitlines():
        for package in ("shardwriter", "loaders", "iianet", "iianet_cli"):
            if f"/{package}/" in line and "helpers" not in line:
                return line.strip().partition(f"/{package}/")[2].replace('", line ', ":").partition(" in ")[0]
    return "nowhere"


def show(tally: Tally, seed: int, shown: Callable[[Result], str]) -> str:
    """The tally as Markdown."""
    words = sorted({word for _, word in tally.outcomes}, key=lambda word: (word not in ALLOWED, word))
    kinds = list(dict.fromkeys(kind for kind, _ in sorted(tally.outcomes)))
    lines = [f"| file | {' | '.join(words)} |", f"| --- | {'---: | ' * len(words)}".rstrip()]
    for kind in kinds:
        lines.append(f"| {kind} | {' | '.join(str(tally.outcomes[kind, word] or '') for word in words)} |")
    total = sum(tally.outcomes.values())
    lines += ["", f"{total:,} cases of seed {seed}, {tally.failed:,} failed, in {len(tally.failures):,} ways."]
    for (word, sign), results in sorted(tally.failures.items(), key=lambda item: -len(item[1])):
        lines.append(f"- {len(results)} x {word}: {sign}. First: {shown(results[0])}")
    return "\n".join(lines)
