"""The format: keys, names, hash order, and what store.json holds."""

import json
import re

import numpy as np
import pytest

from shardwriter.format.names import (
    EMBEDDING_MEMBER,
    KEY_BYTES,
    METADATA_MEMBER,
    SPLITS,
    Identity,
    StoreRecord,
    escape_key,
    hash_position,
    member_name,
    plan_name,
    plan_number,
    shard_name,
    shard_number,
    unescape_key,
)

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
    assert max(len(member_name(key, member)) for member in (EMBEDDING_MEMBER, METADATA_MEMBER)) <= 100


def test_hash_order_never_changes() -> None:
    """Golden: another hash would scatter what is read together in every store there is."""
    assert hash_position("spk00_u0") == 13443943320483926104
    assert hash_position("a") != hash_position("b")


def test_names_of_plans_and_shards_give_their_numbers_back() -> None:
    for number in (0, 7, 999, 1000, 12345678):
        assert plan_number(plan_name(number)) == number
        assert [shard_number(shard_name(split, number)) for split in SPLITS] == [(split, number) for split in SPLITS]


@pytest.mark.parametrize("name", ["plan-0.parquet", "plan-000.parquet.tmp", ".tmp-plan-000.parquet", "plan.parquet"])
def test_other_file_is_no_plan(name: str) -> None:
    assert plan_number(name) is None


@pytest.mark.parametrize("name", ["train", "train-00", "dev-000000", "train-000000.tar", ".tmp-train-000000"])
def test_other_file_is_no_shard(name: str) -> None:
    assert shard_number(name) is None


def test_store_record_reads_back_from_its_json() -> None:
    record = StoreRecord(identity=make_identity(), data_root="/somewhere", plans=("plan-000.parquet",))
    assert StoreRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}, {"identity": {"dim": 1}}])
def test_store_record_of_another_version_is_refused(change: dict[str, object]) -> None:
    record = StoreRecord(identity=make_identity(), data_root=None, plans=()).to_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        StoreRecord.from_json({**record, **change})


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
