"""A store changes by transactions: whatever ends one, a reader opens the store, and the next one resumes."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import CPU, build_store, change_mouth, contents, index, interrupt_build, opened, plans, stored
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from iianet.launch import Launch
from loaders.reader import open_reader
from shardwriter import write_store
from shardwriter.build.build import build, prepare
from shardwriter.build.compact import Compaction, abandon
from shardwriter.build.options import BuildOptions
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.execute.ranks import run_as_rank
from shardwriter.format.document import seal
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot, is_store
from shardwriter.store.transaction import open_transaction

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")
OTHER = "videonet.videonet_config.seed=1"
TWO = "shardwriter.utterances_per_shard=2"
FOUR = 4
"""Utterances in each shard of a compaction."""

Values = dict[tuple[str, str], bytes]
"""Embedding of each split and key."""


class Died(BaseException):
    """Nothing of ours catches it."""


@dataclass(frozen=True)
class Mortal(Folder):
    """A folder whose process dies when so many files were published, written, replaced or deleted."""

    steps: Iterator[int] = field(kw_only=True)

    def write(self, name: str, content: bytes) -> None:
        self._step()
        super().write(name, content)

    def publish(self, files: Iterable[tuple[Path, str]]) -> None:
        for one in files:
            self._step()
            super().publish([one])

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if self.version(name) is not None:
                self._step()
                super().delete([name])

    def _step(self) -> None:
        if next(self.steps, None) is None:
            raise Died


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Three utterances to train on and two to validate with: two shards and one."""
    return make_corpus(tmp_path / "corpus", {"train": 3, "val": 2})


@pytest.fixture
def store(corpus: Corpus, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    build_store(corpus, path, TWO, splits=SPLITS)
    return path


def grow(corpus: Corpus) -> Corpus:
    """Add two utterances to train on, and change one."""
    grown = make_corpus(corpus.root, {"train": 5, "val": 2})
    change_mouth(grown.mouth("tr_001"))
    return grown


def values(store: Path) -> Values:
    """All that a reader reads; nothing where there is no store."""
    if not is_store(Folder(store)):
        return {}
    return {
        (split, key): value.tobytes()
        for split in opened(store).splits
        if len(open_reader(store, split).keys)
        for key, value in stored(store, split).items()
    }


def listing(store: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files, but of hidden ones."""
    found = [path for path in store.rglob("*") if not path.relative_to(store).parts[0].startswith(".")]
    return {str(path.relative_to(store)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def everything(store: Path) -> dict[str, bytes]:
    """All files but hidden ones and the record, which holds times."""
    return {name: (store / name).read_bytes() for name in listing(store) if name != "store.json"}


def one_at_a_time(tmp_path: Path, before: Path | None, run: Callable[[Folder], object]) -> Iterator[tuple[Path, bool]]:
    """A copy of a store for each step of what changes it, which died there; and whether it was complete, the last."""
    for steps in count():
        copy = tmp_path / f"died-{steps}"
        if before is not None:
            shutil.copytree(before, copy)
        left = iter(range(steps))
        try:
            run(Mortal(copy, steps=left))
        except Died:
            yield copy, False
        else:
            assert next(left, None) is None, "it took fewer steps than before"
            assert steps > 1
            yield copy, True
            return


def build_into(corpus: Corpus, *overrides: str, **options: Any) -> Callable[[Folder], object]:
    own = BuildOptions(device=CPU, splits=SPLITS, **options)
    return lambda folder: build(corpus.config(TWO, *overrides), folder, own)


def compact_in(folder: Folder, utterances_per_shard: int = FOUR) -> Compaction:
    work = Compaction(storage=folder, utterances_per_shard=utterances_per_shard)
    run_operation(work, folder, OneProcess(CPU))
    return work


def test_a_build_that_dies_at_any_step_is_resumed(corpus: Corpus, tmp_path: Path) -> None:
    make = build_into(corpus)
    make(Folder(tmp_path / "whole"))
    after = values(tmp_path / "whole")
    for died, _ in one_at_a_time(tmp_path, None, make):
        assert values(died).items() <= after.items()
        make(Folder(died))
        assert everything(died) == everything(tmp_path / "whole")


def test_an_extension_that_dies_at_any_step_is_resumed(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    before = values(store)
    extend = build_into(grow(corpus))
    shutil.copytree(store, tmp_path / "whole")
    extend(Folder(tmp_path / "whole"))
    after = values(tmp_path / "whole")
    assert len(after) == len(before) + 2
    for died, _ in one_at_a_time(tmp_path, store, extend):
        now = values(died)
        is_planned = plans(died) != plans(store)
        changed = {key for key, value in before.items() if after[key] != value}
        assert changed and now.keys() >= before.keys() - (changed if is_planned else set())
        assert all(value == (after if is_planned else before)[key] for key, value in now.items() if key in changed)
        assert all(value == after[key] for key, value in now.items() if key not in changed)
        extend(Folder(died))
        assert everything(died) == everything(tmp_path / "whole")


@pytest.mark.parametrize("how", ["overwrite", pytest.param("compact", marks=pytest.mark.slow)])
def test_a_replacement_that_dies_at_any_step_is_resumed(corpus: Corpus, store: Path, tmp_path: Path, how: str) -> None:
    """A reader finds all that was there before, or all that is new."""
    build_store(grow(corpus), store, TWO, splits=SPLITS)
    before = values(store)
    run = build_into(corpus, OTHER, overwrite=True) if how == "overwrite" else compact_in
    shutil.copytree(store, tmp_path / "whole")
    run(Folder(tmp_path / "whole"))
    after = values(tmp_path / "whole")
    seen = set()
    for died, is_complete in one_at_a_time(tmp_path, store, run):
        is_new = plans(died) != plans(store)
        assert values(died) == (after if is_new else before)
        seen.add(is_new)
        if how == "compact" or not is_new:
            run(Folder(died))
        else:  # asked for again it would overwrite once more
            build_into(corpus, OTHER)(Folder(died))
        assert everything(died) == everything(tmp_path / "whole")
        assert not opened(died).record.retired and (is_new or not is_complete)
    assert seen == {False, True}


@pytest.mark.parametrize("how", ["overwrite", pytest.param("compact", marks=pytest.mark.slow)])
def test_one_that_is_abandoned_and_dies_at_any_step_is_gone_after_the_next(
    corpus: Corpus, store: Path, tmp_path: Path, how: str
) -> None:
    build_store(grow(corpus), store, TWO, splits=SPLITS)
    shutil.copytree(store, tmp_path / "before")
    if how == "overwrite":
        interrupt_build(corpus, store, OTHER, TWO, packs=2, splits=SPLITS, overwrite=True)
    else:
        with pytest.raises(Died):
            compact_in(Mortal(store, steps=iter(range(5))))
    assert opened(store).record.pending is not None
    assert contents(tmp_path / "before").items() < contents(store).items()
    for died, _ in one_at_a_time(tmp_path, store, lambda folder: abandon(folder, None)):
        assert values(died) == values(store)
        abandon(Folder(died), None)
        assert everything(died) == everything(tmp_path / "before")
        assert opened(died).record.pending is None


@pytest.mark.parametrize("is_first", [True, False])
def test_a_split_whose_writing_dies_at_any_step_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    samples = [(f"clip{number}", np.full((4, 2 + number), number, dtype=np.float16), {}) for number in range(3)]

    def add(folder: Folder) -> None:
        monkeypatch.setattr("shardwriter.build.write_store.open_storage", lambda _: folder)
        write_store(folder.path, samples, split="val", utterances_per_shard=2)

    before = tmp_path / "before"
    if not is_first:
        write_store(before, samples)
        shutil.copytree(before, tmp_path / "whole")
    add(Folder(tmp_path / "whole"))
    for died, is_complete in one_at_a_time(tmp_path, None if is_first else before, add):
        has_split = is_store(Folder(died)) and "val" in opened(died).splits
        assert values(died) == values(tmp_path / "whole" if has_split else before)
        if not has_split:
            add(Folder(died))
        elif not is_complete:
            assert compact_in(Folder(died), 2).report is None  # it has only indexes and card to write
        assert everything(died) == everything(tmp_path / "whole")


@pytest.fixture
def littered(corpus: Corpus, store: Path, tmp_path: Path) -> dict[str, bytes]:
    """Contents of the store before a plan with complete shards came that store.json does not name, and parts of one."""
    before, record = contents(store), (store / "store.json").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(store, other)
    build_store(corpus, other, TWO, OTHER, splits=SPLITS, overwrite=True)
    build_store(grow(corpus), store, TWO, splits=SPLITS)
    (store / "store.json").write_bytes(record)  # as if it had died before its plan was active
    for path in (*other.glob("train-*.tar"), *other.glob("val-*.index"), *other.glob("plan-*")):
        shutil.copy(path, store)
    assert len(contents(store)) >= len(before) + 5
    return before


def test_garbage_is_never_counted(littered: dict[str, bytes], corpus: Corpus, store: Path) -> None:
    (header,) = opened(store).active
    assert opened(store).split("train").planned == tuple(header.shard_names("train"))
    assert {key for split, key in values(store) if split == "train"} == {"tr_000", "tr_001", "tr_002"}
    options = BuildOptions(device=CPU, splits=SPLITS)
    found = prepare(corpus.config(), Folder(store), options).survey()
    assert [len(item.changed) for item in found.values()] == [1, 0]


def test_garbage_is_deleted_when_a_transaction_opens(littered: dict[str, bytes], store: Path) -> None:
    others = ("notes.txt", "train-000000.tar", "plan-000.parquet", "train-0123456789-000000.tar.bak", "other.index")
    for name in others:
        (store / name).write_bytes(b"another's")
    before = values(store)
    with open_transaction(Folder(store)):
        assert contents(store) == {**littered, **{name: b"another's" for name in others if name in contents(store)}}
    assert values(store) == before
    assert all((store / name).read_bytes() == b"another's" for name in others)


def test_plans_that_are_pending_or_retired_are_no_garbage(corpus: Corpus, store: Path) -> None:
    build_store(grow(corpus), store, TWO, splits=SPLITS)
    reader = opened(store)
    compact_in(Folder(store))
    interrupt_build(corpus, store, OTHER, packs=1, splits=SPLITS, overwrite=True)
    record, before = opened(store).record, contents(store)
    assert record.pending and len(record.retired) == 2
    with open_transaction(Folder(store)):
        pass
    assert contents(store) == before and opened(store).record == record
    assert reader.hold is not None


@pytest.fixture
def transactions(corpus: Corpus, store: Path) -> dict[str, Callable[[], object]]:
    """All that opens a transaction on the store."""
    samples = [("clip", stored(store, "val")["cv_000"], {})]
    return {
        "build": lambda: build_store(corpus, store, TWO, splits=SPLITS),
        "overwrite": lambda: build_store(corpus, store, TWO, splits=SPLITS, overwrite=True),
        "compact": lambda: compact_in(Folder(store)),
        "abandon": lambda: abandon(Folder(store), None),
        "write_store": lambda: write_store(store, samples, split="test"),
    }


def test_a_record_that_was_lost_is_no_reason_to_delete_complete_shards(
    transactions: dict[str, Callable[[], object]], corpus: Corpus, store: Path
) -> None:
    (store / "store.json").unlink()
    before = listing(store)
    lost = r"has no store\.json, but 3 complete shards.* Put store\.json back, .*--reindex, or delete the folder"
    for name, run in transactions.items():
        with pytest.raises(StoreError, match=r"--reindex" if name == "abandon" else lost):
            run()
    with pytest.raises(StoreError, match=r"there is no store\.json in it; inspect-shards .* --reindex"):
        Snapshot.open(Folder(store))
    assert listing(store) == before


def test_a_record_that_was_lost_with_no_shard_is_made_anew(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    (store / "store.json").unlink()
    for path in (*store.glob("*.index"), *store.glob("*.tar")):
        path.unlink()
    assert build_store(corpus, store, TWO, splits=SPLITS).planned["train"]["new"] == 3
    assert contents(store) == before


@pytest.mark.parametrize("version", [1, 2, 4])
def test_a_store_of_another_version_is_refused_with_the_cure(
    transactions: dict[str, Callable[[], object]], store: Path, version: int
) -> None:
    record = json.loads((store / "store.json").read_bytes())
    if version == 1:
        del record["pending"]
        record["plans"] = ["plan-000.parquet"]
        (store / plans(store)[0]).rename(store / "plan-000.parquet")
    del record["digest"]  # which earlier versions had not
    content = {**record, "version": version}
    (store / "store.json").write_bytes(json.dumps(content).encode() if version < 3 else seal(content))
    before = listing(store)
    said = (
        rf"{store}/store\.json: was written in version {version} of the format; expected 3\. .*"
        rf"delete {store}, or choose another --shards, and run build-shards"
    )
    for run in (*transactions.values(), lambda: Snapshot.open(Folder(store)), lambda: open_reader(store, "train")):
        with pytest.raises(StoreError, match=said):
            run()
    assert listing(store) == before


def nothing_to_build(corpus: Corpus, store: Path, **options: Any) -> None:
    report = build_store(corpus, store, TWO, splits=SPLITS, **options)
    assert report.shards == 0 and not sum(report.stored.values())


def nothing_to_compact(_: Corpus, store: Path) -> None:
    assert compact_in(Folder(store), 2).report is None


def nothing_to_abandon(_: Corpus, store: Path) -> None:
    assert abandon(Folder(store), None) is None


def nothing_for_ranks(corpus: Corpus, store: Path) -> None:
    made = prepare(corpus.config(TWO), Folder(store), BuildOptions(device=CPU, splits=SPLITS))
    rank = Launch(number=0, world_size=2, local=0, local_size=2, job="a job")
    assert run_as_rank(made, Folder(store), OneProcess(CPU), rank)


def nothing_but_opening(_: Corpus, store: Path) -> None:
    with open_transaction(Folder(store)) as transaction:
        assert transaction.unfinished(transaction.active) == []


IDLE = (nothing_to_build, nothing_for_ranks, nothing_but_opening)
"""Those that have nothing to do where a replacement is in progress, too."""


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        *product(["plain", "failed", "all", "read"], [*IDLE, nothing_to_compact, nothing_to_abandon]),
        *product(["pending"], IDLE),
    ],
)
def test_a_transaction_with_nothing_to_do_writes_nothing(
    corpus: Corpus, tmp_path: Path, run: Callable[[Corpus, Path], None], kind: str
) -> None:
    store = tmp_path / "own"
    everything = ("shardwriter.views=1", "shardwriter.dtype=int8", "shardwriter.audio=embed")
    if kind == "failed":
        corpus.mouth("tr_000").unlink()
        for name in corpus.names["val"]:
            corpus.mouth(name).unlink()  # so that the split has no tar
    build_store(corpus, store, TWO, *(everything if kind == "all" else ()), splits=SPLITS)
    reader = None
    if kind == "read":
        change_mouth(corpus.mouth("tr_001"))
        build_store(corpus, store, TWO, splits=SPLITS)
        reader = opened(store)
        compact_in(Folder(store), 2)
        assert opened(store).record.retired
    elif kind == "pending":
        interrupt_build(corpus, store, OTHER, packs=1, splits=SPLITS, overwrite=True)
    before = listing(store)
    assert len(before) > 6
    run(corpus, store)
    assert listing(store) == before
    assert (reader is not None) == (kind == "read")


def test_a_shard_that_is_damaged_is_the_only_one_written_again(corpus: Corpus, store: Path) -> None:
    before, files = contents(store), listing(store)
    lost = index(store, "train", 1)
    lost.with_suffix(".tar").unlink()
    build_store(corpus, store, TWO, splits=SPLITS)
    assert contents(store) == before
    changed = {name for name, facts in listing(store).items() if facts != files[name]}
    assert changed == {lost.name, lost.with_suffix(".tar").name, "train.index"}
