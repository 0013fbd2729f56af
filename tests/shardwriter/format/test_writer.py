"""One shard: its bytes, its index, and that it appears whole or not at all."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import webdataset
import xxhash
from helpers.builds import load_npy

from iianet.errors import StoreError
from shardwriter.encode.write_shards import publish_shard
from shardwriter.format.index import INDEX_SCHEMA, ShardRecord, decode_index, encode_index, entries_of
from shardwriter.format.names import escape_key
from shardwriter.format.npy import NPY_HEADER_BYTES
from shardwriter.format.sample import Failed, Sample, Source, Stored, encode_sample
from shardwriter.format.shard_writer import ShardWriter, WrittenShard
from shardwriter.storage.folder import Folder

GOLDEN_DIGEST = "757dfdc80d4f18be"
"""xxh3_64 of the tar of `SAMPLES`: whoever changes it makes another format version. How it is made anew: see
test_format.py."""
GOLDEN_FULL_DIGEST = "88b12e621bcb8d76"
"""The same of the tar of one sample with every member."""

SHARD = "train-0123456789-000000"
SAMPLES: list[tuple[str, npt.NDArray[Any], dict[str, Any]]] = [
    ("one", np.arange(8, dtype=np.float16).reshape(2, 4), {"utterance": "one", "frames": 4, "mouth": "m/ö.npz"}),
    (escape_key("b.2/" + "x" * 200), np.full((2, 3), -0.5, dtype=np.float16), {"frames": 3, "utterance": "two"}),
]
SOURCE = Source(mouth="m/one.npz", size=10, mtime_ns=20, digest="abc")


def sample(embedding: npt.NDArray[Any], metadata: dict[str, Any], source: Source = SOURCE) -> Sample:
    return encode_sample(Stored(embedding, None), metadata, source)


ENCODED = [(key, sample(embedding, metadata)) for key, embedding, metadata in SAMPLES]


def written(staging: Path, samples: Iterable[tuple[str, Sample | Failed]] = ENCODED) -> WrittenShard:
    staging.mkdir(exist_ok=True)
    with ShardWriter(staging) as writer:
        for key, item in samples:
            writer.add(key, item)
        return writer.finish()


def write_shard(
    store: Path, samples: Iterable[tuple[str, Sample | Failed]] = ENCODED, shard: str = SHARD
) -> tuple[Path, Path]:
    """Its tar and its index."""
    publish_shard(Folder(store), shard, written(store, samples))
    return store / f"{shard}.tar", store / f"{shard}.index"


def read_index(path: Path) -> tuple[pa.Table, list[ShardRecord]]:
    with path.open("rb") as stream:
        return decode_index(stream, str(path))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shard"))[0]


def test_same_samples_always_give_the_same_bytes(tar: Path, tmp_path: Path) -> None:
    again, _ = write_shard(tmp_path, shard="val-9876543210-000007")
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
        members = archive.getnames()
    assert members == [f"{key}.{member}" for key, _, _ in SAMPLES for member in ("embedding.npy", "json")]


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
    full = encode_sample(Stored(values, scale), {"frames": 2}, SOURCE, audio)
    path, index = write_shard(tmp_path, [("one", full)])
    content = path.read_bytes()
    assert xxhash.xxh3_64_hexdigest(content) == GOLDEN_FULL_DIGEST
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["one.embedding.npy", "one.scale.npy", "one.json", "one.audio.npy"]
    (row,) = read_index(index)[0].to_pylist()
    for member, array in {"embedding": values, "scale": scale, "audio": audio}.items():
        found = load_npy(content[row[f"{member}_offset"] :][: row[f"{member}_length"]])
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_index_records_the_tar_and_the_sources(tar: Path) -> None:
    table, (record,) = read_index(tar.with_suffix(".index"))
    assert (record.shard, record.rows) == (SHARD, 2)
    assert record.tar_size == tar.stat().st_size
    assert record.tar_digest == xxhash.xxh3_64_hexdigest(tar.read_bytes())
    row = table.to_pylist()[0]
    assert [row[f"source_{name}"] for name in ("size", "mtime_ns", "digest")] == [10, 20, "abc"]
    assert row["mouth"] == "m/one.npz"


def test_what_is_written_counts_its_bytes(tmp_path: Path) -> None:
    audio = np.zeros(100, dtype=np.int16)
    with_audio = encode_sample(Stored(SAMPLES[0][1], None), {}, SOURCE, audio)
    found = written(tmp_path, [("one", with_audio), ("two", with_audio)])
    assert found.audio_bytes == 2 * audio.nbytes
    assert found.tar is not None and found.tar_size == found.tar.stat().st_size


def test_webdataset_reads_keys_arrays_and_json(tar: Path) -> None:
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    for item, (key, embedding, metadata) in zip(found, SAMPLES, strict=True):
        assert {name for name in item if not name.startswith("__")} == {"embedding.npy", "json"}
        assert (item["__key__"], item["json"]) == (key, metadata)
        assert item["embedding.npy"].dtype == embedding.dtype
        np.testing.assert_array_equal(item["embedding.npy"], embedding)


def test_view_is_stored_as_it_reads(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    path, _ = write_shard(tmp_path, [("view", sample(whole.T[1:, ::2], {}))])
    (found,) = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    np.testing.assert_array_equal(found["embedding.npy"], whole.T[1:, ::2])


def test_nothing_is_left_behind_when_writing_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path) as writer:
        writer.add(*ENCODED[0])
        assert names(tmp_path)
        raise KeyboardInterrupt
    assert not names(tmp_path)


def test_the_digest_is_of_what_was_meant_and_not_of_what_a_disk_gives_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(descriptor: int) -> None:
        with open(f"/proc/self/fd/{descriptor}", "r+b") as stream:
            stream.seek(700)
            stream.write(b"\xff")

    whole = written(tmp_path)
    monkeypatch.setattr(os, "fsync", spoil)
    spoilt = written(tmp_path)
    assert spoilt.tar is not None and whole.tar is not None
    assert spoilt.tar.read_bytes() != whole.tar.read_bytes()
    assert spoilt.tar_digest == whole.tar_digest, "so that whoever reads it notices"


def test_a_shard_that_is_written_is_not_published_yet(tmp_path: Path) -> None:
    found = written(tmp_path)
    assert found.tar is not None and names(tmp_path) == {found.tar.name}
    assert found.tar.name.startswith(".tmp-")


def test_index_is_written_when_its_tar_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def no_room(path: Path, to: Path) -> Path:
        if to.suffix == ".index":
            with tarfile.open(tmp_path / f"{SHARD}.tar") as archive:
                assert len(archive.getnames()) == 4
            raise OSError("no space left on device")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", no_room)
    with pytest.raises(StoreError, match=r"cannot be written \(no space left on device\)"):
        write_shard(tmp_path)
    assert names(tmp_path) == {f"{SHARD}.tar"}


def test_no_index_without_its_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StoreError, match=r"cannot be written \(stale file handle\)"):
        write_shard(tmp_path)
    assert not names(tmp_path)


FAILURES = [
    ("one", Failed(reason="it is bad", source=SOURCE)),
    ("two", Failed(reason="it is missing", source=Source(mouth="m/two.npz"))),
]


def test_shard_of_failures_alone_has_an_index_and_no_tar(tmp_path: Path) -> None:
    write_shard(tmp_path, FAILURES)
    assert names(tmp_path) == {f"{SHARD}.index"}
    table, (record,) = read_index(tmp_path / f"{SHARD}.index")
    assert (record.tar_size, record.tar_digest, record.rows) == (0, "", 2)
    assert table["error"].to_pylist() == ["it is bad", "it is missing"]
    assert table["embedding_offset"].to_pylist() == [None, None]
    assert table["source_size"].to_pylist() == [10, None]


def test_a_shard_whose_utterances_all_fail_now_loses_its_tar(tmp_path: Path) -> None:
    write_shard(tmp_path)
    write_shard(tmp_path, FAILURES)
    assert names(tmp_path) == {f"{SHARD}.index"}


def test_failure_takes_no_room_in_the_tar(tar: Path, tmp_path: Path) -> None:
    one, two = ENCODED
    path, index = write_shard(tmp_path, [one, ("bad", Failed(reason="it is bad", source=SOURCE)), two])
    assert path.read_bytes() == tar.read_bytes()
    table, _ = read_index(index)
    assert table["key"].to_pylist() == [one[0], "bad", two[0]]
    offsets = [offset for offset in table["embedding_offset"].to_pylist() if offset is not None]
    assert all(before < after for before, after in pairwise(offsets)) and len(offsets) == 2


def test_several_shards_share_an_index_and_read_back_in_their_order(tmp_path: Path) -> None:
    tables, records = [], []
    for number, samples in enumerate((ENCODED, FAILURES)):
        found = written(tmp_path, samples)
        tables.append(found.index)
        records.append(found.record(f"train-0123456789-{number:06d}"))
    table = pa.concat_tables(tables)
    content = encode_index(table, records)
    found_table, found_records = decode_index(io.BytesIO(content), "train.index")
    assert found_table.equals(table) and found_records == records
    keys, _ = decode_index(io.BytesIO(content), "train.index", ["error", "key"])
    assert keys.equals(table.select(["error", "key"]))


def test_an_entry_lists_the_members_that_it_has(tar: Path) -> None:
    table, _ = read_index(tar.with_suffix(".index"))
    stored, _ = entries_of("train", SHARD, table)
    assert list(stored.members) == ["embedding.npy", "json"]
    assert stored.where == f"{SHARD}.tar: one"
    (failed, _) = entries_of("train", SHARD, written(tar.parent, FAILURES).index)
    assert failed.members == {} and failed.error == "it is bad"


DAMAGE = {
    "empty": lambda _: b"",
    "truncated": lambda content: content[:-20],
    "nonsense": lambda _: b"{}" * 100,
    "flipped byte": lambda content: flipped(content, content.index(b"\x28\xb5\x2f\xfd") + 8),
    "fewer rows": lambda content: encode_index(read(content)[0].slice(1), read(content)[1]),
    "more shards": lambda content: encode_index(read(content)[0], read(content)[1] * 2),
    "no columns": lambda content: encode_index(read(content)[0].drop_columns(["mouth"]), read(content)[1]),
    "other version": lambda content: other_version(content),
}


def read(content: bytes) -> tuple[pa.Table, list[ShardRecord]]:
    return decode_index(io.BytesIO(content), "here")


def flipped(content: bytes, at: int, mask: int = 0xFF) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def other_version(content: bytes) -> bytes:
    """A file whose metadata say another version."""
    table, records = read(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardwriter.format.table.FORMAT_VERSION", 1)
        return encode_index(table, records)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_named_with_the_cure(tar: Path, damage: str) -> None:
    content = tar.with_suffix(".index").read_bytes()
    assert read(content)[0].schema == INDEX_SCHEMA
    damaged = DAMAGE[damage](content)
    with pytest.raises(StoreError, match=r"(?s)^here: not an index of this format .* delete it and run build-shards"):
        read(damaged)
