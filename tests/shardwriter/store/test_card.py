"""The dataset card: truthful about what samples hold, and a configuration for the splits and for each view."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shardwriter.format.names import Identity, StoreRecord
from shardwriter.store.card import MARK, write_card
from shardwriter.store.catalog import write_store_record


def card(store: Path, stored: dict[str, int], **identity: Any) -> tuple[list[dict[str, Any]], str]:
    """Configurations and text of a card."""
    made = Identity(**{"dtype": "float16", "dim": 512, "fps": 25, **identity})
    write_store_record(store, StoreRecord(identity=made, data_root=None, plans=()))
    write_card(store, stored)
    _, front_matter, text = (store / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front_matter)["configs"], text


def test_each_view_is_a_configuration_beside_the_default_one(tmp_path: Path) -> None:
    found, text = card(tmp_path, {"train": 5, "train_view1": 5, "train_view2": 4, "val": 2, "test": 1})
    assert {
        config["config_name"]: {file["split"]: file["path"] for file in config["data_files"]} for config in found
    } == {
        "default": {"train": "train-*.tar", "validation": "val-*.tar", "test": "test-*.tar"},
        "view1": {"train": "train_view1-*.tar"},
        "view2": {"train": "train_view2-*.tar"},
    }
    assert "`<key>@1`" in text and "| train_view2 | 4 |" in text


def test_split_that_holds_nothing_has_no_files(tmp_path: Path) -> None:
    found, text = card(tmp_path, {"train": 5, "train_view1": 0, "val": 0})
    assert [(config["config_name"], len(config["data_files"])) for config in found] == [("default", 1)]
    assert "| val | 0 |" in text


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("audio", ["path", "embed"])
def test_text_names_just_the_members_that_there_are(tmp_path: Path, dtype: str, audio: str) -> None:
    _, text = card(tmp_path, {"train": 5}, dtype=dtype, audio=audio)
    assert f"(512, frames) {dtype} array at 25 frames" in text and "`<key>.json`" in text
    assert ("`<key>.scale.npy`" in text) == (dtype == "int8")
    assert ("`<key>.audio.npy`" in text) == (audio == "embed")
    assert "view" not in text


def test_card_says_that_views_hold_no_audio(tmp_path: Path) -> None:
    _, text = card(tmp_path, {"train": 5, "train_view1": 5}, audio="embed")
    assert "Views hold no audio" in text


def test_a_card_that_somebody_else_wrote_stays(tmp_path: Path) -> None:
    card(tmp_path, {"train": 5})
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace(MARK, "MY LICENCE"))
    before = path.read_text()
    write_card(tmp_path, {"train": 6})
    assert path.read_text() == before
