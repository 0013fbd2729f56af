"""Plans: every utterance in one task, in hash order, named by their content, and read back as written."""

import io
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iianet.errors import StoreError
from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA, Manifest, arrange
from shardwriter.corpus.planning import audio_lists, plan_utterances, planned_manifest_tables
from shardwriter.format.names import parse_plan_name, parse_shard
from shardwriter.format.plan import PLAN_SCHEMA, Plan, decode_header, decode_plan, encode_plan, make_plan
from shardwriter.format.record import Identity

IDENTITY = Identity(encoder={"fingerprint": "f"}, dtype="float16", dim=512, fps=25)
BASE = "plan-0123456789.parquet"


def make_manifest(split: str, count: int) -> Manifest:
    names = [f"{split}-{number}" for number in range(count)]
    utterances = [{"key": name, "name": name, "mouth": f"mouths/{name}.npz"} for name in names]
    examples = [
        {"utterance": number, "mixture": f"mix/{name}", "source": f"s1/{name}", "speaker": 1, "num_samples": number}
        for number, name in enumerate(names)
        for _ in range(1 + number % 2)
    ]
    tables = (
        pa.Table.from_pylist(utterances, schema=UTTERANCE_SCHEMA),
        pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA),
    )
    return arrange(split, Path("root"), *tables)


def plan_of(sizes: dict[str, int], per_shard: int) -> tuple[Plan, dict[str, Manifest]]:
    manifests = {split: make_manifest(split, size) for split, size in sizes.items()}
    chosen = {split: (manifest, np.arange(len(manifest.utterances))) for split, manifest in manifests.items()}
    return plan_utterances("extend", [BASE], IDENTITY, chosen, per_shard), manifests


def with_table(plan: Plan, table: pa.Table) -> Plan:
    """The same plan, made of other rows, or of rows that lie otherwise."""
    header = plan.header
    return make_plan(
        kind=header.kind,
        base=header.base,
        identity=header.identity,
        manifest_digests=header.manifest_digests,
        table=table,
    )


def read_back(plan: Plan) -> Plan:
    content, where = encode_plan(plan), f"STORE/{plan.header.name}"
    plan = decode_plan(io.BytesIO(content), where)
    assert plan.header == decode_header(io.BytesIO(content), where)
    return plan


@pytest.mark.parametrize("per_shard", [1, 2, 5, 7, 100])
def test_tasks_have_every_utterance_once_in_hash_order(per_shard: int) -> None:
    plan, manifests = plan_of({"train": 12, "val": 5}, per_shard)
    for split, manifest in manifests.items():
        tasks = list(plan.tasks([split]))
        keys = list(chain.from_iterable(task.rows["key"].to_pylist() for task in tasks))
        assert keys == [utterance.key for utterance in manifest.utterances]
        assert {task.split for task in tasks} == {split}


@pytest.mark.parametrize("per_shard", [1, 2, 5, 7, 100])
def test_every_shard_but_the_last_is_full(per_shard: int) -> None:
    plan, _ = plan_of({"train": 12}, per_shard)
    sizes = [len(task.rows) for task in plan.tasks(["train"])]
    assert sizes[:-1] == [per_shard] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= per_shard


def test_shards_carry_the_plans_id_and_are_numbered_from_0_in_each_split() -> None:
    plan, _ = plan_of({"val": 2, "train": 5}, 2)
    plan_id = plan.header.id
    assert parse_plan_name(plan.header.name) == plan_id
    expected = [("train", plan_id, 0), ("train", plan_id, 1), ("train", plan_id, 2), ("val", plan_id, 0)]
    assert [parse_shard(name) for name in plan.header.all_shard_names] == expected
    assert sorted(task.shard for task in plan.tasks()) == plan.header.all_shard_names
    assert [task.shard for task in plan.tasks(["val"])] == plan.header.shard_names("val")


def test_only_the_chosen_utterances_are_planned() -> None:
    manifest = make_manifest("train", 6)
    table = plan_utterances("extend", [], IDENTITY, {"train": (manifest, np.array([1, 4]))}, 10).table
    assert table["key"].to_pylist() == [manifest.utterances[index].key for index in (1, 4)]


def test_rows_carry_the_examples_of_their_utterance() -> None:
    plan, manifests = plan_of({"train": 6}, 4)
    assert plan.table["audio"].to_pylist() == audio_lists(manifests["train"]).to_pylist()
    assert {len(audio) for audio in plan.table["audio"].to_pylist()} == {1, 2}
    rebuilt = arrange("train", Path("root"), *planned_manifest_tables(plan.table))
    assert rebuilt == manifests["train"]


@pytest.mark.parametrize("sizes", [{"train": 5, "val": 3}, {"train": 3, "val": 0}, {}])
def test_plan_reads_back_as_written(sizes: dict[str, int]) -> None:
    plan, manifests = plan_of(sizes, 2)
    found = read_back(plan)
    assert found.header == plan.header
    assert found.table.equals(plan.table)
    assert found.header.manifest_digests == {split: manifest.digest() for split, manifest in manifests.items()}
    assert (found.header.base, found.header.rows) == ((BASE,), sum(sizes.values()))


def test_some_columns_may_be_read_alone() -> None:
    plan, _ = plan_of({"train": 5}, 2)
    found = decode_plan(io.BytesIO(encode_plan(plan)), plan.header.name, ("split", "shard", "key"))
    assert found.table.equals(plan.table.select(["split", "shard", "key"]))
    tasks = found.tasks()
    assert [task.rows["key"].to_pylist() for task in tasks] == [task.rows["key"].to_pylist() for task in plan.tasks()]


def test_a_task_alone_is_the_same_without_its_plan() -> None:
    plan, _ = plan_of({"train": 300}, 2)
    task = list(plan.tasks())[3]
    assert task.alone() == task
    assert task.alone().rows.get_total_buffer_size() < task.rows.get_total_buffer_size() / 10


def test_the_id_depends_on_the_content_alone() -> None:
    plan, _ = plan_of({"train": 7, "val": 3}, 2)
    table = plan.table
    in_pieces = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])
    of_a_longer_one = pa.concat_tables([table, table]).slice(len(table)).combine_chunks()
    for same in (
        in_pieces,
        of_a_longer_one,
        read_back(plan).table,
        pa.Table.from_pylist(table.to_pylist(), PLAN_SCHEMA),
    ):
        assert with_table(plan, same).header.id == plan.header.id


@pytest.mark.parametrize("column", PLAN_SCHEMA.names)
def test_another_value_in_any_column_makes_another_id(column: str) -> None:
    plan, _ = plan_of({"train": 7}, 7)
    rows = plan.table.to_pylist()
    changes = {"split": "val", "shard": 1, "audio": [{**rows[-1]["audio"][0], "num_samples": 99}]}
    changed = [*rows[:-1], {**rows[-1], column: changes.get(column, "other")}]
    assert with_table(plan, pa.Table.from_pylist(changed, PLAN_SCHEMA)).header.id != plan.header.id


def test_values_that_move_between_rows_make_another_id() -> None:
    plan, _ = plan_of({"train": 7}, 7)
    keys = plan.table["key"].to_pylist()
    moved = [keys[0] + keys[1][:1], keys[1][1:], *keys[2:]]
    table = plan.table.set_column(PLAN_SCHEMA.get_field_index("key"), PLAN_SCHEMA.field("key"), pa.array(moved))
    assert with_table(plan, table).header.id != plan.header.id


@pytest.mark.parametrize(
    "change", [{"kind": "replace"}, {"base": []}, {"identity": Identity(dtype="int8", dim=1, fps=1)}]
)
def test_what_a_plan_does_is_part_of_its_id(change: dict[str, object]) -> None:
    plan, _ = plan_of({"train": 2}, 2)
    facts = {"kind": "extend", "base": [BASE], "identity": IDENTITY, "manifest_digests": plan.header.manifest_digests}
    assert make_plan(**facts, table=plan.table).header.id == plan.header.id  # type: ignore[arg-type]
    assert make_plan(**{**facts, **change}, table=plan.table).header.id != plan.header.id  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["empty", "truncated", "metadata", "nonsense"])
def test_damaged_plan_is_named(damage: str) -> None:
    plan, _ = plan_of({"train": 2}, 2)
    content, where = encode_plan(plan), f"STORE/{plan.header.name}"
    stream = io.BytesIO()
    pq.write_table(PLAN_SCHEMA.empty_table(), stream)
    damaged = {"empty": b"", "truncated": content[:100], "metadata": stream.getvalue(), "nonsense": b"{}" * 100}[damage]
    with pytest.raises(StoreError, match=rf"^{where}: not a plan of this format"):
        decode_header(io.BytesIO(damaged), where)


def test_a_plan_under_the_name_of_another_is_refused() -> None:
    plan, _ = plan_of({"train": 2}, 2)
    with pytest.raises(StoreError, match=rf"^STORE/{BASE}: not a plan of this format .*{plan.header.name}"):
        decode_header(io.BytesIO(encode_plan(plan)), f"STORE/{BASE}")


def test_rows_that_lack_a_column_are_named() -> None:
    plan, _ = plan_of({"train": 2}, 2)
    lacking = Plan(header=plan.header, table=plan.table.drop_columns(["audio"]))
    with pytest.raises(StoreError, match=rf"^{plan.header.name}: not a plan of this format .*audio"):
        decode_plan(io.BytesIO(encode_plan(lacking)), plan.header.name)


def test_a_flipped_byte_among_the_rows_is_found() -> None:
    plan, _ = plan_of({"train": 50}, 2)
    content = bytearray(encode_plan(plan))
    page = content.index(b"\x28\xb5\x2f\xfd") + 8  # inside the first page that zstd has written
    content[page] ^= 0xFF
    with pytest.raises(StoreError, match=rf"^{plan.header.name}: not a plan of this format"):
        decode_plan(io.BytesIO(bytes(content)), plan.header.name)
