"""Mouths of another length than their audio are told from those that differ by a frame, or serve cut mixtures."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import build_store, contents
from helpers.corpus import SAMPLES_PER_FRAME, Corpus, make_corpus, make_frames, write_mouth

from shardwriter.corpus.manifest import load_manifests
from shardwriter.corpus.mouth_lengths import other_lengths

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Utterances of 10 and 20 frames in turn; each mixture is as long as its shorter source."""
    return make_corpus(tmp_path / "corpus", {"train": 4, "val": 2, "test": 2}, frames=(20, 10))


def lengths(corpus: Corpus, frames: dict[str, int], tolerance: int = 1) -> dict[str, tuple[int, int]]:
    """Frames of some mouths -> those that are of another length, and what their audio says."""
    manifest = load_manifests(corpus.config(), ["train"])["train"]
    known = np.array([frames.get(utterance.key, 0) for utterance in manifest.utterances])
    found = other_lengths(manifest, known, SAMPLES_PER_FRAME, tolerance)
    said = [re.fullmatch(r"mouths/(\w+)\.npz: (\d+) frames, (\d+) expected for its audio", line) for line in found]
    return {match[1]: (int(match[2]), int(match[3])) for match in said if match}


def test_a_frame_more_or_less_is_normal_and_two_are_not(corpus: Corpus) -> None:
    assert lengths(corpus, {"tr_000": 9, "tr_001": 11, "tr_002": 10}) == {}
    assert lengths(corpus, {"tr_000": 8, "tr_001": 12, "tr_002": 10}) == {"tr_000": (8, 10), "tr_001": (12, 10)}
    assert lengths(corpus, {"tr_000": 8, "tr_001": 12, "tr_003": 40}, tolerance=2) == {"tr_003": (40, 10)}


def test_the_example_whose_length_is_nearest_counts(corpus: Corpus, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "other", {"train": {"a": 30, "b": 30, "c": 10}})  # b serves 30 frames and 10
    assert lengths(other, {"a": 30, "b": 30, "c": 10}) == {}
    assert lengths(other, {"b": 26}) == {"b": (26, 30)} and lengths(other, {"b": 14}) == {"b": (14, 10)}


def test_what_is_not_known_is_not_of_another_length(corpus: Corpus) -> None:
    assert lengths(corpus, {}) == {}


def test_a_build_stores_and_lists_them(corpus: Corpus, tmp_path: Path) -> None:
    write_mouth(corpus.mouth("tr_001"), make_frames(25))
    report = build_store(corpus, tmp_path / "store")
    text = "\n".join(report.lines())
    assert report.stored == {"train": 4, "val": 2, "test": 2} and not report.any_failed
    assert "longer or shorter than their audio (5); fix the npz" in text and "frame_tolerance" in text
    assert "  mouths/tr_001.npz: 25 frames, 10 expected for its audio" in text
    before = contents(tmp_path / "store")
    again = build_store(corpus, tmp_path / "store", "datamodule.data_config.frame_tolerance=10")
    assert again.other_lengths == ["mouths/tr_001.npz: 25 frames, 10 expected for its audio"]
    assert contents(tmp_path / "store") == before
