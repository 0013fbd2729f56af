"""The audio that a store holds: the samples of the wavs as they are, or a reason why not."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from iianet.errors import AudioError
from shardwriter.corpus.wavs import read_audio, wav_problems
from shardwriter.format.sample import decode_pcm

RATE = 16_000
SUBTYPES = {"PCM_U8": "int16", "PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32", "FLOAT": "float32"}


def write_wav(path: Path, subtype: str, num_samples: int = 100, *, seed: int = 0, rate: int = RATE) -> Path:
    samples = np.random.default_rng(seed).uniform(-1, 1, num_samples)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def entry(source: str, mixture: str, num_samples: int = 100) -> dict[str, Any]:
    return {"source": source, "mixture": mixture, "speaker": 1, "num_samples": num_samples}


def as_soundfile_reads(path: Path, num_samples: int = 100) -> npt.NDArray[np.float32]:
    samples: npt.NDArray[np.float32] = soundfile.read(path, frames=num_samples, dtype="float32")[0]
    return samples


def test_entries_follow_each_other_each_with_its_source_then_its_mixture(tmp_path: Path) -> None:
    wavs = [write_wav(tmp_path / f"{name}.wav", "PCM_16", seed=number) for number, name in enumerate("abcd")]
    found = read_audio(tmp_path, [entry("a.wav", "b.wav", 30), entry("c.wav", "d.wav", 80)])
    lengths = (30, 30, 80, 80)
    expected = [as_soundfile_reads(wav, length) for wav, length in zip(wavs, lengths, strict=True)]
    assert found.dtype == np.int16 and found.shape == (220,)
    np.testing.assert_array_equal(decode_pcm(found), np.concatenate(expected))


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_samples_decode_to_what_soundfile_reads(tmp_path: Path, subtype: str) -> None:
    write_wav(tmp_path / "a.wav", subtype)
    found = read_audio(tmp_path, [entry("a.wav", "a.wav")])
    assert found.dtype == SUBTYPES[subtype]
    np.testing.assert_array_equal(decode_pcm(found)[:100], as_soundfile_reads(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    ("kinds", "stored"),
    [(("PCM_16", "PCM_24"), "int32"), (("PCM_32", "PCM_U8"), "int32"), (("FLOAT", "PCM_16"), "float32")],
)
def test_wavs_of_two_kinds_are_stored_as_what_holds_both(tmp_path: Path, kinds: tuple[str, str], stored: str) -> None:
    paths = [write_wav(tmp_path / f"{kind}.wav", kind) for kind in kinds]
    found = read_audio(tmp_path, [entry(*(path.name for path in paths))])
    assert found.dtype == stored
    np.testing.assert_array_equal(decode_pcm(found), np.concatenate([as_soundfile_reads(path) for path in paths]))


@pytest.mark.parametrize("whole", ["PCM_24", "PCM_32"])
def test_wavs_that_no_one_type_holds_are_refused(tmp_path: Path, whole: str) -> None:
    for kind in ("FLOAT", whole):
        write_wav(tmp_path / f"{kind}.wav", kind)
    with pytest.raises(AudioError, match=rf"{whole}.wav: is int32, another wav of its utterance is float32"):
        read_audio(tmp_path, [entry("FLOAT.wav", f"{whole}.wav")])


def _stereo(path: Path) -> None:
    soundfile.write(path, np.zeros((100, 2), np.int16), RATE)


DAMAGES = {
    "missing": (Path.unlink, r"bad\.wav: no such file; copy it there, or correct data_root or the lists$"),
    "no wav": (lambda path: path.write_bytes(b"RIFF"), r"bad\.wav: cannot be read \([\w ]+\)$"),
    "short": (
        lambda path: write_wav(path, "PCM_16", 99),
        r"bad\.wav: \(99,\) samples at 16000 Hz; expected .* 100",
    ),
    "rate": (
        lambda path: write_wav(path, "PCM_16", rate=8000),
        r"bad\.wav: \(100,\) samples at 8000 Hz; expected",
    ),
    "stereo": (_stereo, r"bad\.wav: \(100, 2\) samples at 16000 Hz; expected mono"),
    "double": (lambda path: write_wav(path, "DOUBLE"), r"bad\.wav: has 64-bit floats, .* use --audio path"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("role", ["source", "mixture"])
def test_wav_that_cannot_be_stored_is_named_with_the_reason(tmp_path: Path, damage: str, role: str) -> None:
    for name in ("good", "bad"):
        write_wav(tmp_path / f"{name}.wav", "PCM_16")
    change, message = DAMAGES[damage]
    change(tmp_path / "bad.wav")
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path, [{**entry("good.wav", "good.wav"), role: "bad.wav"}])


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_a_wav_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    _fifo(write_wav(tmp_path / "bad.wav", "PCM_16"))
    with pytest.raises(AudioError, match=r"bad\.wav: cannot be read \(.*expected a regular file\); copy it there anew"):
        read_audio(tmp_path, [entry("bad.wav", "bad.wav")])


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_wav_is_seen_by_its_header(tmp_path: Path, damage: str) -> None:
    wavs = [(write_wav(tmp_path / f"{name}.wav", "PCM_16"), 100) for name in ("good", "bad")]
    change, message = DAMAGES[damage]
    change(tmp_path / "bad.wav")
    problems = wav_problems(wavs)
    if damage == "double":  # it can be read, though not stored
        assert not problems
    else:
        assert len(problems) == 1 and re.search(message, problems[0])


def test_utterance_of_no_examples_has_no_samples(tmp_path: Path) -> None:
    assert read_audio(tmp_path, []).shape == (0,)


def test_a_wav_that_is_cut_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "bad.wav", "PCM_16")
    whole = soundfile.SoundFile.read

    def cut(wav: soundfile.SoundFile, *arguments: object, **options: object) -> object:
        os.truncate(path, 44 + 2 * 60)
        return whole(wav, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", cut)
    with pytest.raises(AudioError, match=r"bad\.wav: ends after 60 samples of 100; it was cut, copy it again$"):
        read_audio(tmp_path, [entry("bad.wav", "bad.wav")])
