"""Plans: every utterance in one task, in hash order, and read back as written."""

from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iianet.errors import StoreError
from shardwriter.corpus.manifest import Manifest, arrange
from shardwriter.corpus.tables import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA
from shardwriter.format.names import PLAN_SCHEMA, Identity
from shardwriter.format.plan import Plan, audio_lists, make_plan, planned_rows, read_plan, write_plan

IDENTITY = Identity(encoder={"fingerprint": "f"}, dtype="float16", dim=512, fps=25)


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


def plan_of(sizes: dict[str, int], per_shard: int, first_shard: int = 0) -> tuple[Plan, dict[str, Manifest]]:
    manifests = {split: make_manifest(split, size) for split, size in sizes.items()}
    plan = make_plan(
        number=3,
        kind="extend",
        base=["plan-000.parquet"],
        identity=IDENTITY,
        work={split: (manifest, range(len(manifest.utterances))) for split, manifest in manifests.items()},
        utterances_per_shard=per_shard,
        first_shard=dict.fromkeys(sizes, first_shard),
    )
    return plan, manifests


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


def test_shards_are_numbered_from_the_first_unused_number() -> None:
    plan, _ = plan_of({"train": 5, "val": 2}, 2, first_shard=7)
    assert list(plan.shards) == ["train-000007", "train-000008", "train-000009", "val-000007"]
    assert [task.shard for task in plan.tasks(["val", "train"])] == list(plan.shards)


def test_only_the_chosen_utterances_are_planned() -> None:
    manifest = make_manifest("train", 6)
    plan = make_plan(
        number=0,
        kind="extend",
        base=[],
        identity=IDENTITY,
        work={"train": (manifest, [1, 4])},
        utterances_per_shard=10,
        first_shard={"train": 0},
    )
    assert plan.table["key"].to_pylist() == [manifest.utterances[index].key for index in (1, 4)]


def test_rows_carry_the_examples_of_their_utterance() -> None:
    plan, manifests = plan_of({"train": 6}, 4)
    assert plan.table["audio"].to_pylist() == audio_lists(manifests["train"])
    rebuilt = arrange("train", Path("root"), *planned_rows(plan.table))
    assert rebuilt == manifests["train"]


@pytest.mark.parametrize("sizes", [{"train": 5, "val": 3}, {"train": 3, "val": 0}, {}])
def test_plan_reads_back_as_written(sizes: dict[str, int], tmp_path: Path) -> None:
    plan, manifests = plan_of(sizes, 2)
    write_plan(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["plan-003.parquet"]
    found = read_plan(tmp_path, plan.name)
    assert found == plan
    assert found.shards == plan.shards
    assert found.manifest_digests == {split: manifest.digest() for split, manifest in manifests.items()}


def test_published_plan_is_never_written_again(tmp_path: Path) -> None:
    plan, _ = plan_of({"train": 2}, 2)
    write_plan(tmp_path, plan)
    with pytest.raises(AssertionError):
        write_plan(tmp_path, plan)


@pytest.mark.parametrize("damage", ["missing", "truncated", "columns", "metadata"])
def test_damaged_plan_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "plan-000.parquet"
    write_plan(tmp_path, plan_of({"train": 2}, 2)[0])
    content = (tmp_path / "plan-003.parquet").read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:100])
    elif damage == "columns":
        table = pq.read_table(tmp_path / "plan-003.parquet")
        pq.write_table(table.drop_columns(["audio"]), path)
    elif damage == "metadata":
        pq.write_table(PLAN_SCHEMA.empty_table(), path)
    with pytest.raises(StoreError, match=r"plan-000\.parquet: not a plan of this format"):
        read_plan(tmp_path, "plan-000.parquet")
