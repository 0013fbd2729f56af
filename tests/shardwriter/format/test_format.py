"""The format: keys, names, hash order, and what store.json holds.

Golden values, here and in test_writer.py, are of version 3 of the format: names with ids, store.json, a plan's id, and
the bytes of tars. The tests themselves printed them: one that fails shows the new value beside the old one. Who has to
change one makes stores that today's code cannot read, so FORMAT_VERSION goes up with it, and then all of them are made
anew in this way.
"""

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.builds import edited

from shardwriter.format.document import seal
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    FORMAT_VERSION,
    ID_DIGITS,
    KEY_BYTES,
    METADATA_MEMBER,
    SCALE_MEMBER,
    SPLITS,
    ShardName,
    escape_key,
    hash_position,
    index_name,
    member_name,
    parse_plan_name,
    parse_shard,
    plan_id_of,
    plan_name,
    tar_name,
    unescape_key,
)
from shardwriter.format.plan import PLAN_SCHEMA, make_plan
from shardwriter.format.record import Identity, OtherVersion, StoreRecord

ID = "0123456789"
GOLDEN_PLAN_ID = "d76836df11"
"""Of the plan in `test_plans_id_never_changes`."""
GOLDEN_RECORD = """{
  "format": "iianet-shards",
  "version": 3,
  "identity": {
    "encoder": {
      "fingerprint": "f"
    },
    "precision": {
      "tf32": false
    },
    "preprocessing": {},
    "dtype": "float16",
    "dim": 512,
    "fps": 25,
    "audio": "path"
  },
  "data_root": "/ü",
  "plans": [
    "plan-0123456789.parquet"
  ],
  "pending": "plan-aaaaaaaaaa.parquet",
  "retired": {
    "plan-bbbbbbbbbb.parquet": "2026-01-01T00:00:00+00:00"
  },
  "digest": "a420d1ccab030dded5fff09f76a58c86"
}
"""
"""store.json of `make_record()`."""

NAMES = [
    "spk00_u0",
    "6330311066473698535_00011",
    "a.b.c",
    "a/b/c",
    "~x",
    "50%",
    "%41",
    "A",
    "a b",
    "ümläut",
    "嘴",
    "-_",
]


def made_names(count: int, longest: int) -> list[str]:
    """Names of all kinds of characters, drawn from a seed."""
    alphabet = list("aZ09_-./~% %\\:é嘴\N{GRINNING FACE}\n")
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(alphabet, rng.integers(1, longest + 1))) for _ in range(count)]


def make_identity(**changes: object) -> Identity:
    facts = {"encoder": {"fingerprint": "f"}, "precision": {"tf32": False}, "dtype": "float16", "dim": 512, "fps": 25}
    return Identity(**{**facts, **changes})  # type: ignore[arg-type]


def test_escaped_key_gives_its_name_back() -> None:
    names = NAMES + [name for name in made_names(500, 12) if len(escape_key(name)) < KEY_BYTES]
    assert len(names) > 300
    assert [unescape_key(escape_key(name)) for name in names] == names


@pytest.mark.parametrize("longest", [8, 200])
def test_key_has_no_dot_no_slash_and_at_most_80_bytes(longest: int) -> None:
    for name in NAMES + made_names(500, longest):
        assert re.fullmatch(r"[A-Za-z0-9_%-]{1,80}", escape_key(name)), name


def test_plain_name_is_its_own_key() -> None:
    assert escape_key("6330311066473698535_00011") == "6330311066473698535_00011"
    assert escape_key("k" * 80) == "k" * 80


def test_distinct_names_have_distinct_keys_even_where_they_are_cut() -> None:
    names = set(NAMES + made_names(1000, 12)) | {"k" * 70 + end for end in ("", "x" * 20, "x" * 21, "y" * 20)}
    names |= {"嘴" * 40 + str(number) for number in range(100)}
    assert len({escape_key(name) for name in names}) == len(names)


@pytest.mark.parametrize("shift", range(9))
def test_cut_key_has_no_half_escape(shift: int) -> None:
    key = escape_key("x" * shift + "嘴" * 40)
    assert len(key) <= KEY_BYTES
    assert not re.search(r"%(?![0-9A-F]{2})", key)


def test_longest_member_name_fits_ustar() -> None:
    key = escape_key("k" * 1000)
    assert len(key) == KEY_BYTES
    members = (EMBEDDING_MEMBER, SCALE_MEMBER, METADATA_MEMBER, AUDIO_MEMBER)
    assert max(len(member_name(f"{key}@10", member)) for member in members) <= 100


def test_hash_order_never_changes() -> None:
    """Golden: another hash would scatter what is read together in every store there is."""
    assert hash_position("spk00_u0") == 13443943320483926104
    assert hash_position("a") != hash_position("b")


def test_plans_id_never_changes() -> None:
    """Golden: another id would give the shards of an interrupted build other names, so it would start again."""
    row = {"shard": 0, "utterance": "ü/a", "mouth": "m/ü.npz"}
    audio = [{"mixture": "mix/a.wav", "source": "s1/a.wav", "speaker": 1, "num_samples": 640}]
    rows = [{**row, "split": "train", "key": "a", "audio": audio}, {**row, "split": "val", "key": "b", "audio": []}]
    plan = make_plan(
        kind="extend",
        base=[plan_name(ID)],
        identity=make_identity(),
        manifest_digests={"train": "d"},
        table=pa.Table.from_pylist(rows, schema=PLAN_SCHEMA),
    )
    assert plan.header.id == GOLDEN_PLAN_ID


def test_names_never_change() -> None:
    """Golden: stores that there are would not be found."""
    shard = str(ShardName("train", ID, 7))
    assert [plan_name(ID), shard, tar_name(shard), index_name(shard)] == [
        "plan-0123456789.parquet",
        "train-0123456789-000007",
        "train-0123456789-000007.tar",
        "train-0123456789-000007.index",
    ]


@pytest.mark.parametrize("number", [0, 7, 999_999, 1_000_000, 12_345_678])
@pytest.mark.parametrize("split", [*SPLITS, "train_view1", "train_view12"])
def test_a_shards_name_gives_split_plan_and_number_back(split: str, number: int) -> None:
    name = ShardName(split, ID, number)
    assert parse_shard(str(name)) == name
    assert {plan_id_of(tar_name(str(name))), plan_id_of(index_name(str(name)))} == {ID}


def test_a_plans_name_gives_its_id_back() -> None:
    assert len(ID) == ID_DIGITS
    assert parse_plan_name(plan_name(ID)) == plan_id_of(plan_name(ID)) == ID


@pytest.mark.parametrize(
    "name",
    [
        "plan-000.parquet",
        "plan-012345678.parquet",
        "plan-01234567890.parquet",
        "plan-012345678G.parquet",
        "plan-0123456789.parquet.tmp",
        ".tmp-plan-0123456789.parquet",
        "plan.parquet",
    ],
)
def test_other_file_is_no_plan(name: str) -> None:
    assert parse_plan_name(name) is None
    assert plan_id_of(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "train-000000",
        "train-0123456789-00",
        "dev-0123456789-000000",
        "train_view0-0123456789-000000",
        "train-0123456789-000000.tar",
        ".tmp-train-0123456789-000000",
    ],
)
def test_other_file_is_no_shard(name: str) -> None:
    assert parse_shard(name) is None
    assert plan_id_of(tar_name(name)) is None


@pytest.mark.parametrize("name", ["notes.txt", "train.index", "store.json", "README.md", "train-0123456789-000000.txt"])
def test_files_of_no_plan_belong_to_none(name: str) -> None:
    assert plan_id_of(name) is None


@pytest.mark.parametrize("name", ["plan-000.parquet", "train-000000.tar", "val-000001.index", "train_view1-000000.tar"])
def test_files_of_version_1_are_none_of_ours(name: str) -> None:
    """So nothing ever deletes them."""
    assert plan_id_of(name) is None


def make_record(**changes: Any) -> StoreRecord:
    facts = {
        "identity": make_identity(),
        "data_root": "/ü",
        "plans": (plan_name(ID),),
        "pending": plan_name("a" * 10),
        "retired": {plan_name("b" * 10): "2026-01-01T00:00:00+00:00"},
    }
    return StoreRecord(**{**facts, **changes})


def test_store_record_is_written_as_ever() -> None:
    """Golden."""
    assert make_record().to_bytes().decode() == GOLDEN_RECORD


@pytest.mark.parametrize("changes", [{}, {"plans": (), "pending": None, "retired": {}, "data_root": None}])
def test_store_record_reads_back_from_its_json(changes: dict[str, Any]) -> None:
    record = make_record(**changes)
    assert StoreRecord.from_bytes(record.to_bytes()) == record


def test_a_record_names_all_plans_that_belong_to_the_store() -> None:
    assert set(make_record().named) == {plan_name(ID), plan_name("a" * 10), plan_name("b" * 10)}
    assert make_record(pending=None, retired={}).named == (plan_name(ID),)


def changed(change: dict[str, object]) -> bytes:
    """store.json with other values."""
    return edited(make_record().to_bytes(), **change)


@pytest.mark.parametrize("version", [1, 2, 4, "3", None])
def test_store_record_of_another_version_is_distinguished_from_a_damaged_one(version: object) -> None:
    with pytest.raises(OtherVersion, match=rf"version {version!r} of the format; expected {FORMAT_VERSION}"):
        StoreRecord.from_bytes(changed({"version": version}))


def test_a_version_that_is_damaged_is_no_reason_to_delete_a_store() -> None:
    content = make_record().to_bytes().replace(b'"version": 3', b'"version": 7')
    with pytest.raises(ValueError, match="its digest is"):
        StoreRecord.from_bytes(content)


def test_a_record_of_an_earlier_version_has_no_digest() -> None:
    facts = {name: value for name, value in json.loads(make_record().to_bytes()).items() if name != "digest"}
    with pytest.raises(OtherVersion):
        StoreRecord.from_bytes(json.dumps({**facts, "version": 2}).encode())


@pytest.mark.parametrize("name", ["identity", "plans", "pending", "retired", "data_root", "digest"])
def test_a_record_that_lacks_something_is_refused(name: str) -> None:
    facts = {other: value for other, value in json.loads(make_record().to_bytes()).items() if other != name}
    facts.pop("digest", None)
    content = json.dumps(facts).encode() if name == "digest" else seal(facts)
    with pytest.raises(ValueError, match=name):
        StoreRecord.from_bytes(content)


@pytest.mark.parametrize("change", [{"format": "other"}, {"identity": {"dim": 1}}, {"plans": None}, {"retired": 3}])
def test_damaged_store_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        StoreRecord.from_bytes(changed(change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_what_is_no_store_record_is_refused(content: bytes) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        StoreRecord.from_bytes(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": {"fingerprint": "g"}}, "encoder fingerprint: f here, g there"),
        ({"precision": {"tf32": True}}, "precision"),
        ({"preprocessing": {"mean": 0.0}}, "preprocessing"),
        ({"dim": 256}, "dim: 512 here, 256 there"),
        ({"fps": 30}, "fps: 25 here, 30 there"),
    ],
)
def test_difference_of_identities_is_named(change: dict[str, object], named: str) -> None:
    (difference,) = make_identity().differences(make_identity(**change))
    assert difference.startswith(named)


def test_same_weights_from_another_file_are_no_difference() -> None:
    renamed = make_identity(encoder={"fingerprint": "f", "pretrain": "renamed.pth.tar"})
    assert make_identity().differences(renamed) == []


@pytest.mark.parametrize(("dtype", "audio"), [("int8", "path"), ("float16", "embed")])
def test_how_embeddings_are_stored_is_a_difference_too(dtype: str, audio: str) -> None:
    other = make_identity(dtype=dtype, audio=audio)
    (difference,) = make_identity().differences(other)
    assert difference.startswith("dtype" if dtype == "int8" else "audio")
