"""The toy corpus: its layout, that it can be learned from, and that a seed gives the same bytes wherever it is made."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from examples.toy_corpus import main, make_corpus, plan_mixtures, plan_utterances
from iianet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("tr", "cv", "tt")
NAME = re.compile(r"(spk\d\d_u\d)_(-?\d\.\d\d)_(spk\d\d_u\d)_(-?\d\.\d\d)\.wav")
DAMAGED = "mouths/spk05_u0.npz"

Floats = NDArray[np.float64]
Row = list[Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root)
    return root


def make_small(root: Path, seed: int = 0) -> None:
    make_corpus(root, seed=seed, seconds=1.0, utterances=12)


def rows(corpus: Path, split: str) -> Iterator[tuple[Row, Row, Row]]:
    read = [json.loads((corpus / "json" / split / f"{kind}.json").read_text()) for kind in ("mix", "s1", "s2")]
    return zip(*read, strict=True)


def all_rows(corpus: Path) -> list[tuple[Row, Row, Row]]:
    return [row for split in SPLITS for row in rows(corpus, split)]


def read_wav(path: Path) -> NDArray[np.int16]:
    signal, rate = soundfile.read(path, dtype="int16")
    assert (rate, signal.ndim, soundfile.info(path).subtype) == (16_000, 1, "PCM_16")
    return np.asarray(signal, dtype=np.int16)


def read_mouth(path: Path) -> NDArray[np.uint8]:
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive["data"])


def loudness(signal: NDArray[np.int16]) -> Floats:
    frames = signal[: len(signal) // 640 * 640].reshape(-1, 640).astype(np.float64)
    return np.asarray(np.sqrt((frames**2).mean(axis=1)))


def openings(mouth: NDArray[np.uint8]) -> Floats:
    return np.asarray((mouth < 50).sum(axis=(1, 2)), dtype=np.float64)


def correlation(one: Floats, other: Floats) -> float:
    shared = min(len(one), len(other))
    return float(np.corrcoef(one[:shared], other[:shared])[0, 1])


def digest(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_json_wavs_and_mouths_agree_in_length(corpus: Path) -> None:
    assert [len(list(rows(corpus, split))) for split in SPLITS] == [24, 6, 4]
    for mixture, *sources in all_rows(corpus):
        for wav, *mouth, num_samples in (mixture, *sources):
            assert len(read_wav(corpus / wav)) == num_samples == mixture[-1]
            if mouth and mouth[0] != DAMAGED:
                frames = read_mouth(corpus / mouth[0])
                assert frames.dtype == np.uint8
                assert frames.shape[1:] == (96, 96)
                assert len(frames) >= num_samples // 640 - 1


def test_one_mouth_is_a_frame_short_and_lengths_vary(corpus: Path) -> None:
    lengths = [len(read_mouth(path)) for path in (corpus / "mouths").iterdir() if path.stem != Path(DAMAGED).stem]
    assert Counter(lengths)[49] == 1
    assert len(set(lengths)) > 3
    assert len({mixture[-1] for mixture, *_ in all_rows(corpus)}) > 1


def test_row_names_its_two_utterances_alike_in_all_three_files(corpus: Path) -> None:
    for mixture, first, second in all_rows(corpus):
        name = Path(mixture[0]).name
        match = NAME.fullmatch(name)
        assert match is not None, name
        assert [Path(first[0]).name, Path(second[0]).name] == [name, name]
        assert [first[1], second[1]] == [f"mouths/{match[1]}.npz", f"mouths/{match[3]}.npz"]
        assert float(match[2]) == -float(match[4])


def test_mixture_is_the_exact_sum_of_its_sources_at_the_named_levels(corpus: Path) -> None:
    for mixture, first, second in all_rows(corpus):
        mix, s1, s2 = (read_wav(corpus / wav).astype(np.int64) for wav in (mixture[0], first[0], second[0]))
        np.testing.assert_array_equal(mix, s1 + s2)
        assert abs(max(np.abs(signal).max() for signal in (mix, s1, s2)) - 0.8 * 32767) <= 1
        level = 10 * np.log10((s1**2).sum() / (s2**2).sum())
        match = NAME.fullmatch(Path(mixture[0]).name)
        assert match is not None and level == pytest.approx(2 * float(match[2]), abs=0.01)


def test_mouth_opens_with_its_own_voice_and_not_with_the_other(corpus: Path) -> None:
    own, other = [], []
    for _, first, second in all_rows(corpus):
        for source, rival in ((first, second), (second, first)):
            if source[1] != DAMAGED:
                opening = openings(read_mouth(corpus / source[1]))
                own.append(correlation(opening, loudness(read_wav(corpus / source[0]))))
                other.append(correlation(opening, loudness(read_wav(corpus / rival[0]))))
    assert min(own) > 0.8
    assert max(other) < 0.7
    assert abs(np.mean(other)) < 0.15


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("utterances", [12, 13, 24, 60])
def test_voices_of_a_mixture_are_of_two_speakers_and_pitches(seed: int, utterances: int) -> None:
    members = plan_utterances(seed, 2.0, utterances)
    mixtures = plan_mixtures(members, seed)
    assert len({utterance.name for utterance in members}) == len(members) == utterances
    assert len({mixture.wav("mix") for mixture in mixtures}) == len(mixtures)
    for mixture in mixtures:
        low, high = sorted((mixture.first.fundamental, mixture.second.fundamental))
        assert 90 <= low < high <= 250 and high / low >= 1.2
        assert mixture.first.speaker != mixture.second.speaker


def test_speaker_belongs_to_one_split_and_every_utterance_serves_twice_or_more(corpus: Path) -> None:
    speakers: list[set[str]] = []
    served: Counter[str] = Counter()
    for split in SPLITS:
        mouths = [Path(source[1]).stem for _, *sources in rows(corpus, split) for source in sources]
        speakers.append({mouth.split("_")[0] for mouth in mouths})
        served.update(mouths)
    assert len(set.union(*speakers)) == sum(len(own) for own in speakers) == 12
    assert set(served) == {path.stem for path in (corpus / "mouths").iterdir()}
    assert min(served.values()) >= 2


def test_exactly_one_mouth_is_damaged_and_it_is_a_training_one(corpus: Path) -> None:
    damaged = []
    for path in (corpus / "mouths").iterdir():
        try:
            read_mouth(path)
        except zipfile.BadZipFile:
            damaged.append(f"mouths/{path.name}")
    assert damaged == [DAMAGED]
    assert any(DAMAGED in source for _, *sources in rows(corpus, "tr") for source in sources)


def test_same_seed_gives_the_same_bytes_in_another_process_and_another_seed_others(tmp_path: Path) -> None:
    make_small(tmp_path / "other", seed=1)
    make_small(tmp_path / "here")
    code = "from examples.toy_corpus import *; make_corpus(Path('there'), seconds=1.0, utterances=12)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    here, there, other = (digest(tmp_path / name) for name in ("here", "there", "other"))
    assert here == there
    assert not set(here.values()) & set(other.values())


def test_npz_holds_no_clock_time(corpus: Path) -> None:
    with zipfile.ZipFile(corpus / "mouths/spk00_u0.npz") as archive:
        assert [member.date_time for member in archive.infolist()] == [(1980, 1, 1, 0, 0, 0)]


def test_folder_takes_the_same_corpus_again_but_no_other(tmp_path: Path) -> None:
    make_small(tmp_path)
    before = digest(tmp_path)
    make_small(tmp_path)
    assert digest(tmp_path) == before
    with pytest.raises(ConfigError, match=r"holds audio/cv/mix/.* of another corpus"):
        make_small(tmp_path, seed=1)
    assert digest(tmp_path) == before


@pytest.mark.parametrize(("argument", "value"), [("seed", -1), ("seconds", 0.5), ("utterances", 11)])
def test_argument_out_of_range_is_named(tmp_path: Path, argument: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{argument} is {value}, expected"):
        make_corpus(tmp_path, **{argument: value})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_command_names_what_is_wrong_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy_corpus.py", str(tmp_path), "--seconds", "1", "--utterances", "18"])
    main()
    printed = capsys.readouterr().out
    assert "tr: 12 utterances of 6 speakers, 18 mixtures" in printed
    assert "a frame short of its audio, on purpose: mouths/spk02_u0.npz" in printed
    assert f"a truncated zip, on purpose: {DAMAGED}" in printed
