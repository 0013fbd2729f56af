"""Plans and indexes are what was written, or are refused; what they cost to read is bounded by their size."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iianet.errors import StoreError, UnreadableError
from shardwriter.format.document import digest_facts
from shardwriter.format.index import (
    INDEX_SCHEMA,
    ShardRecord,
    decode_index,
    decode_shard_index,
    encode_index,
    index_table,
)
from shardwriter.format.names import FORMAT_VERSION
from shardwriter.format.plan import PLAN_SCHEMA, Plan, decode_plan, encode_plan, make_plan
from shardwriter.format.record import Identity, OtherVersion, StoreRecord
from shardwriter.format.table import LostError, add_digests, column_digests, encode_table

SHARD = "train-0123456789-000000"
IDENTITY = Identity(encoder={"fingerprint": "f"}, dtype="float16", dim=4, fps=25)
ROW = {"mouth": "m/ü.npz", "source_size": 7, "source_mtime_ns": 8, "source_digest": "9" * 16}
TAR_BYTES = 20 * 512


def stored(key: str, embedding: tuple[int, int], metadata: tuple[int, int]) -> dict[str, Any]:
    places = {"embedding_offset": embedding[0], "embedding_length": embedding[1]}
    return {**ROW, "key": key, "frames": 2, **places, "metadata_offset": metadata[0], "metadata_length": metadata[1]}


ROWS = [
    stored("a", (512, 144), (1536, 30)),
    {**ROW, "key": "b", "frames": 0, "error": "broken"},
    stored("c", (2560, 144), (3584, 30)),
]


def record(**changes: Any) -> ShardRecord:
    facts = {"shard": SHARD, "tar_size": TAR_BYTES, "tar_digest": "f" * 16, "rows": 3}
    return ShardRecord(**{**facts, **changes})


def index(listed: list[dict[str, Any]] = ROWS, **changes: Any) -> bytes:
    return encode_index(index_table(listed), [record(**changes)])


def plan(table: pa.Table | None = None) -> Plan:
    audio = [{"mixture": "x/a.wav", "source": "s/a.wav", "speaker": 1, "num_samples": 640}]
    row = {"split": "train", "utterance": "ü", "mouth": "m/a.npz", "audio": audio}
    rows = [{**row, "shard": number // 2, "key": f"k{number}"} for number in range(4)]
    made = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA) if table is None else table
    return make_plan(kind="extend", base=(), identity=IDENTITY, manifest_digests={"train": "d"}, table=made)


def read_index(content: bytes, columns: list[str] | None = None) -> Any:
    return decode_index(io.BytesIO(content), "here", columns)


def read_plan(content: bytes, name: str) -> Any:
    return decode_plan(io.BytesIO(content), name)


def read_record(content: bytes) -> Any:
    return StoreRecord.from_bytes(content)


RECORD = StoreRecord(identity=IDENTITY, data_root="/ü", plans=("plan-0123456789.parquet",))
SOUND: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "index": (index(), read_index),
    "plan": (encode_plan(plan()), lambda content: read_plan(content, plan().header.name)),
    "store.json": (RECORD.to_bytes(), read_record),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_flipped_bit_anywhere_leaves_equal_data_or_is_refused(kind: str) -> None:
    content, read = SOUND[kind]
    sound = read(content)
    seen = {"equal": 0, "refused": 0}
    for at in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        try:
            assert read(bytes(damaged)) == sound, at
            seen["equal"] += 1
        except (StoreError, ValueError, OtherVersion) as error:
            assert kind == "store.json" or type(error) is LostError
            seen["refused"] += 1
    assert seen["refused"] > 0.4 * len(content)


def test_a_column_of_another_file_is_refused_though_its_own_checksums_are_right() -> None:
    """A copy that was broken off and begun again from another version leaves such files."""
    own, other = index(), index([{**row, "source_size": 6} for row in ROWS])
    names = INDEX_SCHEMA.names
    chunk = pq.read_metadata(io.BytesIO(own)).row_group(0).column(names.index("source_size"))
    place = slice(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
    assert len(own) == len(other) and own[place] != other[place]
    with pytest.raises(StoreError, match="the column source_size is not what its digest says"):
        read_index(own[: place.start] + other[place] + own[place.stop :])


@pytest.mark.parametrize("kind", ["index", "plan"])
def test_a_file_that_was_cut_is_refused(kind: str) -> None:
    content, read = SOUND[kind]
    for length in range(0, len(content), 7):
        with pytest.raises(StoreError):
            read(content[:length])


PLACES = {
    "beyond the tar": stored("c", (2560, 144), (TAR_BYTES - 512, 513)),
    "before the tar": stored("c", (-512, 144), (3584, 30)),
    "in the first header": stored("c", (0, 144), (3584, 30)),
    "between blocks": stored("c", (2561, 144), (3584, 30)),
    "of no length": stored("c", (2560, 0), (3584, 30)),
    "of absurd length": stored("c", (2560, 2**63 - 1), (3584, 30)),
    "at an absurd place": stored("c", (2**63 - 512, 144), (3584, 30)),
    "of another sample": stored("c", (512, 144), (3584, 30)),
    "of another member": stored("c", (2560, 144), (2560, 30)),
    "over the next header": stored("c", (2560, 1000), (3584, 30)),
    "nowhere": {**ROW, "key": "c", "frames": 2},
    "of what failed": {**stored("c", (2560, 144), (3584, 30)), "error": "broken"},
    "without frames": {**stored("c", (2560, 144), (3584, 30)), "frames": 0},
}


@pytest.mark.parametrize("wrong", PLACES)
def test_a_place_that_cannot_be_in_its_tar_is_refused(wrong: str) -> None:
    assert len(read_index(index())[0]) == 3
    with pytest.raises(StoreError, match=rf"^here: not an index .*{SHARD}, whose tar has 10,240 bytes.*'key': 'c'"):
        read_index(index([*ROWS[:2], PLACES[wrong]]))


def test_places_are_checked_across_the_pieces_in_which_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardwriter.format.index.ROWS_AT_A_TIME", 1)
    read_index(index())
    with pytest.raises(StoreError, match="'key': 'c'"):
        read_index(index([ROWS[0], stored("c", (1024, 144), (3584, 30))], rows=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": "../victim/data"},
        {"shard": "train-0123456789-000000.tar"},
        {"shard": 3},
        {"tar_size": -1},
        {"tar_size": "many"},
        {"tar_size": 0},
        {"tar_digest": ""},
        {"tar_digest": "../x"},
        {"rows": 2},
        {"rows": -3},
        {"rows": True},
    ],
)
def test_an_index_with_facts_that_no_index_has_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"^here: not an index of this format .* delete it and run build-shards"):
        read_index(index(**changes))


@pytest.mark.parametrize("key", ["../../etc/x", "a.b", "", "k" * 81, "a@0", "a@999999", "a\nb", "é"])
def test_a_key_that_no_name_is_escaped_to_is_refused(key: str) -> None:
    with pytest.raises(StoreError, match="the key"):
        read_index(index([{**ROWS[0], "key": key}, *ROWS[1:]]))


def test_an_index_is_asked_whose_it_is() -> None:
    other = "train-0123456789-000001"
    assert decode_shard_index(io.BytesIO(index()), "here", SHARD)[1] == record()
    with pytest.raises(StoreError, match=rf"^here: is the index of {SHARD}; expected {other}\. .*put back the right"):
        decode_shard_index(io.BytesIO(index()), "here", other, identity=Identity(dtype="int8", dim=1, fps=1))


def test_only_what_is_read_is_checked() -> None:
    """So that opening a store costs what it reads."""
    content = bytearray(index())
    chunk = pq.read_metadata(io.BytesIO(index())).row_group(0).column(INDEX_SCHEMA.get_field_index("source_digest"))
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    assert read_index(bytes(content), ["key"])[0].column_names == ["key"]
    with pytest.raises(StoreError, match="the column source_digest is not what its digest says"):
        read_index(bytes(content))


def sealed(header: dict[str, Any], table: pa.Table) -> tuple[bytes, str]:
    """A plan with such facts, whose id and digests are right, and the name that it has."""
    plan_id = digest_facts(header)[:10]
    return encode_table(table, {**header, "id": plan_id}), f"plan-{plan_id}.parquet"


def facts_of(made: Plan) -> dict[str, Any]:
    return {name: value for name, value in asdict(made.header).items() if name != "id"}


@pytest.mark.parametrize(
    "change",
    [
        {"shards": {"../victim/data": 2}},
        {"shards": {"train": 10**9}},
        {"shards": {"train": -1}},
        {"shards": {"train": 1}},
        {"shards": {"val": 2}},
        {"shards": []},
        {"base": ["../victim/data"]},
        {"base": "plan-0123456789.parquet"},
        {"kind": "destroy"},
        {"rows": 5},
        {"identity": {}},
        {"identity": {**Identity(dtype="int16", dim=4, fps=25).__dict__}},
        {"identity": {**IDENTITY.__dict__, "dim": -4}},
        {"identity": {**IDENTITY.__dict__, "fps": "fast"}},
        {"identity": {**IDENTITY.__dict__, "more": 1}},
        {"manifest_digests": {"../x": "d"}},
        {"columns": {}},
    ],
    ids=str,
)
def test_a_plan_with_facts_that_no_plan_has_is_refused(change: dict[str, Any]) -> None:
    content, name = sealed(facts_of(plan()), plan().table)
    assert read_plan(content, name).header.shards == {"train": 2}
    content, name = sealed({**facts_of(plan()), **change}, plan().table)
    with pytest.raises(StoreError, match=rf"^{name}: not a plan of this format .*--reindex"):
        read_plan(content, name)


def test_a_plans_id_is_checked_against_its_content() -> None:
    whole = plan()
    other = encode_table(whole.table, {**asdict(whole.header), "kind": "replace"})
    with pytest.raises(StoreError, match=rf"^{whole.header.name}: .*its content has the id \w+, and it says"):
        read_plan(other, whole.header.name)
    keys = whole.table.set_column(2, PLAN_SCHEMA.field("key"), pa.array(["k1", "k0", "k2", "k3"]))
    with pytest.raises(StoreError, match=rf"^{whole.header.name}: .*the values of key are not those that its id is of"):
        read_plan(encode_table(keys, asdict(whole.header)), whole.header.name)


@pytest.mark.parametrize(
    "change",
    [
        {"shard": -1},
        {"shard": 7},
        {"split": "val"},
        {"key": "../x"},
        {"audio": [{"mixture": None, "source": "s", "speaker": 1, "num_samples": 1}]},
        {"audio": [{"mixture": "m", "source": "s", "speaker": 3, "num_samples": 1}]},
        {"audio": [{"mixture": "m", "source": "s", "speaker": 1, "num_samples": -1}]},
    ],
    ids=str,
)
def test_a_plan_with_rows_that_no_plan_has_is_refused(change: dict[str, Any]) -> None:
    rows = plan().table.to_pylist()
    table = pa.Table.from_pylist([*rows[:1], {**rows[1], **change}, *rows[2:]], schema=PLAN_SCHEMA)
    content, name = sealed({**facts_of(plan()), "columns": column_digests(table)}, table)
    with pytest.raises(StoreError, match=rf"^{name}: not a plan of this format"):
        read_plan(content, name)


BOMBS = {
    "dictionary": {"use_dictionary": True, "value": "x" * 1000},
    "growth": {"use_dictionary": False, "value": "x" * 1000},
    "nulls": {"use_dictionary": False, "value": ""},
    "delta": {"use_dictionary": False, "value": "x" * 1000, "column_encoding": {"error": "DELTA_BYTE_ARRAY"}},
}
BOMB_ROWS, BOMB_BYTES = 500_000, 400 << 20


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_stands_for_a_large_table_is_refused_unread(bomb: str) -> None:
    """A child that may take little more memory than it has refuses it; a gigabyte would be needed to read it."""
    given = BOMBS[bomb]
    count = BOMB_ROWS * (1 if given["value"] else 2)
    columns: dict[str, Any] = {
        field.name: pa.repeat(pa.scalar(None if field.nullable else "k", field.type), count)
        if field.type == pa.string()
        else pa.nulls(count, field.type)
        for field in INDEX_SCHEMA
    }
    columns["error"] = pa.repeat(pa.scalar(given["value"], pa.string()), count)
    columns["frames"] = pa.repeat(pa.scalar(0, pa.int32()), count)
    columns["key"] = pa.repeat(pa.scalar("k"), count)
    facts = json.dumps({"version": FORMAT_VERSION, "shards": []}).encode()
    described = pa.table(columns, schema=INDEX_SCHEMA).replace_schema_metadata({b"iianet-shards": facts})
    stream = io.BytesIO()
    options = {name: value for name, value in given.items() if name != "value"}
    pq.write_table(described, stream, compression="zstd", **options)
    content = add_digests(stream.getvalue())
    assert len(content) < 3 << 20
    code = (
        "import io, resource, sys\n"
        "from shardwriter.format.index import decode_index\n"
        "from iianet.errors import StoreError\n"
        "with open('/proc/self/statm') as file: used = int(file.read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {BOMB_BYTES},) * 2)\n"
        "try:\n"
        "    decode_index(io.BytesIO(sys.stdin.buffer.read()), 'here')\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, timeout=60)
    expected = b"expected plain values" if bomb in ("dictionary", "delta") else b"a table of"
    assert done.stdout.startswith(b"here: not an index of this format (") and expected in done.stdout, done.stderr


def test_what_cannot_be_read_is_not_called_damaged() -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    for read in (lambda stream: decode_index(stream, "here"), lambda stream: decode_plan(stream, "here")):
        with pytest.raises(
            UnreadableError, match=r"^here: cannot be read \(Input/output error\), which is no damage: "
        ) as said:
            read(Broken(index()))
        assert "elete" not in str(said.value)
