"""inspect-shards --verify: every byte is read and compared."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
from helpers.inspection import Place, damage, run, run_json

from shardwriter.format.index import read_index, write_index
from shardwriter.format.names import INDEX_SUFFIX
from shardwriter.inspect.contents import Contents, Entry


def entry_of(place: Place, split: str, key: str) -> Entry:
    return Contents.open(place.store).entry(split, key)


def problems(capsys: pytest.CaptureFixture[str], place: Place) -> list[str]:
    code, document = run_json(capsys, place.store, "--verify")
    assert code == (1 if document["problems"] else 0)
    found: list[str] = document["problems"]
    return found


def test_a_sound_store_is_fine(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store, "--verify") == 0
    assert "Verified 6 samples in 4 shards: all as the indexes say." in capsys.readouterr().out


PLACES: dict[str, Callable[[Entry], int]] = {
    "npy header": lambda entry: (entry.embedding_offset or 0) + 20,
    "json": lambda entry: entry.metadata_offset or 0,
    "header of the embedding": lambda entry: (entry.embedding_offset or 0) - 500,
    "header of the json": lambda entry: (entry.metadata_offset or 0) - 500,
}


@pytest.mark.parametrize("where", PLACES)
def test_a_flipped_byte_is_found_with_shard_and_key(
    place: Place, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = entry_of(place, "val", "gus")
    offset = PLACES[where](entry)
    byte = (place.store / f"{entry.shard}.tar").read_bytes()[offset]
    damage(place, entry.shard, offset, bytes([byte ^ 0xFF]))
    found = problems(capsys, place)
    assert any("val-000000.tar: has changed since it was written" in problem for problem in found)
    assert any(problem.startswith("val-000000.tar: gus: ") for problem in found)
    assert not any(problem.startswith("val-000000.tar: fay: ") for problem in found if "header" not in where)


def test_a_flipped_value_that_stays_finite_is_found_in_its_shard(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = entry_of(place, "val", "gus")
    damage(place, entry.shard, (entry.embedding_offset or 0) + 128, b"\x00\x54")
    [problem] = problems(capsys, place)
    assert problem.startswith("val-000000.tar: has changed since it was written")
    assert "may be any of 2 utterances" in problem


def test_a_value_that_is_not_finite_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(place, "train", "bob")
    damage(place, entry.shard, (entry.embedding_offset or 0) + 128, np.float16(np.nan).tobytes())
    found = problems(capsys, place)
    assert f"{entry.shard}.tar: bob: embedding.npy: has 1 values that are not finite" in found


def test_frames_that_disagree_are_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(place, "train", "bob")
    path = place.store / f"{entry.shard}.tar"
    offset = path.read_bytes().index(b'"frames":3') + len('"frames":')
    damage(place, entry.shard, offset, b"9")
    assert f"{entry.shard}.tar: bob: json: says frames 9; expected 3" in problems(capsys, place)


def test_a_truncated_tar_names_the_first_lost_key(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entries = sorted((entry_of(place, "val", key) for key in ("fay", "gus")), key=lambda it: it.embedding_offset or 0)
    last = entries[-1]
    path = place.store / "val-000000.tar"
    path.write_bytes(path.read_bytes()[: (last.embedding_offset or 0) + 200])
    found = problems(capsys, place)
    assert any(f"has {path.stat().st_size:,} bytes, its index says" in problem for problem in found)
    assert f"val-000000.tar: {last.key}: lies beyond the end of the tar, first of 1 that do" in found
    assert len(found) == 2


def test_a_lost_tar_is_found_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.store / "val-000000.tar").unlink()
    assert len(problems(capsys, place)) == 1


def test_an_unreadable_index_is_found_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.store / "val.index").unlink()
    (place.store / "val-000000.index").write_bytes(b"junk")
    assert len(problems(capsys, place)) == 1


def test_members_in_another_order_than_the_index_says_are_found(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.store / "val-000000.tar"
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in members[2:] + members[:2]:
            archive.addfile(member, io.BytesIO(content))
    first = min((entry_of(place, "val", key) for key in ("fay", "gus")), key=lambda entry: entry.embedding_offset or 0)
    assert any(
        problem.startswith(f"val-000000.tar: {first.key}: header 0 of the tar is ")
        for problem in problems(capsys, place)
    )


def test_an_index_of_other_utterances_than_planned_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.store / f"val-000000{INDEX_SUFFIX}"
    table, [record] = read_index(path)
    rows = [{**row, "key": "stranger"} if row["key"] == "gus" else row for row in table.to_pylist()]
    write_index(place.store, record, rows)
    found = problems(capsys, place)
    assert "val-000000.index: lists other utterances than plan-000.parquet planned for this shard" in found
    assert any(problem.startswith("val.index: contradicts") for problem in found)


def test_leftovers_are_told_of_and_harmless(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.store / "train-000000.index").unlink()
    (place.store / ".tmp-train-000001.tar-host-1").touch()
    (place.store / "test-000007.tar").touch()
    (place.store / "test-000008.index").touch()
    code, document = run_json(capsys, place.store, "--verify")
    assert code == 0
    told = {note.split(":")[0] for note in document["notes"]}
    assert told == {".tmp-train-000001.tar-host-1", "test-000007.tar", "test-000008.index", "train-000000.tar"}


def test_people_are_told_what_to_delete(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    damage(place, entry_of(place, "val", "gus").shard, 600, b"\xff")
    assert run(place.store, "--verify") == 1
    out = capsys.readouterr().out
    assert f"To mend it, delete these and run build-shards again:\n  {place.store}/val-000000.index" in out


def test_what_was_deleted_as_told_is_built_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.store / "val-000000.tar").read_bytes()
    damage(place, entry_of(place, "val", "gus").shard, 600, b"\xff")
    for suffix in (".index", ".tar"):
        (place.store / f"val-000000{suffix}").unlink()
    place.build()
    assert problems(capsys, place) == []
    assert (place.store / "val-000000.tar").read_bytes() == before
