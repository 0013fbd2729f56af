"""A corpus with 10 training and 4 validation examples, its store, and an empty working directory."""

from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus
from helpers.runs import build_store

from iianet.training import results


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 3, "test": 2}, frames=5)


@pytest.fixture(scope="session")
def store(corpus: Corpus) -> Path:
    return build_store(corpus, "full")


@pytest.fixture
def pictures() -> None:
    """Let runs in this process draw their loss curves."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they draw none: a picture takes as long as ten steps."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(results, "plot_curves", lambda *_: None)
