"""One shard: its bytes, its index, and that it appears whole or not at all."""

import json
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
import xxhash
from helpers.builds import load_npy

from shardwriter.format import shard_writer as writer
from shardwriter.format.index import read_index
from shardwriter.format.names import NPY_HEADER_BYTES, escape_key
from shardwriter.format.shard_writer import ShardWriter, Source

GOLDEN_DIGEST = "757dfdc80d4f18be"
"""xxh3_64 of the tar of `SAMPLES`: whoever changes it makes another format version."""
GOLDEN_FULL_DIGEST = "88b12e621bcb8d76"
"""Of that of one sample with every member."""

SAMPLES: list[tuple[str, npt.NDArray[Any], dict[str, Any]]] = [
    ("one", np.arange(8, dtype=np.float16).reshape(2, 4), {"utterance": "one", "frames": 4, "mouth": "m/ö.npz"}),
    (escape_key("b.2/" + "x" * 200), np.full((2, 3), -0.5, dtype=np.float16), {"frames": 3, "utterance": "two"}),
]
SOURCE = Source(mouth="m/one.npz", size=10, mtime_ns=20, digest="abc")


def write_shard(store: Path, shard: str = "train-000000") -> Path:
    store.mkdir(exist_ok=True)
    with ShardWriter(store, shard, "plan-000.parquet") as shard_writer:
        for key, embedding, metadata in SAMPLES:
            shard_writer.add(key, embedding, metadata, SOURCE)
    return store / f"{shard}.tar"


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shard"))


def test_same_samples_always_give_the_same_bytes(tar: Path, tmp_path: Path) -> None:
    again = write_shard(tmp_path, "val-000007")
    assert again.read_bytes() == tar.read_bytes()
    assert xxhash.xxh3_64_hexdigest(tar.read_bytes()) == GOLDEN_DIGEST


def test_tar_is_ustar_and_tells_nothing_of_time_or_owner(tar: Path) -> None:
    content = tar.read_bytes()
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert len(members) == 4
    for member in members:
        assert content[member.offset + 257 : member.offset + 265] == b"ustar\x0000"
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert (member.mode, member.type, member.pax_headers) == (0o644, tarfile.REGTYPE, {})
        assert len(member.name) <= 100


def test_embedding_comes_right_before_its_json(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        names = archive.getnames()
    assert names == [f"{key}.{member}" for key, _, _ in SAMPLES for member in ("embedding.npy", "json")]


def test_json_member_is_compact_sorted_and_utf8(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        stream = archive.extractfile("one.json")
        assert stream is not None
        assert stream.read().decode() == '{"frames":4,"mouth":"m/ö.npz","utterance":"one"}'


def test_index_points_at_the_payloads(tar: Path) -> None:
    content = tar.read_bytes()
    table, _ = read_index(tar.with_suffix(".index"))
    for row, (key, embedding, metadata) in zip(table.to_pylist(), SAMPLES, strict=True):
        assert (row["key"], row["frames"], row["error"]) == (key, embedding.shape[1], None)
        found = content[row["embedding_offset"] :][: row["embedding_length"]]
        np.testing.assert_array_equal(load_npy(found), embedding)
        assert found[NPY_HEADER_BYTES:] == embedding.tobytes()
        assert json.loads(content[row["metadata_offset"] :][: row["metadata_length"]]) == metadata


def test_further_members_come_in_their_order(tmp_path: Path) -> None:
    values, scale = np.array([[1, -127], [0, 3]], dtype=np.int8), np.array([0.5, 2], dtype=np.float32)
    audio = np.arange(-3, 3, dtype=np.int16)
    with ShardWriter(tmp_path, "train-000000", "plan-000.parquet") as shard_writer:
        shard_writer.add("one", values, {"frames": 2}, SOURCE, scale=scale, audio=audio)
    content = (tmp_path / "train-000000.tar").read_bytes()
    assert xxhash.xxh3_64_hexdigest(content) == GOLDEN_FULL_DIGEST
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        assert archive.getnames() == ["one.embedding.npy", "one.scale.npy", "one.json", "one.audio.npy"]
    (row,) = read_index(tmp_path / "train-000000.index")[0].to_pylist()
    for member, array in {"embedding": values, "scale": scale, "audio": audio}.items():
        found = load_npy(content[row[f"{member}_offset"] :][: row[f"{member}_length"]])
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_index_records_the_tar_and_the_sources(tar: Path) -> None:
    table, (record,) = read_index(tar.with_suffix(".index"))
    assert (record.shard, record.plan, record.rows) == ("train-000000", "plan-000.parquet", 2)
    assert record.tar_size == tar.stat().st_size
    assert record.tar_digest == xxhash.xxh3_64_hexdigest(tar.read_bytes())
    row = table.to_pylist()[0]
    assert [row[f"source_{name}"] for name in ("size", "mtime_ns", "digest")] == [10, 20, "abc"]
    assert row["mouth"] == "m/one.npz"


def test_webdataset_reads_keys_arrays_and_json(tar: Path) -> None:
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    for sample, (key, embedding, metadata) in zip(samples, SAMPLES, strict=True):
        assert {name for name in sample if not name.startswith("__")} == {"embedding.npy", "json"}
        assert (sample["__key__"], sample["json"]) == (key, metadata)
        assert sample["embedding.npy"].dtype == embedding.dtype
        np.testing.assert_array_equal(sample["embedding.npy"], embedding)


def test_view_is_stored_as_it_reads(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    with ShardWriter(tmp_path, "train-000000", "plan-000.parquet") as shard_writer:
        shard_writer.add("view", whole.T[1:, ::2], {})
    (sample,) = webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False).decode()
    np.testing.assert_array_equal(sample["embedding.npy"], whole.T[1:, ::2])


def test_nothing_is_left_behind_when_writing_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "train-000000", "plan-000.parquet") as shard_writer:
        shard_writer.add(*SAMPLES[0])
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_index_is_written_when_its_tar_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def no_room(store: Path, *_: object) -> None:
        with tarfile.open(store / "train-000000.tar") as archive:
            seen.append(len(archive.getnames()) == 4)
        raise OSError("no space left on device")

    monkeypatch.setattr(writer, "write_index", no_room)
    with pytest.raises(OSError, match="no space"):
        write_shard(tmp_path)
    assert seen == [True]
    assert not list(tmp_path.glob("*.index")) and not list(tmp_path.glob(".tmp-*"))


def test_no_index_without_its_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="stale"):
        write_shard(tmp_path)
    assert not list(tmp_path.iterdir())


def test_shard_of_failures_alone_has_an_index_and_no_tar(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train-000000", "plan-000.parquet") as shard_writer:
        shard_writer.fail("one", "it is bad", SOURCE)
        shard_writer.fail("two", "it is missing", Source(mouth="m/two.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.index"]
    table, (record,) = read_index(tmp_path / "train-000000.index")
    assert (record.tar_size, record.tar_digest, record.rows) == (0, "", 2)
    assert table["error"].to_pylist() == ["it is bad", "it is missing"]
    assert table["embedding_offset"].to_pylist() == [None, None]
    assert table["source_size"].to_pylist() == [10, None]


def test_failure_takes_no_room_in_the_tar(tar: Path, tmp_path: Path) -> None:
    (one, two) = SAMPLES
    with ShardWriter(tmp_path, "train-000000", "plan-000.parquet") as shard_writer:
        shard_writer.add(*one)
        shard_writer.fail("bad", "it is bad", SOURCE)
        shard_writer.add(*two)
    assert (tmp_path / "train-000000.tar").read_bytes() == tar.read_bytes()
    table, _ = read_index(tmp_path / "train-000000.index")
    assert table["key"].to_pylist() == [one[0], "bad", two[0]]
    offsets = [offset for offset in table["embedding_offset"].to_pylist() if offset is not None]
    assert all(before < after for before, after in pairwise(offsets)) and len(offsets) == 2
