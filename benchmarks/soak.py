"""Build, train, kill, change the corpus and resume at random, for as long as you like: is all right at each step?

    python benchmarks/soak.py [--minutes 10] [--seed 0] [--no_ray] [--output FILE.md]

Three stores of one growing corpus are kept: `whole`, built in this process and never killed; `folder` and a bucket,
whose builds run in one process, in several, as two ranks or on Ray, and are killed by SIGKILL, SIGTERM and SIGINT at
random moments until they are done. A fourth, `wild`, is left unfinished while the corpus changes. After each step:

- each stored utterance is there once, with the embedding that the encoder makes of its npz now;
- tars, indexes and plans of `folder` and of the bucket are those of `whole`, byte by byte, and no others;
- inspect-shards --verify finds nothing, and no temporary files are left;
- this process has no more open files than before, and no more memory.

A training runs with random workers and ranks, is stopped at random steps and resumed with others: each batch of an
epoch has the same examples however often it is read, and each example comes once.
"""

import argparse
import gc
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from helpers.bucket import PREFIX, URL
from helpers.builds import change_mouth, contents
from helpers.campaign.readers import Seen, command
from helpers.corpus import KINDS, Corpus, edit_lists, make_corpus, make_frames, write_mouth
from helpers.recorder import Stop, steps
from helpers.runs import run_recorded
from helpers.s3 import BUCKET, S3Server, s3_server
from machine import machine
from tqdm import tqdm

from iianet.encoder.mouth import center_crop
from iianet.errors import MouthError
from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from shardwriter import build_cli, inspect_cli
from shardwriter.corpus.mouth_npz import read_mouth_npz

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SPLITS = ("train", "val", "test")
KEEP_NOTHING = ("--set", "shardwriter.keep_replaced_days=0")
OPERATIONS: dict[str, tuple[str, ...]] = {"extend": (), "overwrite": ("--overwrite",), "compact": ("--compact",)}
DONE = (0, 3)
"""Exit codes of a build that is done; 3 where some npz are broken."""
MORE_FILES, MORE_MEMORY = 8, 300e6
"""What this process may gain after its first steps: open files, bytes."""
_context = multiprocessing.get_context("forkserver")


class WrongError(Exception):
    """Something that must not be."""


def main() -> None:
    """Step until the time is over; exits with 1 at the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_ray", action="store_true", help="leave Ray out")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[-2:])
    _context.set_forkserver_preload(["shardwriter.build_cli", "shardwriter.inspect_cli"])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        soak = Soak(Path(name), arguments.seed, not arguments.no_ray)
        try:
            wrong = soak.run(arguments.minutes)
        finally:
            soak.server.terminate()
    text = f"{soak.summary(arguments)}\n{wrong or 'Nothing was wrong.'}"
    print(text)
    if arguments.output:
        facts = machine(torch.device("cpu"), "pyarrow", "obstore", "ray")
        arguments.output.write_text(f"# Soak\n\n{facts}\n\n{text}\n", encoding="utf-8")
    sys.exit(1 if wrong else 0)


def _run_server(pipe: Connection) -> None:
    with s3_server() as server:
        pipe.send(server.endpoint)
        signal.pause()


def _run_command(words: list[str], environment: dict[str, str], output: Path, ready: Connection) -> None:
    """build-shards as a process of its own, which ends as the command does."""
    os.setsid()
    os.environ.update(environment)
    with output.open("w") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    ready.send(None)
    try:
        build_cli.main(words)
    except KeyboardInterrupt:  # before the command has begun to listen
        sys.exit(130)


class Soak:
    """The corpus, the stores, and what happens to them."""

    def __init__(self, folder: Path, seed: int, with_ray: bool) -> None:
        self.folder, self.chance, self.with_ray = folder, random.Random(seed), with_ray
        self.counts: Counter[str] = Counter()
        self.figures: list[tuple[int, float]] = []
        self.names: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
        self.unfinished = False
        self.truth: dict[str, Any] = {}
        self.server, self.bucket = self._serve()
        self.grow()
        source = self.corpus.config().encoder_source()
        self.encoder = source.load(torch.device("cpu"))

    def _serve(self) -> tuple[Any, S3Server]:
        """Start an S3 server in a process of its own, with an empty bucket, and lead this process to it."""
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_run_server, args=(theirs,), daemon=True)
        process.start()
        bucket = S3Server(endpoint=ours.recv())
        keys = {"AWS_ACCESS_KEY_ID": "testing-id", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
        places = {"AWS_ENDPOINT_URL": bucket.endpoint, "XDG_CACHE_HOME": str(self.folder / "cache")}
        os.environ.update({**keys, **places, "AWS_DEFAULT_REGION": "us-east-1"})
        bucket._client.create_bucket(Bucket=BUCKET)
        return process, bucket

    @property
    def corpus(self) -> Corpus:
        names = {split: list(own) for split, own in self.names.items()}
        return Corpus(root=self.folder / "corpus", names=names)

    @property
    def stores(self) -> dict[str, object]:
        return {"folder": self.folder / "folder", "bucket": URL}

    def run(self, minutes: float) -> str | None:
        """Step until the time is over. Returns what was wrong, None where nothing was."""
        end, number = time.monotonic() + 60 * minutes, 0
        actions: list[Callable[[], None]] = [self.operate, self.operate, self.go_wild, self.train]
        with tqdm(total=round(60 * minutes), unit="s", desc="soak") as bar:
            while time.monotonic() < end:
                action = self.operate if number == 0 else self.chance.choice(actions)
                try:
                    if number:
                        self.change()
                    action()
                    self.measure(number)
                except WrongError as error:
                    return f"step {number} ({action.__name__}): {error}"
                number += 1
                self.counts["steps"] += 1
                bar.update(round(60 * minutes - (end - time.monotonic())) - bar.n)
        return None

    # The corpus

    def change(self) -> None:
        """Add, change, break or fix utterances, or take mixtures out of a list."""
        for _ in range(self.chance.choice([0, 1, 1, 2])):
            kind = self.chance.choice(["grow", "change", "break", "fix", "shuffle"])
            self.counts[f"corpus: {kind}"] += 1
            name = self.chance.choice(list(self.names["train"]))
            path = self.corpus.mouth(name)
            if kind == "grow":
                self.grow()
            elif kind == "break":
                path.write_bytes(self.chance.choice([b"", b"no zip", path.read_bytes()[:1000]]))
            elif kind == "shuffle":
                self._shuffle_lists(self.chance.random())
            elif _readable(path) is not None:
                if kind == "change":
                    change_mouth(path, seed=self.chance.randrange(10**6))
            else:
                write_mouth(path, make_frames(self.names["train"][name], seed=self.chance.randrange(10**6)))

    def _shuffle_lists(self, seed: float) -> None:
        edit_lists(self.corpus, "train", lambda rows: random.Random(seed).sample(rows, len(rows)))

    def grow(self) -> None:
        """Add two utterances to each split, six at the start."""
        for split, own in self.names.items():
            for number in range(len(own), len(own) + (2 if own else 6)):
                own[f"{split}_{number:03d}"] = self.chance.choice([2, 3, 4])
        make_corpus(self.folder / "corpus", self.names, ring=True)

    def expected(self) -> dict[tuple[str, str], Any]:
        """What the encoder makes of each npz that can be read, as it is now."""
        found = {}
        for split, names in self.names.items():
            for name in names:
                if (frames := _readable(self.corpus.mouth(name))) is not None:
                    digest = f"{name} {hash(frames.tobytes())}"
                    if digest not in self.truth:
                        crops = center_crop(torch.from_numpy(frames))
                        self.truth[digest] = self.encoder.encode([crops])[0].half().float().numpy()
                    found[split, name] = self.truth[digest]
        return found

    # Steps

    def operate(self) -> None:
        """One operation on all stores, killed on the way in those that others compare with `whole`."""
        operation = self.chance.choice(list(OPERATIONS)) if (self.folder / "whole").exists() else "extend"
        self.counts[f"operation: {operation}"] += 1
        for flags in [(), OPERATIONS[operation]] if operation == "compact" else [OPERATIONS[operation]]:
            self._succeed(self.folder / "whole", flags)
            for name, store in self.stores.items():
                self._complete(store, flags, can_share=name == "folder")
        for store in self.stores.values():
            self.check(store)
        self.check(self.folder / "whole")
        self.compare()
        if self.chance.random() < 0.3:
            self.reindex()

    def go_wild(self) -> None:
        """Start something in a store of its own, kill it, and go on with something else at the next step."""
        store = self.folder / "wild"
        flags = self.chance.choice(list(OPERATIONS.values())) if (store / "store.json").exists() else ()
        code = self._start(store, flags, self.chance.uniform(0.2, 2.5), can_share=True)
        self.counts["wild: killed" if code not in DONE else "wild: done"] += 1
        is_refused = flags == ("--compact",) and "without --compact first" in self._said()
        if code not in (*DONE, None, -9, -15, -2, 130, 143) and not is_refused:
            raise WrongError(f"{store}: exit code {code}: {self._said()}")
        if self.chance.random() < 0.5 and (store / "store.json").exists():
            self._succeed(store, ("--overwrite",) if self.chance.random() < 0.3 else ())
            self.check(store)
            self.counts["wild: completed"] += 1

    def reindex(self) -> None:
        """Make record, plans and indexes of a copy anew."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "folder", copy)
        for path in [copy / "store.json", *copy.glob("plan-*"), *copy.glob("*.index")]:
            if self.chance.random() < 0.7 or path.name == "store.json":
                path.unlink()
        seen = command(inspect_cli.main, copy, "--reindex", "--verify")
        if seen.code != 0:
            raise WrongError(f"{copy}: --reindex: exit code {seen.code}: {seen.text[-1500:]}")
        self.counts["reindex"] += 1

    def train(self) -> None:
        """A training of two epochs that is stopped and resumed, now in one process and now in two."""
        here = self.folder / "runs"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        before = Path.cwd()
        os.chdir(here)
        try:
            self._train(here)
        finally:
            os.chdir(before)

    def _train(self, here: Path) -> None:
        config = self.corpus.config()
        length = 2 * sum(1 for _ in self.corpus.rows("train", "mix")) // 2 * 2
        seen: dict[tuple[int, int], list[str]] = {}
        for attempt in range(20):
            ranks, workers = self.chance.choice([1, 2]), self.chance.choice([0, 1, 2])
            words: list[object] = ["--set", "training.epochs=2", "training.checkpoint_every_n_steps=1"]
            words += [
                f"datamodule.data_config.batch_size={2 // ranks}",
                f"datamodule.data_config.num_workers={workers}",
            ]
            words += ["--shards", self.folder / "whole"]
            is_begun = any(here.rglob("last.ckpt"))
            words += ["--resume", "last"] if is_begun else []
            stop = Stop("train", self.chance.randint(2, length), self.chance.choice(["SIGTERM", "SIGINT", "SIGKILL"]))
            record = here / f"record-{attempt}"
            wanted = stop if attempt < 3 else None
            done = run_recorded(self.corpus, *words, record=record, stop=wanted, ranks=ranks)
            self._collect(record, ranks, seen)
            self.counts["trainings: resumed" if is_begun else "trainings: begun"] += 1
            if done.returncode == 0:
                break
            if wanted is None or done.returncode not in (-9, 130, 143, 137):
                raise WrongError(f"train.py: exit code {done.returncode}: {done.stderr[-1500:]}")
        self._check_epochs(seen, config.datamodule.data_config.segment)

    def _collect(self, record: Path, ranks: int, seen: dict[tuple[int, int], list[str]]) -> None:
        """Note which keys each batch had; a batch that is read again must have the same."""
        rows = [{(row["epoch"], row["batch"]): row["keys"] for row in steps(record, rank)} for rank in range(ranks)]
        for place in rows[0]:
            if all(place in own for own in rows):
                keys = sorted(key for own in rows for key in own[place])
                if seen.setdefault(place, keys) != keys:
                    raise WrongError(f"epoch {place[0]}, batch {place[1]}: {seen[place]}, then {keys} after a resume")

    def _check_epochs(self, seen: dict[tuple[int, int], list[str]], segment: float) -> None:
        lists = [self.corpus.rows("train", kind) for kind in KINDS[1:]]
        least = round(segment * 16_000)
        uses = Counter(Path(row[1]).stem for rows in lists for row in rows if row[2] >= least)
        broken = {name for name in self.names["train"] if _readable(self.corpus.mouth(name)) is None}
        for epoch in (0, 1):
            batches = [keys for (own, _), keys in sorted(seen.items()) if own == epoch]
            found = Counter(key for keys in batches for key in keys if key)  # a silent row, where all were broken
            if len(batches) != sum(uses.values()) // 2 or found - uses:
                raise WrongError(
                    f"epoch {epoch}: {len(batches)} batches of {sum(uses.values())} examples: {found - uses}"
                )
            lost = sum((uses - found).values()) - sum(uses.values()) % 2
            if lost and not broken:
                raise WrongError(f"epoch {epoch}: {lost} examples did not come: {uses - found}")

    # Building

    def _words(self, store: object, flags: tuple[str, ...]) -> list[str]:
        own = ["--conf_dir", self.corpus.config_file, "--shards", store, "--device", "cpu", *flags, *KEEP_NOTHING]
        return [str(word) for word in own]

    def _succeed(self, store: object, flags: tuple[str, ...]) -> Seen:
        seen = command(build_cli.main, *self._words(store, flags))
        if seen.code not in DONE:
            raise WrongError(f"{store} {' '.join(flags)}: exit code {seen.code}: {seen.text[-1500:]}")
        return seen

    def _complete(self, store: object, flags: tuple[str, ...], *, can_share: bool) -> None:
        """Run an operation until it is done; at most three times it is killed."""
        before = self._record(store)
        for attempt in range(4):
            seconds = self.chance.uniform(0.1, 3.0) if attempt < 3 and self.chance.random() < 0.7 else None
            code = self._start(store, flags, seconds, can_share=can_share)
            if code in DONE:
                self.counts["builds: completed"] += 1
                return
            if seconds is None or code not in (None, -9, -15, -2, 130, 143):
                raise WrongError(f"{store} {' '.join(flags)}: exit code {code}: {self._said()}")
            if flags == ("--overwrite",) and self._record(store) != before:
                flags = ()  # begun, or even done when it was killed: the flag would overwrite once more
        raise WrongError(f"{store}: was not completed")

    def _record(self, store: object) -> bytes:
        """What store.json says; nothing where there is none."""
        name = "store.json"
        if isinstance(store, Path):
            return (store / name).read_bytes() if (store / name).exists() else b""
        return self.bucket.read(f"{PREFIX}/{name}") if name in self.bucket.names(PREFIX) else b""

    def _start(self, store: object, flags: tuple[str, ...], seconds: float | None, *, can_share: bool) -> int | None:
        """Start a build by a random executor, and kill it after so long. Returns its exit code."""
        ways = ["alone", "alone", "processes"] + (["ranks"] if can_share else [])
        if can_share and self.with_ray and seconds is None and flags != ("--compact",) and self.chance.random() < 0.2:
            ways = ["ray"]
        way = self.chance.choice(ways)
        more = {"processes": ["--num_processes", "2"], "ray": ["--executor", "ray"]}.get(way, [])
        environments: list[dict[str, str]] = [{}]
        if way == "ranks":
            job = {"WORLD_SIZE": "2", "MASTER_PORT": str(self.chance.randrange(10**4, 6 * 10**4))}
            environments = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        self.counts[f"builds: {way}"] += 1
        started = []
        for number, environment in enumerate(environments):
            words = [*self._words(store, flags), *more]
            output = self.folder / f"said-{number}.txt"
            ready, theirs = _context.Pipe(duplex=False)
            arguments = (words, {**os.environ, **environment}, output, theirs)
            started.append(_context.Process(target=_run_command, args=arguments))
            started[-1].start()
            ready.recv()
        if seconds is not None:
            for process in started:
                process.join(seconds)
            number = self.chance.choice(SIGNALS)
            for process in started:
                if process.is_alive() and process.pid is not None:
                    self.counts[f"kills: {number.name}"] += 1
                    os.kill(process.pid, number)
        for process in started:
            process.join(120)
            if process.is_alive():
                process.kill()
                raise WrongError(f"{store} {way}: still runs after 120 s: {self._said()}")
        codes = [process.exitcode for process in started]
        return next((code for code in codes if code not in DONE), codes[0])

    def _said(self) -> str:
        return " | ".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("said-*.txt")))

    # Checks

    def check(self, store: object) -> None:
        """Every utterance once, as its npz is now; verified; nothing left behind."""
        expected = self.expected()
        for split in SPLITS:
            found: Counter[str] = Counter()
            for batch in ShardedEmbeddings(str(store), split, batch_size=8, shuffle=False):
                for key, values, frames in zip(batch.keys, batch.embedding, batch.frames, strict=True):
                    found[key] += 1
                    truth = expected.get((split, key))
                    if truth is not None:
                        same = values[:, : int(frames)].float().numpy()
                        if same.shape != truth.shape or not np.allclose(same, truth, rtol=2e-3, atol=2e-3):
                            raise WrongError(f"{store}: {key} is not what the encoder makes of its npz")
            if twice := [key for key, count in found.items() if count > 1]:
                raise WrongError(f"{store}: {twice} are stored more than once")
            wanted = {key for own, key in expected if own == split}
            if set(found) != wanted:
                raise WrongError(f"{store} {split}: lacks {wanted - set(found)}, has {set(found) - wanted} too")
        seen = command(inspect_cli.main, store, "--verify")
        if seen.code != 0 and "incomplete" not in seen.text:
            raise WrongError(f"{store}: --verify: exit code {seen.code}: {seen.text[-1500:]}")
        if isinstance(store, Path) and (left := [path.name for path in store.glob(".tmp-*")]):
            raise WrongError(f"{store}: {left} are left")
        self.counts["checks"] += 1

    def compare(self) -> None:
        """Tars, indexes and plans of all compared stores."""
        whole = contents(self.folder / "whole")
        for name in ("folder",):
            other = contents(self.folder / name)
            _refuse_difference(name, whole, other)
        names = [name for name in self.bucket.names(PREFIX) if name in whole or _is_published(name)]
        _refuse_difference("bucket", whole, {name: self.bucket.read(f"{PREFIX}/{name}") for name in names})
        self.counts["comparisons"] += 1

    def measure(self, number: int) -> None:
        """Note open files and memory of this process. Raises WrongError where they grow."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.figures.append((len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE")))
        if number > 6:
            (files, memory), now = self.figures[6], self.figures[-1]
            if now[0] > files + MORE_FILES or now[1] > memory + MORE_MEMORY:
                raise WrongError(
                    f"{now[0]} open files and {now[1] / 1e6:.0f} MB; {files} and {memory / 1e6:.0f} before"
                )

    def summary(self, arguments: argparse.Namespace) -> str:
        """What was done."""
        lines = [f"{arguments.minutes:g} minutes, seed {arguments.seed}", "", "| what | times |", "| --- | ---: |"]
        lines += [f"| {what} | {count} |" for what, count in sorted(self.counts.items())]
        if len(self.figures) > 6:
            (files, memory), now = self.figures[6], self.figures[-1]
            lines += ["", f"Open files: {files} after 7 steps, {now[0]} at the end; memory {memory / 1e6:.0f} MB, then "
                      f"{now[1] / 1e6:.0f} MB."]  # fmt: skip
        return "\n".join([*lines, ""])


def _refuse_difference(name: str, whole: dict[str, bytes], other: dict[str, bytes]) -> None:
    if whole.keys() != other.keys():
        raise WrongError(f"{name}: lacks {whole.keys() - other.keys()}, has {other.keys() - whole.keys()} too")
    if different := [file for file, content in whole.items() if content != other[file]]:
        raise WrongError(f"{name}: {different} have other bytes")


def _is_published(name: str) -> bool:
    return name.startswith("plan-") or ("-" in name and name.endswith((".tar", ".index")))


def _readable(path: Path) -> Any:
    """The frames of an npz, None where it is broken."""
    try:
        return read_mouth_npz(path).frames
    except MouthError:
        return None


if __name__ == "__main__":
    main()
