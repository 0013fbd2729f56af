"""Parsed manifests that are kept: the same as read anew, and read anew where anything changed."""

import json
import logging
import os
from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus

from shardwriter.corpus import cache as manifest_cache
from shardwriter.corpus.manifest import Manifest, load_manifests


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every manifest is kept, however small, below this folder."""
    monkeypatch.setattr(manifest_cache, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "iianet-shards"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


def load(corpus: Corpus, *overrides: str) -> dict[str, Manifest]:
    return dict(load_manifests(corpus.config(*overrides), ("train", "val")))


def same(one: Manifest, other: Manifest) -> bool:
    return (
        one.split == other.split
        and one.data_root == other.data_root
        and one.digest() == other.digest()
        and one.utterances.table.equals(other.utterances.table)
        and one.examples.table.equals(other.examples.table)
    )


def test_what_is_kept_is_what_was_read(corpus: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(corpus)
    assert list(cache.glob("manifest-*"))
    monkeypatch.setattr("shardwriter.corpus.manifest.read_lists", lambda _: pytest.fail("was read anew"))
    again = load(corpus)
    assert {split: same(first[split], manifest) for split, manifest in again.items()} == {"train": True, "val": True}


def test_what_was_read_before_there_was_a_store_is_kept_for_it(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    config = corpus.config("datamodule.data_config.data_root=null")
    first = load_manifests(config, ("train",))["train"]
    other = corpus.root.parent
    assert first.data_root != other
    assert load_manifests(config, ("train",), str(other))["train"].data_root == other
    monkeypatch.setattr("shardwriter.corpus.manifest.read_lists", lambda _: pytest.fail("was read anew"))
    assert same(load_manifests(config, ("train",), str(first.data_root))["train"], first)


def test_a_changed_list_is_read_anew_even_where_size_and_time_are_the_same(corpus: Corpus) -> None:
    before = load(corpus)["train"]
    path = corpus.list_file("train", "s1")
    stat, rows = path.stat(), json.loads(path.read_text())
    rows[0], rows[1] = rows[1], rows[0]
    mixes = corpus.list_file("train", "mix"), corpus.list_file("train", "s2")
    path.write_text(json.dumps(rows))
    for other in mixes:
        other_stat, listed = other.stat(), json.loads(other.read_text())
        listed[0], listed[1] = listed[1], listed[0]
        other.write_text(json.dumps(listed))
        os.utime(other, ns=(other_stat.st_atime_ns, other_stat.st_mtime_ns))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load(corpus)["train"]
    manifest_cache.cache_folder().rename(corpus.root / "away")
    assert same(after, load(corpus)["train"])
    assert not same(after, before)


def test_folders_that_change_their_splits_do_not_change_their_contents(corpus: Corpus) -> None:
    train, val = (str(corpus.list_file(split, "mix").parent) for split in ("train", "val"))
    prefix = "datamodule.data_config"
    load(corpus)
    swapped = load(corpus, f"{prefix}.train_dir={val}", f"{prefix}.valid_dir={train}")
    assert {utterance.key for utterance in swapped["val"].utterances} == set(corpus.names["train"])


def test_a_warning_about_the_lists_comes_each_time(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    path = corpus.list_file("train", "s1")
    rows = json.loads(path.read_text())
    for row in rows:
        row[0] = row[0].replace(".wav", "-other.wav")
    path.write_text(json.dumps(rows))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load(corpus)
        assert "named otherwise" in caplog.text


def test_a_flipped_bit_of_what_is_kept_is_read_anew(
    corpus: Corpus, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(corpus)
    for path in cache.glob("manifest-*"):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(bytes(changed))
            again = load(corpus)
            assert all(same(first[split], manifest) for split, manifest in again.items())
            path.write_bytes(content)
    assert "The lists are read anew." in caplog.text
