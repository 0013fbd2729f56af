"""Fixtures of the tests that build stores, and of those that look at them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.builds import Run, build_store
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus

from shardwriter.build_cli import main

if TYPE_CHECKING:
    from helpers.inspection import Place


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """A store beside its corpus, to be looked at."""
    from helpers.inspection import make_place  # here, so that tests that look at nothing do not load what draws

    return make_place(tmp_path_factory.mktemp("made"))


@pytest.fixture
def place(made: "Place", tmp_path: Path) -> "Place":
    """A copy of it, to be changed."""
    return made.copy(tmp_path)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """The same corpus in a store with all that stores may hold: int8, its audio, and two views of each utterance."""
    from helpers.inspection import make_place

    return make_place(tmp_path_factory.mktemp("full"), dtype="int8", audio="embed", views=2)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Five utterances to train on and two to validate with: two shards and one."""
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2})


@pytest.fixture
def complete_store(corpus: Corpus, tmp_path: Path) -> Path:
    """A store of all that the corpus has to train on and to validate with."""
    path = tmp_path / "store"
    build_store(corpus, path, splits=("train", "val"))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "store"


@pytest.fixture
def run(corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """build-shards of the corpus into the store, with further flags."""

    def build_shards(*arguments: object, shards: bool = True) -> Outcome:
        own = ["--conf_dir", corpus.config_file, "--device", "cpu", *(["--shards", store] if shards else [])]
        return run_main(main, [*own, *arguments], capsys)

    return build_shards
