"""open_store: one utterance by its key, as write_store was given it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from helpers.builds import index, read_index, tar

from iianet.errors import StoreError
from shardwriter import open_store, write_store
from shardwriter.format.index import encode_index

LONG = "a/speaker" * 12
NAMES = ["spk4/utt139", "a.b", "50%", "漢字", LONG, LONG + "'", "x" * 63 + "-" + "0123456789abcdef", "plain"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    samples = [(name, np.full((4, 2 + n), n, np.float16), {"n": n, "é": [None]}) for n, name in enumerate(NAMES)]
    write_store(tmp_path, samples, utterances_per_shard=3)
    return tmp_path


def test_an_utterance_comes_back_as_it_was_given(store: Path) -> None:
    split = open_store(store, "train")
    assert list(split) == NAMES and len(split) == len(NAMES)
    for n, name in enumerate(NAMES):
        assert name in split
        key, embedding, metadata = split[name]
        assert key == name and metadata == {"n": n, "é": [None]}
        assert embedding.dtype == np.float16 and np.array_equal(embedding, np.full((4, 2 + n), n))


def test_what_a_split_holds_can_be_written_again(store: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "copy", open_store(store).values())
    for ours, theirs in zip(open_store(tmp_path / "copy").values(), open_store(store).values(), strict=True):
        assert (ours.key, ours.metadata) == (theirs.key, theirs.metadata)
        assert np.array_equal(ours.embedding, theirs.embedding)


def test_int8_is_read_as_float16(tmp_path: Path) -> None:
    embedding = np.linspace(-3, 3, 40, dtype=np.float32).reshape(4, 10)
    write_store(tmp_path, [("a", embedding, {})], dtype="int8")
    found = open_store(tmp_path)["a"].embedding
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, embedding, atol=0.02)


def test_an_unknown_key_is_a_key_error_that_names_the_nearest(store: Path) -> None:
    split = open_store(store)
    assert "plan" not in split and split.get("plan") is None and 3 not in split
    with pytest.raises(KeyError) as caught:
        split["plan"]
    assert isinstance(caught.value, StoreError)
    assert str(caught.value) == f"{store}: train holds no utterance 'plan'; did you mean plain?"


def test_a_split_that_is_not_there_is_named(store: Path) -> None:
    with pytest.raises(StoreError, match=r"has no split 'val'; it has train"):
        open_store(store, "val")


def test_a_tar_that_is_gone_is_named(store: Path) -> None:
    split = open_store(store)
    tar(store, "train", 2).unlink()
    with pytest.raises(StoreError, match=rf"{tar(store, 'train', 2).name}: cannot be opened"):
        split["plain"]


def test_nothing_is_read_out_of_a_damaged_tar(store: Path) -> None:
    damaged = tar(store, "train", 2)
    content = bytearray(damaged.read_bytes())
    content[700] ^= 1  # in the middle of an embedding
    damaged.write_bytes(bytes(content))
    split = open_store(store)
    with pytest.raises(
        StoreError,
        match=rf"{damaged.name}: has .* it is damaged, so nothing is read out of it\. .* give write_store",
    ):
        split["plain"]


def test_a_scale_of_another_shape_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [("a", np.ones((8, 3), np.float16), {})], dtype="int8")
    path = tar(tmp_path / "store", "train")
    content = path.read_bytes().replace(b"(8,), }", b"(8,1),}", 1)
    path.write_bytes(content)
    own = index(tmp_path / "store", "train")
    rows, (record,) = read_index(own)
    own.write_bytes(encode_index(rows, [replace(record, tar_digest=xxhash.xxh3_64_hexdigest(content))]))
    (tmp_path / "store" / "train.index").unlink()
    with pytest.raises(
        StoreError, match=rf"^{path.name}: a: scale\.npy: is \(8, 1\) float32; expected \(8,\) float32$"
    ):
        open_store(tmp_path / "store")["a"]
