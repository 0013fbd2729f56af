"""Fixtures of the tests that look at stores."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from inspection import Place


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """A store beside its corpus, to be looked at."""
    from inspection import make_place  # here, so that tests that look at nothing do not load what draws

    return make_place(tmp_path_factory.mktemp("made"))


@pytest.fixture
def place(made: "Place", tmp_path: Path) -> "Place":
    """A copy of it, to be changed."""
    return made.copy(tmp_path)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """The same corpus in a store with all that stores may hold: int8, its audio, and two views of each utterance."""
    from inspection import make_place

    return make_place(tmp_path_factory.mktemp("full"), dtype="int8", audio="embed", views=2)
