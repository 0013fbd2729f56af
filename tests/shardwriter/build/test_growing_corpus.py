"""A corpus that grows and changes: each run encodes just what is new."""

import re
from pathlib import Path

import pytest
from helpers.builds import build_store, change_mouth, reasons, stored
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter import inspect_cli
from shardwriter.encode import encoded
from shardwriter.storage.lock import build_lock

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = {"val": 2, "test": 2}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 40, **SPLITS})


def grown(corpus: Corpus) -> Corpus:
    """A tenth more in the same folder; what was there stays as it is."""
    return make_corpus(corpus.root, {"train": 44, **SPLITS})


def test_a_tenth_new_and_a_twentieth_changed_are_encoded_and_nothing_else(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    build_store(corpus, store)
    before = stored(store, "train")
    corpus = grown(corpus)
    changed = corpus.names["train"][:2]
    for name in changed:
        change_mouth(corpus.mouth(name))
    report = build_store(corpus, store)
    assert reasons(report, "train") == {"new": 4, "changed": 2, "skipped": 38}
    assert report.stored["train"] == 6
    after = stored(store, "train")
    assert {key for key in before if not (before[key] == after[key]).all()} == set(changed)
    outcome = run_main(inspect_cli.main, [store, "--against", corpus.config_file], capsys)
    assert outcome.code == 0, outcome.out + outcome.err
    assert re.search(r"^train +44 +0 +0 +0$", outcome.out, re.MULTILINE)  # stored, missing, stale, no longer listed


def test_of_two_builds_at_once_the_second_names_the_first_and_finds_the_grown_corpus_later(
    corpus: Corpus, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    build_store(corpus, store)
    corpus = grown(corpus)
    with build_lock(store), pytest.raises(StoreError, match=r"another build is writing to it \(process \d+ on "):
        build_store(corpus, store)
    assert build_store(corpus, store).stored["train"] == 4


def test_an_npz_that_vanishes_while_the_build_runs_is_a_listed_failure(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_pack = encoded.start_pack

    def vanish(*arguments: object) -> object:
        for name in corpus.names["val"]:  # which comes after train
            corpus.mouth(name).unlink(missing_ok=True)
        return start_pack(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoded, "start_pack", vanish)
    report = build_store(corpus, tmp_path / "store", "shardwriter.batch_size=4")
    assert report.stored["train"] == 40
    assert {failure.key: "cannot be read" in failure.reason for failure in report.failed["val"]} == dict.fromkeys(
        corpus.names["val"], True
    )
