"""A corpus whose test split has clips of several lengths, its store, and a network that was not trained for long."""

from pathlib import Path

import pytest
import torch
from helpers.corpus import Corpus, make_corpus
from helpers.runs import build_store

from iianet.checkpoint import save_best_model
from iianet.separator.model import IIANet
from iianet.training.resume import settings_of
from iianet_cli import evaluate_cli


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    clips = {"t0": 5, "t1": 8, "t2": 8, "t3": 4, "t4": 5, "t5": 8}
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 4, "val": 2, "test": clips}, frames=5)


@pytest.fixture(scope="session")
def store(corpus: Corpus) -> Path:
    return build_store(corpus, "full")


@pytest.fixture(scope="session")
def checkpoint(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = corpus.config()
    path = tmp_path_factory.mktemp("trained") / "best_model.pth"
    save_best_model(path, IIANet(**config.audionet.audionet_config.model_dump()), {}, settings_of(config))
    return path


@pytest.fixture
def pictures() -> None:
    """Let evaluations in this process draw their picture."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they draw none, which takes longer than all the rest of a small one."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(evaluate_cli, "draw_improvement", lambda *_: False)
