"""Whatever lies in a file, its parser gives what it says, or one of our errors that names it: properties."""

import io
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.campaign import archives, documents, tables
from helpers.campaign.damage import GENERAL, Change
from helpers.corpus import make_corpus, make_frames, write_mouth
from helpers.foreign_tars import embedding, npy, own_members, write_tar
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iianet.config.schema import load_config
from iianet.errors import ConfigError, FeatureStoreError, ManifestError, StoreError
from shardwriter.corpus.lists import read_lists
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.format.index import ShardRecord, decode_index, encode_index, index_table
from shardwriter.format.names import (
    KEY_BYTES,
    ShardName,
    escape_key,
    is_split,
    parse_plan_name,
    parse_shard,
    parse_view_split,
    plan_name,
    split_view_key,
    unescape_key,
    view_key,
    view_split,
)
from shardwriter.format.npy import read_npy
from shardwriter.format.plan import PLAN_SCHEMA, decode_header, decode_plan, encode_plan, make_plan
from shardwriter.format.record import Identity, StoreRecord
from shardwriter.storage.folder import Folder
from shardwriter.storage.tar_samples import read_samples
from shardwriter.store.snapshot import read_record

settings.register_profile(
    "parsers", deadline=None, max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("parsers")

LETTERS = st.characters(exclude_categories=["Cs"])  # a surrogate stands for a byte that is no text
NAMES = st.text(LETTERS, min_size=1, max_size=200)
IDS = st.text("0123456789abcdef", min_size=10, max_size=10)
SPLIT_NAMES = st.builds(view_split, st.sampled_from(["train", "val", "test"]), st.integers(0, 1000))
DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["train", "plans"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
IDENTITY = Identity(encoder={"name": "A", "fingerprint": "f"}, dtype="float16", dim=6, fps=25)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def changed(content: bytes, *changes: Change) -> st.SearchStrategy[bytes]:
    """Content that was changed in one of these ways, or in a way that suits any file."""

    def change(chance: random.Random, how: Change) -> bytes:
        return how(chance, content)

    return st.builds(change, st.randoms(use_true_random=False), st.sampled_from([*changes, *changes, *GENERAL]))


# Names


@given(NAMES)
def test_a_key_is_short_plain_and_stands_for_one_name(name: str) -> None:
    key = escape_key(name)
    assert key.isascii() and len(key) <= KEY_BYTES
    assert not set(key) & set("./@~ \n\\")
    assert unescape_key(key) == name or len(key) > KEY_BYTES - 3


@given(NAMES, st.integers(0, 10**6))
def test_a_views_key_says_which_view_of_which_utterance_it_is(name: str, view: int) -> None:
    key = escape_key(name)
    assert split_view_key(view_key(key, view)) == (key, view)


@given(st.builds(ShardName, SPLIT_NAMES, IDS, st.integers(0, 10**7)))
def test_a_shards_name_is_read_as_it_was_written(shard: ShardName) -> None:
    assert parse_shard(str(shard)) == shard
    assert parse_plan_name(plan_name(shard.plan_id)) == shard.plan_id


NEAR_SHARDS = st.from_regex(r"(train|val|test)(_view\d+)?-[0-9a-f]{10}-\d{5,9}(\.tar)?\n?", fullmatch=True)


@given(NEAR_SHARDS | NAMES)
@example("train-0123456789-00000\u0660")  # a digit of another script
@example("train-0123456789-0000001")
@example("train-0123456789-000001\n")
def test_no_two_names_stand_for_one_shard(name: str) -> None:
    shard = parse_shard(name)
    assert shard is None or str(shard) == name


@given(st.from_regex(r"plan-[0-9a-f]{9,11}\.parquet\n?", fullmatch=True) | NAMES)
def test_no_two_names_stand_for_one_plan(name: str) -> None:
    plan_id = parse_plan_name(name)
    assert plan_id is None or plan_name(plan_id) == name


@given(st.from_regex(r"(train|val|test)(_view\d{0,5})?\n?", fullmatch=True) | NAMES)
@example("train_view1\u0660")
@example("train_view01")
def test_no_two_names_stand_for_one_split(name: str) -> None:
    if is_split(name):
        assert view_split(*parse_view_split(name)) == name
    else:
        with pytest.raises(ValueError, match="is not a split"):
            parse_view_split(name)


# npy, npz and tars


@given(
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from(["<f2", "<f4", "|i1", "<i2", ">f4", "<i8"]),
    st.booleans(),
)
def test_an_npy_is_read_as_numpy_wrote_it(shape: tuple[int, ...], dtype: str, column_major: bool) -> None:
    values = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape, order="F" if column_major else "C")
    found = read_npy(npy(values), "x.npy")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@given(st.binary(max_size=300) | changed(npy(embedding(1)), archives.edit_npy))
def test_bytes_that_are_no_npy_are_refused(content: bytes) -> None:
    try:
        found = read_npy(content, "x.npy")
    except StoreError as error:
        assert str(error).startswith("x.npy: ")
    else:
        assert found.nbytes <= len(content) and not found.dtype.hasobject


def _mouth() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        write_mouth(Path(name) / "a.npz", make_frames(1), compressed=True)
        return (Path(name) / "a.npz").read_bytes()


@given(changed(_mouth(), *archives.ZIPS))
def test_an_npz_holds_a_mouth_or_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "mouth.npz"
    path.write_bytes(content)
    try:
        frames = read_mouth_npz(path).frames
    except FeatureStoreError as error:
        assert "mouth.npz" in str(error)
    else:
        assert frames.dtype == np.uint8 and frames.shape[1:] == (96, 96)


def _tar() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return write_tar(
            Path(name) / "a.tar", own_members("a", embedding(1)) | own_members("b", embedding(2))
        ).read_bytes()


@given(changed(_tar(), archives.edit_tar_header, archives.edit_members, archives.cut_tar))
def test_a_tar_is_read_to_its_end_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "shard.tar"
    path.write_bytes(content)
    try:
        found = list(read_samples([str(path)]))
    except StoreError as error:
        assert "shard.tar" in str(error)
    else:
        total = sum(len(value) for sample in found for value in sample.values() if isinstance(value, bytes))
        assert total <= len(content)


# The files of a store

PLANS = st.lists(IDS.map(plan_name), max_size=3, unique=True)


@given(st.text(LETTERS, max_size=50), PLANS, st.none() | IDS.map(plan_name))
def test_a_record_is_read_as_it_was_written(data_root: str, plans: list[str], pending: str | None) -> None:
    record = StoreRecord(identity=IDENTITY, data_root=data_root, plans=tuple(plans), pending=pending)
    assert StoreRecord.from_bytes(record.to_bytes()) == record


RECORD = StoreRecord(
    identity=IDENTITY,
    data_root="/data",
    plans=(plan_name("0" * 10),),
    pending=plan_name("1" * 10),
    retired={plan_name("2" * 10): "2026-01-01T00:00:00+00:00"},
).to_bytes()


@given(changed(RECORD, *documents.JSON) | DOCUMENTS.map(lambda document: json.dumps(document).encode()))
def test_a_store_json_is_a_record_or_is_refused(folder: Path, content: bytes) -> None:
    (folder / "store.json").write_bytes(content)
    try:
        record = read_record(Folder(folder))
    except StoreError as error:
        assert str(folder) in str(error)
    else:
        assert all(parse_plan_name(name) for name in record.named)


def _index() -> bytes:
    columns = ("frames", "embedding_offset", "embedding_length", "metadata_offset", "metadata_length", "source_size")
    row: dict[str, Any] = {"key": "a", "mouth": "a.npz", **dict.fromkeys(columns, 128)}
    shard = ShardRecord(shard="train-0123456789-000000", tar_size=10_240, tar_digest="f" * 16, rows=2)
    return encode_index(index_table([row, {**row, "key": "b"}]), [shard])


@given(st.binary(max_size=200) | changed(_index(), *tables.TABLES[:-1]))
def test_an_index_is_one_or_is_refused(content: bytes) -> None:
    try:
        table, records = decode_index(io.BytesIO(content), "store/train-0123456789-000000.index")
    except StoreError as error:
        assert str(error).startswith("store/train-0123456789-000000.index")
    else:
        assert sum(record.rows for record in records) == len(table)


def _plan() -> tuple[str, bytes]:
    import pyarrow as pa

    audio = {"mixture": "m.wav", "source": "s.wav", "speaker": 1, "num_samples": 640}
    rows = [
        {"split": "train", "shard": 0, "key": key, "utterance": key, "mouth": f"{key}.npz", "audio": [audio]}
        for key in "ab"
    ]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    plan = make_plan(kind="extend", base=[], identity=IDENTITY, manifest_digests={"train": "d"}, table=table)
    return plan.header.name, encode_plan(plan)


PLAN_NAME, PLAN = _plan()


@given(st.binary(max_size=200) | changed(PLAN, *tables.TABLES[:-1]))
def test_a_plan_is_one_or_is_refused(content: bytes) -> None:
    where = f"store/{PLAN_NAME}"
    try:
        header = decode_header(io.BytesIO(content), where)
        rows = decode_plan(io.BytesIO(content), where).table
    except StoreError as error:
        assert str(error).startswith(where)
    else:
        assert header.name == PLAN_NAME
        assert rows.schema == PLAN_SCHEMA


# What users write

ROWS = [["a.wav", 640], ["b.wav", 640]]
SOURCES = [["a.wav", "a.npz", 640], ["b.wav", "b.npz", 640]]


@given(
    st.sampled_from(["mix", "s1", "s2"]),
    changed(json.dumps(SOURCES).encode(), *documents.JSON) | DOCUMENTS.map(lambda found: json.dumps(found).encode()),
)
def test_lists_are_rows_or_are_refused(folder: Path, name: str, content: bytes) -> None:
    for other, rows in (("mix", ROWS), ("s1", SOURCES), ("s2", SOURCES)):
        (folder / f"{other}.json").write_text(json.dumps(rows))
    (folder / f"{name}.json").write_bytes(content)
    try:
        lists = read_lists(folder)
    except ManifestError as error:
        assert str(folder) in str(error)
    else:
        assert len({len(rows) for rows in lists.values()}) == 1


@pytest.fixture(scope="module")
def config(folder: Path) -> bytes:
    return make_corpus(folder / "corpus", {"train": 2, "val": 2}).config_file.read_bytes()


@given(st.randoms(use_true_random=False), st.sampled_from([*documents.YAML, *GENERAL]))
def test_a_config_is_one_or_is_refused(folder: Path, config: bytes, chance: random.Random, how: Change) -> None:
    path = folder / "config.yml"
    path.write_bytes(how(chance, config))
    try:
        load_config(path)
    except ConfigError as error:
        assert str(error)


@given(DOCUMENTS | st.text(max_size=100))
def test_a_document_that_is_no_config_is_refused(folder: Path, document: Any) -> None:
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8", errors="replace")
    with pytest.raises(ConfigError, match=r"config\.yml|\w"):
        load_config(path)
