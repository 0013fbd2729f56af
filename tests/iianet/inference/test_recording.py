"""Recordings of any rate and number of channels are heard as 16 kHz mono, in blocks, and damage is told at once."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from iianet.errors import AudioError
from iianet.inference.recording import BLOCK, look_through


def tone(rate: int, seconds: float, hertz: float = 440.0) -> npt.NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def written(path: Path, samples: npt.NDArray[np.float64], rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def heard(path: Path) -> npt.NDArray[np.float32]:
    return np.concatenate(list(look_through(path).blocks()))


def test_one_channel_at_16_khz_is_heard_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(16_000, 5))
    recording = look_through(path)
    assert (recording.num_samples, recording.length, recording.seconds) == (80_000, 80_000, 5.0)
    assert recording.changes == [] and not recording.is_float
    assert len(list(recording.blocks())) == -(-80_000 // BLOCK) > 1
    assert np.array_equal(heard(path), soundfile.read(path, dtype="float32")[0])
    assert recording.peak == np.abs(heard(path)).max()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_as_if_it_were_read_whole(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "a.wav", tone(rate, 4.3), rate, "FLOAT")
    recording, found = look_through(path), heard(path)
    assert recording.changes == [f"it is resampled from {rate} to 16000 Hz"] and recording.is_float
    assert len(found) == recording.num_samples == round(4.3 * 16_000)
    inside = slice(500, -500)
    assert np.abs(found - tone(16_000, 4.3))[inside].max() < 1e-4


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(16_000, 1, 300), tone(16_000, 1, 500)
    path = written(tmp_path / "a.flac", np.stack([left, right], 1))
    assert look_through(path).changes == ["its 2 channels are averaged"]
    assert np.abs(heard(path) - (left + right) / 2).max() < 1e-4


def test_floats_keep_their_level(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", 7 * tone(16_000, 1), subtype="FLOAT")
    assert np.array_equal(heard(path), soundfile.read(path, dtype="float32")[0])
    assert look_through(path).peak == pytest.approx(3.5, rel=1e-3)


@pytest.mark.parametrize(("wrong", "said"), [(np.nan, "such as nan"), (-np.inf, "such as -inf"), (1e12, "such as 1e")])
def test_what_is_no_sound_is_refused_with_its_place(tmp_path: Path, wrong: float, said: str) -> None:
    samples = tone(16_000, 10)
    samples[100_000] = wrong
    path = written(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"a\.wav: has 1 samples {said}.* in the block from 4\.1 s on; expected"):
        look_through(path)


def test_a_file_that_is_no_recording_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a wav\n" * 100)
    os.mkfifo(tmp_path / "pipe.wav")
    written(tmp_path / "empty.wav", np.empty(0))
    written(tmp_path / "short.wav", np.zeros(1), 48_000)
    written(tmp_path / "slow.wav", np.zeros(99), 100)
    for name, said in (
        ("missing.wav", "cannot be read .* give the path of a recording that is there"),
        ("pipe.wav", "cannot be read .* FIFO"),
        ("text.wav", "is no recording that can be read .* give a wav, a flac"),
        ("empty.wav", "holds 0 samples"),
        ("short.wav", "holds 1 samples, which are none at 16000 Hz"),
        ("slow.wav", "has a rate of 100 Hz; expected 4,000 to 768,000"),
    ):
        with pytest.raises(AudioError, match=rf"{name}: {said}"):
            look_through(tmp_path / name)
