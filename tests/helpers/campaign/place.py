"""The folder in which cases are tried: a corpus, stores of it, a run, tars of others, and files of somebody else.

It is made once, copied, and after each case made again what it was. Its bytes are the same for a path of the same
length: times are fixed, and nothing in it is random.
"""

import contextlib
import io
import os
import shutil
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from helpers.builds import build_store, change_mouth, interrupt_build, quick_embedding, quick_encoder
from helpers.corpus import FOLDERS, Corpus, edit_lists, make_corpus
from helpers.streamed_tars import foreign, write_shard
from iianet_cli import train_cli

TIME = 1_700_000_000
"""When every file was last changed."""
COUNTS = {"train": 6, "val": 3, "test": 2}
STORES = ("full", "int8", "partial", "pending")
CHANGED = "tr_001"
"""The utterance whose npz changed, and whose first embedding is superseded."""

Status = tuple[int, int, int, str]


@dataclass(frozen=True)
class Place:
    """A copy of the folder, to be damaged.

    Attributes:
        root: The copy; the working directory of all that is tried is `root/here`.
        pristine: What it is a copy of.
    """

    root: Path
    pristine: Path

    @property
    def corpus(self) -> Corpus:
        return _corpus(self.root)

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def victim(self) -> Path:
        return self.root / "victim" / "data.tar"

    def store(self, name: str) -> Path:
        return self.root / name

    def restore(self) -> list[str]:
        """Undo what a case did. Returns what it had changed, made or deleted."""
        found, expected = tree(self.root), _whole(self.pristine)
        changed = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        for name in reversed(changed):  # what lies in folders before them
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                if name not in expected or not stat.S_ISDIR(expected[name][0]):
                    shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()
        for name in changed:
            if name in expected:
                source, path = self.pristine / name, self.root / name
                if source.is_dir():
                    path.mkdir(exist_ok=True)
                else:
                    shutil.copy2(source, path, follow_symlinks=False)
        return [name for name in changed if not (name in expected and stat.S_ISDIR(expected[name][0]))]


def tree(root: Path) -> dict[str, Status]:
    """Everything below a folder: kind, size, time and where a link leads. The times of folders do not count."""
    found: dict[str, Status] = {}
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(os.path.join(root, below)) as entries:  # text, not paths: this is done once a case
            for entry in entries:
                status, name = entry.stat(follow_symlinks=False), os.path.join(below, entry.name)
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder:
                    folders.append(name)
                times = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
                link = os.readlink(entry) if stat.S_ISLNK(status.st_mode) else ""
                found[name] = (stat.S_IFMT(status.st_mode), *times, link)
    return found


@cache
def _whole(pristine: Path) -> dict[str, Status]:
    return tree(pristine)


def make_place(folder: Path) -> Place:
    """Make the folder, or take what an earlier process made of it, and a copy."""
    place = Place(root=folder / "place", pristine=folder / "whole")
    if not place.pristine.exists():
        shutil.rmtree(place.root, ignore_errors=True)
        _make(place)
        shutil.copytree(place.root, place.pristine, symlinks=True)
    place.restore()
    return place


def _corpus(root: Path) -> Corpus:
    names = {split: [f"{FOLDERS[split]}_{number:03d}" for number in range(count)] for split, count in COUNTS.items()}
    return Corpus(root=root / "corpus", names=names)


def _make(place: Place) -> None:
    root = place.root
    with quick_encoder(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        corpus = make_corpus(root / "corpus", COUNTS, ring=True)
        _still(root)
        build_store(corpus, root / "full", splits=("train", "val"))
        change_mouth(corpus.mouth(CHANGED))
        _still(root / "corpus", TIME + 100)
        build_store(corpus, root / "full", splits=("train", "val"))
        rich = ("shardwriter.dtype=int8", "shardwriter.audio=embed", "shardwriter.views=1")
        build_store(corpus, root / "int8", *rich, splits=("train", "val"))
        build_store(corpus, root / "pending", splits=("train", "val"))
        interrupt_build(corpus, root / "pending", packs=1, splits=("train", "val"), overwrite=True)
        lists = {path: path.read_bytes() for path in root.rglob("corpus/json/*/*.json")}
        edit_lists(corpus, "train", lambda rows: rows[:3])
        build_store(corpus, root / "partial", splits=("train", "val"))
        for path, content in lists.items():
            path.write_bytes(content)
        for name in corpus.names["train"]:
            _write_embedding(corpus.mouth(name))
        place.here.mkdir()
        _train(place)
        samples = foreign(6)
        write_shard(root / "foreign" / "train-000000.tar", samples[:3])
        write_shard(root / "foreign" / "train-000001.tar", samples[3:])
        write_shard(root / "foreign" / "val-000000.tar", samples[:2])
    place.victim.parent.mkdir()
    for name in ("data.tar", "data.index", "plan-0000000000.parquet", "store.json"):
        (place.victim.parent / name).write_text(f"{name} of somebody else")
    for folder in ("cache", "out"):
        (root / folder).mkdir()
    for log in (path for store in STORES for path in (root / store / "logs", root / store / ".lock")):
        shutil.rmtree(log, ignore_errors=True) if log.is_dir() else log.unlink(missing_ok=True)
    _still(root, TIME + 100)


def _write_embedding(mouth: Path) -> None:
    """What an earlier tool left beside an npz."""
    np.savez_compressed(mouth.with_name(f"{mouth.stem}_embedding.npz"), embedding=quick_embedding(mouth).astype("f4"))


def _train(place: Place) -> None:
    """A run of one epoch, for what it leaves: last.ckpt and best_model.pth."""
    before = Path.cwd()
    os.chdir(place.here)
    try:
        train_cli.main(["--conf_dir", str(place.corpus.config_file), "--shards", str(place.store("full"))])
    except SystemExit as end:
        assert end.code == 0, f"the run ended with {end.code}"
    finally:
        os.chdir(before)


def _still(root: Path, time: int = TIME) -> None:
    for path in root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (time, time))
