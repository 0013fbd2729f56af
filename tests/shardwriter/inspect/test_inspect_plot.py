"""inspect-shards --plot: a picture comes out, whatever is missing for it."""

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.inspection import BROKEN, Place, run

from shardwriter import inspect_cli, write_store
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.plot import Drawing, drawing_of
from shardwriter.inspect.sample import find_samples, read_sample
from shardwriter.storage.folder import Folder

ROOT = Path(__file__).parent.parent.parent.parent


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_three_utterances_are_drawn_beside_the_table(
    made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "store.png"
    assert run(made.store, "--plot", picture) == 0
    out = capsys.readouterr().out
    assert "train" in out
    assert f"picture: {picture}" in out
    width, height = png_size(picture)
    assert width > 2 * height > 1000


def test_one_utterance_is_drawn_narrower(made: Place, tmp_path: Path) -> None:
    assert run(made.store, "--plot", tmp_path / "all.png") == 0
    assert run(made.store, "--plot", tmp_path / "one.png", "--key", "ann") == 0
    assert 2 * png_size(tmp_path / "one.png")[0] < png_size(tmp_path / "all.png")[0]


def test_a_failed_utterance_is_not_drawn(made: Place, tmp_path: Path) -> None:
    assert run(made.store, "--plot", tmp_path / "p.png", "--key", BROKEN) == 1
    assert not (tmp_path / "p.png").exists()


def test_a_part_on_another_machine_is_named(made: Place, tmp_path: Path) -> None:
    assert run(made.store, "--plot", tmp_path / "p.png", "--data_root", tmp_path) == 0
    assert png_size(tmp_path / "p.png")[0] > 1000
    [sample] = find_samples(made.inspected(), "ann")
    drawn = drawing_of(sample, 25, tmp_path)
    assert drawn.mouth == "mouths/ann.npz\nis not on this machine"
    assert isinstance(drawn.voice, str) and drawn.voice.endswith("is not on this machine")


def test_a_drawing_has_the_mouth_and_the_first_source(made: Place) -> None:
    store = made.inspected()
    [sample] = find_samples(store, "ann")
    drawn = drawing_of(sample, 25, store.snapshot.data_root)
    assert isinstance(drawn.mouth, np.ndarray) and drawn.mouth.shape == (4, 96, 96)
    assert not isinstance(drawn.voice, str) and drawn.voice[1] == 16000
    assert drawn.seconds == pytest.approx(max(4 / 25, len(drawn.voice[0]) / 16000))


def test_time_goes_by_the_fps_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Drawing] = []
    monkeypatch.setattr(inspect_cli, "draw", lambda drawings, _path: drawn.extend(drawings))
    embedding = np.zeros((5, 40), dtype=np.float32)
    write_store(tmp_path / "own", [("a", embedding, {})], fps=50)
    assert run(tmp_path / "own", "--plot", tmp_path / "p.png") == 0
    assert [item.seconds for item in drawn] == [40 / 50]


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_embeddings_of_any_length_and_origin_are_drawn(tmp_path: Path, frames: int) -> None:
    embedding = np.random.default_rng(0).normal(size=(5, frames)).astype(np.float32)
    write_store(tmp_path / "own", [("x" * 70, embedding, {"audio": "unlike ours"})])
    assert run(tmp_path / "own", "--plot", tmp_path / "p.png") == 0
    assert png_size(tmp_path / "p.png")[0] > 500


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_audio_that_is_no_sound_has_no_curve(tmp_path: Path, number: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.1, number, 0.2], dtype=np.float32), 16000, subtype="FLOAT")
    audio = [{"mixture": "a.wav", "source": "a.wav", "speaker": 1, "num_samples": 3}]
    write_store(tmp_path / "own", [("x", np.ones((5, 3), np.float32), {"audio": audio})])
    assert run(tmp_path / "own", "--plot", tmp_path / "p.png", "--data_root", tmp_path) == 0
    assert png_size(tmp_path / "p.png")[0] > 500


def test_a_picture_that_cannot_be_written_is_exit_code_2(
    made: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made.store, "--plot", tmp_path / "nowhere" / "p.png") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["../secret.wav", "{root}/secret.wav", "a/../../secret.wav"])
def test_nothing_outside_data_root_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    drawn: list[Drawing] = []
    monkeypatch.setattr(inspect_cli, "draw", lambda drawings, _path: drawn.extend(drawings))
    soundfile.write(tmp_path / "secret.wav", np.ones(100), 16000)
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    audio = [{"mixture": source, "source": source.format(root=tmp_path), "speaker": 1, "num_samples": 100}]
    write_store(tmp_path / "own", [("x", np.ones((5, 3), np.float32), {"audio": audio})])
    assert run(tmp_path / "own", "--plot", tmp_path / "p.png", "--data_root", tmp_path / "corpus") == 0
    [item] = drawn
    assert item.voice == f"{source.format(root=tmp_path)}\nis not below data_root, so it is not read"


def test_the_mouth_is_not_read_from_outside_data_root(made: Place) -> None:
    entry = replace(made.inspected().entry("val", "fay"), mouth="../mouths/fay.npz")
    sample = replace(read_sample(made.inspected(), made.inspected().entry("val", "fay")), entry=entry, metadata={})
    assert (
        drawing_of(sample, 25, made.root / "mouths").mouth
        == "../mouths/fay.npz\nis not below data_root, so it is not read"
    )


@pytest.mark.parametrize("words", [pytest.param(["--help"], marks=pytest.mark.slow), ["own", "--plot", "p.png"]])
def test_the_backend_of_a_notebook_does_not_matter(tmp_path: Path, words: list[str]) -> None:
    write_store(tmp_path / "own", [("x", np.ones((5, 3), np.float32), {})])
    environment = {**os.environ, "MPLBACKEND": "module://nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shardwriter.inspect_cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "pipe.wav", "noise.wav"])
def test_a_wav_that_cannot_be_read_is_named_in_its_place(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "noise.wav").write_bytes(b"no wav")
    audio = [{"mixture": name, "source": name, "speaker": 1, "num_samples": 100}]
    write_store(tmp_path / "own", [("x", np.ones((5, 3), np.float32), {"audio": audio})])
    store = InspectedStore.open(Folder(tmp_path / "own"))
    voice = drawing_of(read_sample(store, store.entry("train", "x")), 25, tmp_path).voice
    assert voice == f"{name}\n{'is not on this machine' if len(name) > 255 else 'cannot be read any more'}"
