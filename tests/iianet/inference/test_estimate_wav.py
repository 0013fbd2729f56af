"""Estimates keep their level: whole numbers where they suffice, floats where not; and are there whole or not at all."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from iianet.errors import OutputError
from iianet.inference import estimate_wav
from iianet.inference.estimate_wav import EstimateWav, WavForm, refuse_without_room, writing
from iianet.inference.windows import Samples


def form(num_samples: int, rate: int = 16_000, is_float: bool = False) -> WavForm:
    return WavForm(rate=rate, num_samples=num_samples, is_float=is_float)


def write(path: Path, samples: Samples, like: WavForm) -> EstimateWav:
    with writing(path, like) as wav:
        for part in np.array_split(samples, 7):
            wav.write(part)
    return wav


def noise(num_samples: int, peak: float) -> Samples:
    samples = np.random.default_rng(0).uniform(-1, 1, num_samples).astype(np.float32)
    return np.float32(peak) * samples / np.abs(samples).max()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    numbers = np.arange(-32_768, 32_768, dtype=np.int16)
    wav = write(tmp_path / "a.wav", (numbers / 32_768).astype(np.float32), form(65_536))
    assert np.array_equal(soundfile.read(wav.path, dtype="int16")[0], numbers)
    assert soundfile.info(wav.path).subtype == wav.subtype == "PCM_16"
    assert wav.decibels == 0 and names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(
    ("sample", "subtype"), [(0.99998, "PCM_16"), (0.99999, "FLOAT"), (-1.0, "PCM_16"), (-1.1, "FLOAT")]
)
def test_what_would_be_clipped_is_written_as_floats_and_told(
    tmp_path: Path, sample: float, subtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = noise(5000, 0.5)
    samples[1234] = sample
    wav = write(tmp_path / "a.wav", samples, form(5000))
    found = soundfile.read(wav.path, dtype="float32")[0]
    assert soundfile.info(wav.path).subtype == wav.subtype == subtype
    assert np.abs(found - samples).max() <= (0 if subtype == "FLOAT" else 1 / 65_536)
    assert ("would clip; written as floats" in caplog.text) == (subtype == "FLOAT")


def test_floats_stay_floats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for peak in (1e-6, 3.0):
        wav = write(tmp_path / "a.wav", noise(5000, peak), form(5000, is_float=True))
        assert np.array_equal(soundfile.read(wav.path, dtype="float32")[0], noise(5000, peak))
    assert not caplog.text


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("length", [40, *range(100_000, 100_006)])
def test_another_rate_has_its_own_number_of_samples(tmp_path: Path, rate: int, length: int) -> None:
    heard = np.sin(2 * np.pi * 440 * np.arange(round(length * 16_000 / rate)) / 16_000).astype(np.float32) / 2
    wav = write(tmp_path / "a.wav", heard, form(length, rate))
    found, of_file = soundfile.read(wav.path)
    assert (len(found), of_file) == (length, rate)
    inside = slice(300, -300)
    assert np.abs(found - np.sin(2 * np.pi * 440 * np.arange(length) / rate) / 2)[inside].max(initial=0) < 1e-3


def test_silence_is_written(tmp_path: Path) -> None:
    wav = write(tmp_path / "a.wav", np.zeros(100, np.float32), form(100))
    assert wav.subtype == "PCM_16" and wav.decibels == -np.inf and not soundfile.read(wav.path)[0].any()


def test_what_is_stopped_leaves_nothing_new_and_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(100, 0.5), form(100))
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a.wav", form(100)) as wav:
        wav.write(noise(50, 0.1))
        assert (tmp_path / "a.wav").read_bytes() == before
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == before


def test_a_link_that_lies_where_it_is_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.wav").symlink_to(tmp_path / "victim")
    write(tmp_path / "a.wav", noise(100, 0.5), form(100))
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "a.wav").is_symlink()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with largest_file(100_000), pytest.raises(OutputError, match=r"a\.wav: cannot be written: .* left\. Make room"):
        write(tmp_path / "a.wav", noise(100_000, 0.5), form(100_000))
    assert names(tmp_path) == []


def test_a_folder_that_takes_nothing_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_without_room(tmp_path / "new" / "folder", 1000)
    assert (tmp_path / "new" / "folder").is_dir() and names(tmp_path / "new" / "folder") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be written: .* --out DIR"):
        refuse_without_room(tmp_path / "file", 0)
    monkeypatch.setattr(estimate_wav.shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(OutputError, match="its disk has 999 B left; expected 1 kB for the estimates"):
        refuse_without_room(tmp_path, 1000)
    with pytest.raises(OutputError, match=r"a\.wav: cannot be written: "):
        write(tmp_path / "none" / "a.wav", noise(10, 0.5), form(10))
