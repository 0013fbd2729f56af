"""Two corpora at once: folders of lists of both, and a store of each."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus
from helpers.recorder import recorded, steps
from helpers.runs import build_store, run

PREFIX = "datamodule.data_config"
FOLDERS = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}


def corpus_named(root: Path, name: str) -> Corpus:
    """A corpus whose utterances have a letter of their own, with the lists that the reference writes."""
    splits: Mapping[str, Mapping[str, int]] = {
        split: {f"{name}_{split}_{number}": 5 for number in range(3)} for split in ("train", "val", "test")
    }
    return make_corpus(root / name, splits, absolute=True)


@pytest.fixture
def both(here: Path) -> tuple[Corpus, Corpus]:
    return corpus_named(here, "a"), corpus_named(here, "b")


def test_lists_of_several_folders_are_one_corpus(both: tuple[Corpus, Corpus], here: Path) -> None:
    stores = [word for corpus in both for word in ("--shards", build_store(corpus, "store"))]
    joined = [
        f"{PREFIX}.{key}=[{', '.join(str(corpus.root / 'json' / folder) for corpus in both)}]"
        for key, folder in FOLDERS.items()
    ]
    with recorded(here / "record"):
        assert run(both[0], *stores, "--on_missing", "error", "--set", *joined)[0] == 0
    seen = {key for step in steps(here / "record") for key in step["keys"]}
    assert seen == {f"{name}_train_{number}" for name in "ab" for number in range(3)}


def test_a_store_of_another_corpus_than_the_lists_is_named_as_unused(
    both: tuple[Corpus, Corpus], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = (build_store(corpus, "store") for corpus in both)
    assert run(both[0], "--shards", own, "--shards", other)[0] == 0
    said = capsys.readouterr().err
    assert f"train: all 3 utterances are in {own}\n" in said
    assert f"WARNING: {other}: holds no utterance of the lists that the config names, so nothing of it is used" in said
    assert "take lists, such as [A/tr, B/tr]" in said


def test_a_folder_without_lists_is_an_error_beside_one_that_has_them(
    both: tuple[Corpus, Corpus], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(both[0], "store")
    lists = f"[{both[0].root / 'json/tr'}, {here / 'nowhere'}]"
    assert run(both[0], "--shards", store, "--set", f"{PREFIX}.train_dir={lists}")[0] == 2
    assert f"{here / 'nowhere/mix.json'}: cannot be read" in capsys.readouterr().err
