"""Rows of tasks are read ahead in threads: in order, not far ahead, and errors are part of the answer."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.corpus import make_frames, write_mouth

from shardwriter.encode.clips import Clip, read_ahead, read_clip
from shardwriter.format.plan import PLAN_SCHEMA, ShardTask
from shardwriter.format.sample import Failed


def task(number: int, keys: Sequence[str]) -> ShardTask:
    rows = [
        {"split": "train", "shard": number, "key": key, "utterance": key, "mouth": f"{key}.npz", "audio": []}
        for key in keys
    ]
    return ShardTask(shard=f"shard {number}", split="train", rows=pa.Table.from_pylist(rows, schema=PLAN_SCHEMA))


@dataclass
class Tasks:
    """Tasks that count how many were taken."""

    keys: Sequence[Sequence[str]]
    taken: int = 0

    def __iter__(self) -> Iterator[ShardTask]:
        for number, keys in enumerate(self.keys):
            self.taken += 1
            yield task(number, keys)


@dataclass
class Echo:
    """Reads the key of a row, after `wait` has returned; notes when it starts."""

    wait: Callable[[str], object] = lambda _: None
    started: list[str] = field(default_factory=list)

    def __call__(self, row: Mapping[str, Any]) -> str:
        self.started.append(row["key"])
        self.wait(row["key"])
        return f"read {row['key']}"


def of_one_row(count: int) -> Tasks:
    return Tasks([[f"key {number}"] for number in range(count)])


def test_tasks_are_taken_one_ahead_at_most() -> None:
    tasks, reader = of_one_row(11), Echo()
    taken = []
    with closing(read_ahead(reader, iter(tasks), num_workers=2, depth=8)) as opened:
        for _, rows in opened:
            assert len(list(rows)) == 1
            taken.append(tasks.taken)
    assert taken == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]


def test_a_task_is_not_taken_before_all_rows_of_the_one_before_are_being_read() -> None:
    tasks = Tasks([["a", "b", "c", "d"], ["e"]])
    with closing(read_ahead(Echo(), iter(tasks), num_workers=1, depth=2)) as opened:
        _, rows = next(opened)
        taken = [tasks.taken for _ in rows]
    assert taken == [1, 1, 1, 2]  # two rows are being read at a time, and the next one would be of the next task


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("depth", [1, 3, 100])
def test_order_is_kept_whatever_is_read_first(num_workers: int, depth: int) -> None:
    tasks = Tasks([[f"{number}-{row}" for row in range(rows)] for number, rows in enumerate((3, 1, 5, 2))])
    reader = Echo(wait=lambda key: time.sleep(0.01 * (int(key[-1]) % 2 == 0)))
    found = [
        (its.shard, [(row["key"], read) for row, read in rows])
        for its, rows in read_ahead(reader, iter(tasks), num_workers, depth)
    ]
    expected = [(f"shard {number}", [(key, f"read {key}") for key in keys]) for number, keys in enumerate(tasks.keys)]
    assert found == expected


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_rows_are_read_at_most_so_many_ahead_of_their_use(depth: int) -> None:
    tasks, reader = Tasks([[f"{number}-{row}" for row in range(6)] for number in range(3)]), Echo()
    used = 0
    for _, rows in read_ahead(reader, iter(tasks), num_workers=4, depth=depth):
        for _ in rows:
            used += 1
            time.sleep(0.005)  # long enough to start what may be started
            assert len(reader.started) < used + depth
    assert used == len(reader.started) == 18


def test_reading_continues_over_the_end_of_a_task() -> None:
    next_is_read = threading.Event()
    reader = Echo(wait=lambda key: next_is_read.set() if key == "b" else None)
    with closing(read_ahead(reader, iter(Tasks([["a"], ["b"]])), num_workers=1, depth=2)) as opened:
        _, rows = next(opened)
        assert next(rows)[1] == "read a"
        assert next_is_read.wait(timeout=10)


def test_what_is_wrong_with_a_mouth_is_part_of_the_answer(tmp_path: Path) -> None:
    for key in ("a", "c"):
        write_mouth(tmp_path / f"{key}.npz", make_frames(2))
    (tmp_path / "b.npz").write_bytes(b"PK")
    tasks = Tasks([["gone", "a", "b"], ["c"]])
    reader = partial(read_clip, data_root=tmp_path)
    found = {row["key"]: clip for _, rows in read_ahead(reader, iter(tasks), 2, 4) for row, clip in rows}
    failed = {key: clip for key, clip in found.items() if isinstance(clip, Failed)}
    assert list(failed) == ["gone", "b"] and len(found) == 4
    assert failed["gone"].reason == "cannot be read (No such file or directory)"
    assert failed["b"].reason.startswith("not a complete npz (2 bytes)")
    assert {key: (its.source.mouth, its.source.size) for key, its in failed.items()} == {
        "gone": ("gone.npz", None),
        "b": ("b.npz", 2),
    }
    assert all(isinstance(found[key], Clip) for key in ("a", "c"))


def test_what_a_reader_raises_comes_out_at_its_row() -> None:
    def fail(key: str) -> None:
        if key == "c":
            raise OSError("no such thing")

    got: list[str] = []

    def use(reader: Echo) -> None:
        for _, rows in read_ahead(reader, iter(Tasks([["a", "b"], ["c", "d"]])), num_workers=2, depth=8):
            got.extend(read for _, read in rows)

    with pytest.raises(OSError, match="no such thing"):
        use(Echo(wait=fail))
    assert got == ["read a", "read b"]


def test_who_stops_early_leaves_no_threads_and_takes_no_more_tasks() -> None:
    tasks = of_one_row(11)
    with closing(read_ahead(Echo(), iter(tasks), num_workers=3, depth=8)) as opened:
        _, rows = next(opened)
        next(rows)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-npz")]
    assert tasks.taken == 2


def test_no_tasks_are_nothing_to_read() -> None:
    assert list(read_ahead(Echo(), iter(Tasks([])), num_workers=2, depth=8)) == []
