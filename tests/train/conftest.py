"""A corpus with 10 training and 4 validation examples, its store, and an empty working directory."""

from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus
from helpers.runs import build_store


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 3, "test": 2}, frames=5)


@pytest.fixture(scope="session")
def store(corpus: Corpus) -> Path:
    return build_store(corpus, "full")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: results go to Experiments below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
