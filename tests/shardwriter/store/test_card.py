"""The dataset card: truthful about what samples hold, and a configuration for the splits and for each view."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.builds import build_store, plans, shards
from helpers.corpus import Corpus

from shardwriter import write_store
from shardwriter.build.write_store import Sample
from shardwriter.format.names import parse_plan_name
from shardwriter.format.record import Identity
from shardwriter.store.card import MARK, card_text

ID = "0123456789"


def card(
    stored: dict[str, int], plans: Mapping[str, Sequence[str]] | None = None, **identity: Any
) -> tuple[list[dict[str, Any]], str]:
    """Configurations and text of a card."""
    made = Identity(**{"dtype": "float16", "dim": 512, "fps": 25, **identity})
    return parts(card_text(made, stored, plans or {split: [ID] for split in stored}))


def parts(text: str) -> tuple[list[dict[str, Any]], str]:
    _, front_matter, rest = text.split("---\n", 2)
    return yaml.safe_load(front_matter)["configs"], rest


def samples(count: int) -> Iterator[Sample]:
    for number in range(count):
        yield f"clip{number}", np.zeros((4, 3), dtype=np.float16), {}


def test_each_view_is_a_configuration_beside_the_default_one() -> None:
    found, text = card({"train": 5, "train_view1": 5, "train_view2": 4, "val": 2, "test": 1})
    assert {
        config["config_name"]: {file["split"]: file["path"] for file in config["data_files"]} for config in found
    } == {
        "default": {"train": [f"train-{ID}-*.tar"], "validation": [f"val-{ID}-*.tar"], "test": [f"test-{ID}-*.tar"]},
        "view1": {"train": [f"train_view1-{ID}-*.tar"]},
        "view2": {"train": [f"train_view2-{ID}-*.tar"]},
    }
    assert "`<key>@1`" in text and "| train_view2 | 4 |" in text


def test_every_plan_that_has_tars_of_a_split_is_a_pattern() -> None:
    found, _ = card({"train": 5}, {"train": [ID, "9876543210"]})
    assert found[0]["data_files"][0]["path"] == [f"train-{ID}-*.tar", "train-9876543210-*.tar"]


def test_split_that_holds_nothing_has_no_files() -> None:
    found, text = card({"train": 5, "train_view1": 0, "val": 0})
    assert [(config["config_name"], len(config["data_files"])) for config in found] == [("default", 1)]
    assert "| val | 0 |" in text


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("audio", ["path", "embed"])
def test_text_names_just_the_members_that_there_are(dtype: str, audio: str) -> None:
    _, text = card({"train": 5}, dtype=dtype, audio=audio)
    assert f"(512, frames) {dtype} array at 25 frames" in text and "`<key>.json`" in text
    assert ("`<key>.scale.npy`" in text) == (dtype == "int8")
    assert ("`<key>.audio.npy`" in text) == (audio == "embed")
    assert "view" not in text


def test_card_says_that_views_hold_no_audio() -> None:
    _, text = card({"train": 5, "train_view1": 5}, audio="embed")
    assert "Views hold no audio" in text


def test_the_card_of_a_store_counts_what_is_stored_now(tmp_path: Path) -> None:
    write_store(tmp_path, samples(5))
    assert "| train | 5 |" in (tmp_path / "README.md").read_text()
    write_store(tmp_path, samples(3), split="val")
    assert "| train | 5 |\n| val | 3 |" in (tmp_path / "README.md").read_text()


def test_the_card_names_all_tars_of_a_store_and_none_that_were_replaced(
    corpus: Corpus, complete_store: Path, quick: None
) -> None:
    replaced = plans(complete_store)
    build_store(
        corpus,
        complete_store,
        "shardwriter.keep_replaced_days=7",
        splits=("train", "val"),
        overwrite=True,
        dtype="int8",
    )
    [config], _ = parts((complete_store / "README.md").read_text())
    patterns = {file["split"]: file["path"] for file in config["data_files"]}
    tars = [path.name for path in complete_store.glob("*.tar")]
    assert {parse_plan_name(name) for name in replaced} & {name.split("-")[1] for name in tars}
    for split, shown in (("train", "train"), ("val", "validation")):
        named = sorted(tar for tar in tars if any(fnmatch(tar, pattern) for pattern in patterns[shown]))
        assert named == sorted(f"{shard}.tar" for shard in shards(complete_store, split))


def test_a_card_that_somebody_else_wrote_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_store(tmp_path, samples(5))
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace(MARK, "MY LICENCE"))
    before = path.read_text()
    with caplog.at_level(logging.INFO):
        write_store(tmp_path, samples(3), split="val")
    assert path.read_text() == before
    assert f"{path}: was written by somebody else, so it stays" in caplog.text
