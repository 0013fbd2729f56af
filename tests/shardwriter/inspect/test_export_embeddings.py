"""inspect-shards --export_embeddings: the earlier tool's files, and nothing that was there is lost."""

import errno
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import stored
from helpers.inspection import BROKEN, STORED, Place, run, run_json

from shardwriter import write_store

UTTERANCES = sum(STORED.values())


def write_own(store: Path, name: str = "x/y.z", dim: int = 512, **metadata: object) -> np.ndarray:
    """A store of one embedding that came from no npz."""
    embedding = np.random.default_rng(0).normal(size=(dim, 3)).astype(np.float32)
    write_store(store, [(name, embedding, metadata)])
    return embedding


def test_each_stored_utterance_becomes_a_file_in_the_corpus_own_folders(
    made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run_json(capsys, made.store, "--export_embeddings", tmp_path / "out")
    assert code == 0
    counts = {"written": UTTERANCES, "unchanged": 0, "views": 0, "failed": 1}
    assert document["exported"] == {"folder": str(tmp_path / "out"), **counts}
    embeddings = stored(made.store, "train") | stored(made.store, "val")
    assert len(list(tmp_path.rglob("*.*"))) == len(embeddings) == UTTERANCES
    for key, expected in embeddings.items():
        with np.load(tmp_path / "out/mouths" / f"{key.replace('%2E', '.')}_embedding.npz") as archive:
            assert archive.files == ["embedding"]
            assert archive["embedding"].dtype == np.float32
            np.testing.assert_array_equal(archive["embedding"], expected)


def test_the_corpus_is_left_alone(made: Place, tmp_path: Path) -> None:
    before = sorted(made.root.rglob("*"))
    assert run(made.store, "--export_embeddings", tmp_path / "out") == 0
    assert sorted(made.root.rglob("*")) == before


def test_the_corpus_gets_them_where_it_is_asked_for(place: Place) -> None:
    assert run(place.store, "--export_embeddings", place.root) == 0
    assert place.mouth("ann_embedding").is_file()
    assert not place.mouth(f"{BROKEN}_embedding").exists()


@pytest.mark.parametrize("command", ["export_embeddings", "sample"])
def test_a_sample_that_cannot_be_read_is_a_problem_and_no_damage(
    command: str, made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(f"shardwriter.inspect.{command}.read_values", fail)
    words = ["--key", "gus"] if command == "sample" else ["--export_embeddings", tmp_path / "out"]
    code, document = run_json(capsys, made.store, *words)
    assert code == 1
    (said,) = [problem for problem in document["problems"] if " gus: " in problem]
    assert "cannot be read (Input/output error), which is no damage: check the rights" in said


def test_files_that_hold_the_same_are_kept(made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(made.store, "--export_embeddings", tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    next(iter(files)).unlink()
    code, document = run_json(capsys, made.store, "--export_embeddings", tmp_path)
    assert (code, document["exported"]["written"], document["exported"]["unchanged"]) == (0, 1, UTTERANCES - 1)
    assert sum(path.stat().st_mtime_ns != time for path, time in files.items()) == 1


def test_files_that_hold_something_else_stay_and_are_problems(
    made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made.store, "--export_embeddings", tmp_path)
    other, shorter, junk = (tmp_path / f"mouths/{name}_embedding.npz" for name in ("ann", "bob", "dan"))
    with np.load(other) as archive:
        embedding = archive["embedding"]
    np.savez(other, embedding=embedding + np.float32(1))
    np.savez(shorter, embedding=embedding[:, :1])
    junk.write_bytes(b"junk")
    before = [path.read_bytes() for path in (other, shorter, junk)]
    code, document = run_json(capsys, made.store, "--export_embeddings", tmp_path)
    assert code == 1
    assert [path.read_bytes() for path in (other, shorter, junk)] == before
    problems = "\n".join(document["problems"])
    assert f"{other}: is there already and holds other values (they differ by up to 1)" in problems
    assert f"{shorter}: is there already and holds (512, 1) instead of (512, 3)" in problems
    assert f"{junk}: not a complete npz (4 bytes)" in problems
    assert document["exported"]["unchanged"] == UTTERANCES - 3
    assert run(made.store, "--export_embeddings", tmp_path) == 1
    assert "3 more could not be exported" in capsys.readouterr().out


def test_an_embedding_that_came_from_no_npz_is_called_by_its_key(tmp_path: Path) -> None:
    embedding = write_own(tmp_path / "own")
    assert run(tmp_path / "own", "--export_embeddings", tmp_path / "out") == 0
    [file] = (tmp_path / "out").iterdir()
    assert file.name == "x%2Fy%2Ez_embedding.npz"
    with np.load(file) as archive:
        np.testing.assert_array_equal(archive["embedding"], embedding)


@pytest.mark.parametrize("mouth", ["../up.npz", "{}/root.npz", "a/../../up.npz"])
def test_nothing_is_written_outside_of_the_folder(
    tmp_path: Path, mouth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mouth = mouth.format(tmp_path)
    write_own(tmp_path / "own", mouth=mouth)
    code, document = run_json(capsys, tmp_path / "own", "--export_embeddings", tmp_path / "out")
    assert code == 1
    assert f"its mouth {mouth} lies outside of data_root" in document["problems"][0]
    assert not list(tmp_path.glob("**/*_embedding.npz"))


def test_embeddings_of_any_encoder_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedding = write_own(tmp_path / "own", name="a", dim=8)
    for written in (1, 0):
        exported = run_json(capsys, tmp_path / "own", "--export_embeddings", tmp_path / "out")[1]["exported"]
        assert (exported["written"], exported["unchanged"]) == (written, 1 - written)
    with np.load(tmp_path / "out/a_embedding.npz") as archive:
        np.testing.assert_array_equal(archive["embedding"], embedding)


def test_a_folder_that_cannot_be_written_is_exit_code_2(
    made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(made.store, "--export_embeddings", tmp_path / "file") == 2
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_one_utterance_alone_is_not_exported(made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store, "--export_embeddings", tmp_path, "--key", "ann") == 2
    assert "leave --key out" in capsys.readouterr().err
