"""inspect-shards on tars that others made."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.foreign_tars import npy, traps, write_tar
from helpers.inspection import run, run_json


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tars with three samples, and a pickle and an npy of objects that would show if they were unpickled."""
    pickled, objects = traps(tmp_path / "unpickled")
    samples = [
        {
            f"sample{index}.emb.npy": npy(np.zeros((4, 5 + index), dtype=np.float32)),
            f"sample{index}.json": json.dumps({"speaker": index}).encode(),
            f"sample{index}.pyd": pickled,
        }
        for index in range(3)
    ]
    write_tar(tmp_path / "a-000000.tar", samples[0] | samples[1])
    write_tar(tmp_path / "a-000001.tar", {**samples[2], "sample2.objects.npy": objects})
    return tmp_path


def test_a_tar_is_shown_member_by_member(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shards / "a-000000.tar") == 0
    out = capsys.readouterr().out
    assert "(4, 5) float32" in out
    assert "5 to 6" in out
    assert "2 samples in 1 shards; keys: sample0, sample1" in out


def test_a_brace_pattern_is_all_of_its_tars(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, f"{shards}/a-{{000000..000001}}.tar")
    assert code == 0
    assert set(document) == {"shards", "samples", "first_keys", "members", "problems"}
    assert document["samples"] == 3
    assert document["first_keys"] == ["sample0", "sample1", "sample2"]
    member = document["members"]["emb.npy"]
    assert (member["count"], member["shape"], member["dtype"], member["last_axis"]) == (3, [4, 5], "float32", [5, 7])
    assert document["members"]["json"]["fields"] == ["speaker"]


def test_nothing_is_ever_unpickled(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, f"{shards}/a-{{000000..000001}}.tar")[1]
    assert document["members"]["pyd"]["count"] == 3
    assert document["members"]["pyd"]["shape"] is None
    assert document["members"]["objects.npy"]["dtype"] == "object"
    assert not (shards / "unpickled").exists()


@pytest.mark.parametrize(
    "given",
    ["pipe:touch {}/ran", "hf://datasets/x.tar", "{{pipe:touch {}/ran,x}}", "-", "file:/x.tar", "s3://b/x.tar"],
)
def test_what_is_no_local_file_is_refused(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(given.format(tmp_path)) == 2
    assert "refused" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("given", ["gone.tar", "gone-{0..1}.tar", "odd{.tar"])
def test_a_missing_tar_is_exit_code_2(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / given) == 2
    assert given.partition("{")[0] in capsys.readouterr().err


def test_a_damaged_tar_is_a_problem_and_the_others_are_shown(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = shards / "a-000000.tar"
    first.write_bytes(first.read_bytes()[:3000])
    code, document = run_json(capsys, f"{shards}/a-{{000000..000001}}.tar")
    assert code == 1
    assert "a-000000.tar: cannot be read to its end" in document["problems"][0]
    assert "sample2" in document["first_keys"]


def test_members_that_are_not_what_their_name_says_are_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "b.tar", {"x.npy": b"junk", "x.json": b"{"})
    assert run(tmp_path / "b.tar") == 1
    out = capsys.readouterr().out
    assert "x.npy: not an npy" in out
    assert "x.json: not JSON" in out


def test_flags_for_stores_are_refused(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shards / "a-000000.tar", "--verify") == 2
    assert "--verify: works on a store's folder" in capsys.readouterr().err


def test_all_shards_are_read_on_any_rank(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "WORKER": "1", "NUM_WORKERS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run_json(capsys, f"{shards}/a-{{000000..000001}}.tar")[1]["samples"] == 3
