"""inspect-shards --verify: every byte is read and compared."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
from helpers.builds import change_mouth, index, plans, tar
from helpers.inspection import Place, damage, run, run_json

from shardwriter.format.index import Entry, decode_index, encode_index, index_table
from shardwriter.inspect.verify import verify


def entry_of(place: Place, split: str, key: str) -> Entry:
    return place.inspected().entry(split, key)


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
    name = tar(place.store, "val").name
    assert any(f"{name}: has changed since it was written" in problem for problem in found)
    assert any(problem.startswith(f"{name}: gus: ") for problem in found)
    assert not any(problem.startswith(f"{name}: fay: ") for problem in found if "header" not in where)


def test_a_flipped_value_that_stays_finite_is_found_in_its_shard(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = entry_of(place, "val", "gus")
    damage(place, entry.shard, (entry.embedding_offset or 0) + 128, b"\x00\x54")
    [problem] = problems(capsys, place)
    assert problem.startswith(f"{tar(place.store, 'val').name}: has changed since it was written")
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
    path = tar(place.store, "val")
    path.write_bytes(path.read_bytes()[: (last.embedding_offset or 0) + 200])
    found = problems(capsys, place)
    assert any(f"has {path.stat().st_size:,} bytes, its index says" in problem for problem in found)
    assert f"{path.name}: {last.key}: lies beyond the end of the tar, first of 1 that do" in found
    assert len(found) == 2


def test_a_lost_tar_is_found_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    tar(place.store, "val").unlink()
    assert len(problems(capsys, place)) == 1


def test_an_unreadable_index_is_found_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.store / "val.index").unlink()
    index(place.store, "val").write_bytes(b"junk")
    assert len(problems(capsys, place)) == 1


def test_members_in_another_order_than_the_index_says_are_found(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tar(place.store, "val")
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in members[2:] + members[:2]:
            archive.addfile(member, io.BytesIO(content))
    first = min((entry_of(place, "val", key) for key in ("fay", "gus")), key=lambda entry: entry.embedding_offset or 0)
    assert any(
        problem.startswith(f"{path.name}: {first.key}: header 0 of the tar, at byte 0, is of ")
        for problem in problems(capsys, place)
    )


def test_a_member_that_the_index_lacks_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(place.store, "val")
    last = max((entry_of(place, "val", key) for key in ("fay", "gus")), key=lambda entry: entry.embedding_offset or 0)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("more.json")
        info.size = 2
        end = archive.offset
        archive.addfile(info, io.BytesIO(b"{}"))
    said = f"{path.name}: {last.key}: is followed by something at byte {end:,}, which its index lacks"
    assert said in problems(capsys, place)


def test_an_index_of_other_utterances_than_planned_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = index(place.store, "val")
    with path.open("rb") as stream:
        table, records = decode_index(stream, path.name)
    rows = [{**row, "key": "stranger"} if row["key"] == "gus" else row for row in table.to_pylist()]
    path.write_bytes(encode_index(index_table(rows), records))
    found = problems(capsys, place)
    assert f"{path.name}: lists other utterances than its plan" in found
    assert any(problem.startswith("val.index: contradicts") for problem in found)


def test_an_index_under_the_name_of_another_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = index(place.store, "train", 0), index(place.store, "train", 1)
    first.write_bytes(second.read_bytes())
    found = problems(capsys, place)
    (said,) = [problem for problem in found if problem.startswith(str(first))]
    assert f"{first}: is the index of {second.stem}; expected {first.stem}" in said and "put back the right one" in said


def test_an_index_that_goes_while_the_store_is_verified_is_a_problem(place: Place) -> None:
    store = place.inspected()
    lost = index(place.store, "val")
    lost.unlink()
    (said,) = verify(store).problems
    assert said.startswith(f"{lost}: is gone; it was there when the store was opened. Wait for a running build, or put")


def test_leftovers_are_listed_and_harmless(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shard = index(place.store, "train").stem
    (place.store / "train.index").unlink()  # as a build does before it writes a shard
    index(place.store, "train").unlink()
    left = [f".tmp-{shard}.tar-host-1-0123456789abcdef", "test-aaaaaaaaaa-000007.tar", "test-aaaaaaaaaa-000008.index"]
    left += ["plan-aaaaaaaaaa.parquet"]
    for name in (*left, ".tmp-notes", ".tmp-of-another-program-17"):
        (place.store / name).touch()
    code, document = run_json(capsys, place.store, "--verify")
    assert code == 0
    told = {note.split(":")[0] for note in document["notes"]}
    assert told == {*left, f"{shard}.tar"}


def test_people_see_what_to_delete(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    damage(place, entry_of(place, "val", "gus").shard, 600, b"\xff")
    assert run(place.store, "--verify") == 1
    out = capsys.readouterr().out
    assert f"To fix it, delete these and run build-shards:\n  {index(place.store, 'val')}" in out


def test_what_was_deleted_as_advised_is_built_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(place.store, "val")
    before = path.read_bytes()
    damage(place, path.stem, 600, b"\xff")
    for told in (index(place.store, "val"), path):
        told.unlink()
    place.build()
    assert problems(capsys, place) == []
    assert path.read_bytes() == before


def test_shards_of_every_active_plan_are_verified(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Superseded entries, too: whoever reads the tars with other tools meets them."""
    change_mouth(place.mouth("fay"))
    place.build()
    assert len(plans(place.store)) == 2
    assert run(place.store, "--verify") == 0
    assert "Verified 7 samples in 5 shards: all as the indexes say." in capsys.readouterr().out
    first, second = tar(place.store, "val", 0), tar(place.store, "val", 1)
    for path in (first, second):
        damage(place, path.stem, 600, b"\xff")
    found = problems(capsys, place)
    assert all(any(problem.startswith(path.name) for problem in found) for path in (first, second))
