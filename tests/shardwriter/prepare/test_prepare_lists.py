"""prepare-lists makes the lists that IIANet's scripts make, and tells what it leaves out."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers.commands import Outcome, run_main
from helpers.recordings import KINDS, read_tsv, touch_mouths, write_mixtures, write_wav

from iianet.config.schema import load_config
from shardwriter.corpus.manifest import load_manifests
from shardwriter.prepare import recordings
from shardwriter.prepare_lists_cli import main

NAMES = {
    "lrs2": ["63_00011_0.5_64_00010_-0.5", "64_00010_2_63_00012_-2", "63_00012_-1.25_65_00001_1.25"],
    "lrs3": ["gZpcTVqpaPw_50001_0.5_3GFG6Cvy9HQ_50005_-0.5", "3GFG6Cvy9HQ_50005_-1_gZpcTVqpaPw_50002_1"],
    "vox2": [
        "id00017_01dfn2spqyE_00001_2.1607_id00018_5_-_abcdefg_00005_-2.1607",
        "id00018___id00019_-_00002_-3_id00017_01dfn2spqyE_00001_3",
    ],
}
UTTERANCES = {
    "lrs2": ["63_00011", "63_00012", "64_00010", "65_00001"],
    "lrs3": ["gZpcTVqpaPw_50001", "gZpcTVqpaPw_50002", "3GFG6Cvy9HQ_50005"],
    "vox2": ["id00017_01dfn2spqyE_00001", "id00018_5_-_abcdefg_00005", "id00018___id00019_-_00002"],
}
Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """prepare-lists of `tmp_path`, of the split tr, with further words."""

    def prepare_lists(corpus: str = "lrs2", *words: object, splits: str = "tr") -> Outcome:
        own = ["--audio", tmp_path / "audio", "--mouths", tmp_path / "mouths", "--out", tmp_path / "lists"]
        return run_main(main, [corpus, *own, "--splits", splits, *words], capsys)

    return prepare_lists


def make(root: Path, corpus: str = "lrs2", splits: Sequence[str] = ("tr",)) -> None:
    for number, split in enumerate(splits):
        write_mixtures(root / "audio", split, NAMES[corpus], samples=640 + number)
    touch_mouths(root / "mouths", UTTERANCES[corpus])


def rows(root: Path, kind: str, split: str = "tr") -> list[list[Any]]:
    found: list[list[Any]] = json.loads((root / "lists" / split / f"{kind}.json").read_text())
    return found


def expected(root: Path, split: str, kind: str, corpus: str) -> str:
    """What IIANet's scripts write of such a folder: two of its own, which differ in how they cut names."""
    folder = f"{root}/audio/{split}/{kind}"
    listed = []
    for name in sorted(os.listdir(folder)):
        words = name.split("_")
        first, second = {
            "vox2": (name[:25], name.removesuffix(".wav")[26:].partition("_")[2][:25]),
        }.get(corpus, ("_".join(words[:2]), "_".join(words[3:5])))
        mouth = [] if kind == "mix" else [f"{root}/mouths/{first if kind == 's1' else second}.npz"]
        listed.append((f"{folder}/{name}", *mouth, len(soundfile.SoundFile(f"{folder}/{name}"))))
    return json.dumps(listed, indent=4)


@pytest.mark.parametrize("corpus", list(NAMES))
def test_lists_are_those_of_the_scripts_to_the_byte(tmp_path: Path, run: Run, corpus: str) -> None:
    splits = ("tr", "cv", "tt")
    make(tmp_path, corpus, splits)
    assert run(corpus, splits="tr,cv,tt").code == 0
    for split in splits:
        for kind in KINDS:
            made = (tmp_path / "lists" / split / f"{kind}.json").read_text()
            assert made == expected(tmp_path, split, kind, corpus)
        assert read_tsv(tmp_path / "lists" / split / "left_out.tsv") == []


def test_other_files_than_wavs_are_none_of_its_business(tmp_path: Path, run: Run) -> None:
    make(tmp_path)
    (tmp_path / "audio/tr/mix/notes.txt").touch()
    outcome = run()
    assert outcome.code == 0
    assert len(rows(tmp_path, "mix")) == 3


def test_relative_folders_make_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["lrs2", "--audio", "audio/", "--mouths", "./mouths", "--out", "lists", "--splits", "tr"]
    assert run_main(main, words, capsys).code == 0
    for kind in KINDS:
        assert (tmp_path / f"lists/tr/{kind}.json").read_text() == expected(tmp_path, "tr", kind, "lrs2")


def test_paths_below_a_data_root_are_relative_to_it(tmp_path: Path, run: Run) -> None:
    make(tmp_path, splits=("tr", "cv", "tt"))
    outcome = run("lrs2", "--data_root", tmp_path, splits="tr,cv,tt")
    assert outcome.code == 0
    assert f"give other commands --data_root {tmp_path}" in outcome.out
    assert rows(tmp_path, "s1")[0] == ["audio/tr/s1/63_00011_0.5_64_00010_-0.5.wav", "mouths/63_00011.npz", 640]
    overrides = [f"datamodule.data_config.{key}={tmp_path}/lists/{split}" for key, split in FOLDERS.items()]
    manifest = load_manifests(load_config("LRS2-IIANet.yml", [*overrides, ROOT_KEY.format(tmp_path)]))["train"]
    assert sorted(manifest.utterances.column("name").to_pylist()) == UTTERANCES["lrs2"]
    assert len(manifest.examples) == 6


FOLDERS = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
ROOT_KEY = "datamodule.data_config.data_root={}"


def test_a_data_root_may_be_the_folder_of_mouths_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    mouths = tmp_path / "mouths"
    (tmp_path / "audio").rename(mouths / "audio")
    words = ["lrs2", "--audio", mouths / "audio", "--mouths", mouths, "--out", tmp_path / "lists", "--splits", "tr"]
    assert run_main(main, [*words, "--data_root", mouths], capsys).code == 0
    assert rows(tmp_path, "s1")[0][:2] == ["audio/tr/s1/63_00011_0.5_64_00010_-0.5.wav", "63_00011.npz"]


@pytest.mark.parametrize("outside", ["audio", "mouths"])
def test_what_lies_outside_of_the_data_root_is_refused_before_anything_is_written(
    tmp_path: Path, run: Run, outside: str
) -> None:
    make(tmp_path)
    other = "mouths" if outside == "audio" else "audio"
    outcome = run("lrs2", "--data_root", tmp_path / other)
    assert outcome.code == 2
    assert f"{tmp_path / outside} lies outside; expected a folder that all wavs and mouths lie below" in outcome.err
    assert not (tmp_path / "lists").exists()


def _without_s2(root: Path, name: str) -> None:
    (root / "audio/tr/s2" / name).unlink()


def _only_s1(root: Path, name: str) -> None:
    (root / "audio/tr/s2" / name).unlink()
    (root / "audio/tr/mix" / name).unlink()


def _odd_name(root: Path, name: str) -> None:
    for kind in KINDS:
        (root / "audio/tr" / kind / name).rename(root / "audio/tr" / kind / "odd.wav")


def _shorter(root: Path, name: str) -> None:
    write_wav(root / "audio/tr/s1" / name, 639)


def _broken(root: Path, name: str) -> None:
    (root / "audio/tr/s2" / name).write_bytes(b"RIFF")


def _other_rate(root: Path, name: str) -> None:
    write_wav(root / "audio/tr/mix" / name, 640, rate=8000)


def _stereo(root: Path, name: str) -> None:
    write_wav(root / "audio/tr/mix" / name, [[0.0, 0.0]] * 640)


def _empty(root: Path, name: str) -> None:
    for kind in KINDS:
        write_wav(root / "audio/tr" / kind / name, 0)


def _no_mouth(root: Path, name: str) -> None:
    (root / "mouths/63_00011.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "problem", "found"),
    [
        (_without_s2, "not in all of mix, s1 and s2", "in mix and s1; not in s2"),
        (_only_s1, "not in all of mix, s1 and s2", "in s1; not in mix and s2"),
        (_odd_name, "with a name that does not tell its utterances", "expected <utterance>_<snr>_<utterance>_<snr>"),
        (_shorter, "whose mix, s1 and s2 differ in length", "mix has 640 samples, s1 has 639 samples, s2 has 640"),
        (_broken, "with a wav that cannot be opened, or is not mono at 16 kHz", "s2/63_00011_0.5_64_00010_-0.5.wav"),
        (_other_rate, "with a wav that cannot be opened, or is not mono at 16 kHz", "1 channel at 8000 Hz; expected"),
        (_stereo, "with a wav that cannot be opened, or is not mono at 16 kHz", "2 channels at 16000 Hz; expected"),
        (_empty, "with a wav that cannot be opened, or is not mono at 16 kHz", "0 samples of 1 channel"),
        (_no_mouth, "without a mouth", "no 63_00011.npz"),
    ],
)
def test_what_cannot_be_used_is_left_out_of_all_lists_and_told(
    tmp_path: Path, run: Run, damage: Callable[[Path, str], None], problem: str, found: str
) -> None:
    make(tmp_path)
    name = f"{NAMES['lrs2'][0]}.wav"
    damage(tmp_path, name)
    outcome = run()
    assert outcome.code == 3
    listed = [[Path(row[0]).name for row in rows(tmp_path, kind)] for kind in KINDS]
    assert listed == [sorted(f"{other}.wav" for other in NAMES["lrs2"][1:])] * 3
    told = read_tsv(tmp_path / "lists/tr/left_out.tsv")
    assert {row[0] for row in told} == {"odd.wav" if damage is _odd_name else name}
    assert {row[1] for row in told} == {problem}
    assert found in told[0][2]
    assert f"Left out (1): mixtures {problem}" in outcome.out
    assert found in outcome.out


def test_a_mixture_has_every_reason_and_counts_once(tmp_path: Path, run: Run) -> None:
    make(tmp_path)
    _shorter(tmp_path, f"{NAMES['lrs2'][0]}.wav")
    _no_mouth(tmp_path, "")
    (tmp_path / "mouths/64_00010.npz").unlink()
    outcome = run()
    told = [row[1] for row in read_tsv(tmp_path / "lists/tr/left_out.tsv") if row[0] == f"{NAMES['lrs2'][0]}.wav"]
    assert told == ["whose mix, s1 and s2 differ in length", *["without a mouth"] * 2]
    assert outcome.out.splitlines()[2].split()[:3] == ["tr", "1", "2"]


def test_the_first_of_many_are_named_and_the_rest_counted(tmp_path: Path, run: Run) -> None:
    make(tmp_path)
    write_mixtures(tmp_path / "audio", "tr", [f"99_{number:05d}_1_63_00011_-1" for number in range(12)])
    outcome = run()
    assert "Left out (12): mixtures without a mouth\n  tr 99_00000_1_63_00011_-1.wav: no 99_00000.npz\n" in outcome.out
    assert f"... and 9 more, in {tmp_path / 'lists'}/*/left_out.tsv" in outcome.out
    assert len(read_tsv(tmp_path / "lists/tr/left_out.tsv")) == 12


def test_the_summary_counts_mixtures_hours_and_how_often_utterances_serve(tmp_path: Path, run: Run) -> None:
    write_mixtures(tmp_path / "audio", "tr", NAMES["lrs2"], samples=2_400_000)  # 150 s each
    touch_mouths(tmp_path / "mouths", UTTERANCES["lrs2"])
    table = run().out.splitlines()
    assert " ".join(table[0].split()) == "split mixtures left out hours utterances examples of one: min median max"
    assert table[2].split() == ["tr", "3", "0", "0.12", "4", "1", "1.50", "2"]


def test_a_split_of_which_nothing_can_be_listed_leaves_the_earlier_lists(tmp_path: Path, run: Run) -> None:
    make(tmp_path, splits=("tr", "cv"))
    assert run(splits="tr,cv").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "lists").rglob("*.*")}
    outcome = run("vox2", splits="tr,cv")
    assert outcome.code == 2
    assert (
        "tr: none of its 3 mixtures can be listed; 3 are with a name that does not tell its utterances" in outcome.err
    )
    assert "Correct --audio, --mouths or the name of the corpus (lrs2, lrs3, vox2)" in outcome.err
    assert {path: path.read_bytes() for path in (tmp_path / "lists").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("lost", "words", "said"),
    [
        ("audio/tr/s1", (), "tr/s1: cannot be listed (No such file or directory)"),
        ("mouths", (), "--mouths {}/mouths: cannot be listed"),
        (None, ("--splits", "tr,xx"), "--splits: found 'xx', expected some of tr, cv, tt"),
        (None, ("--splits", "tr,cv"), "or name the splits that there are: --splits"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, run: Run, lost: str | None, words: tuple[str, ...], said: str
) -> None:
    make(tmp_path)
    if lost:
        (tmp_path / lost).rename(tmp_path / "away")
    outcome = run("lrs2", *words)
    assert outcome.code == 2
    assert said.format(tmp_path) in outcome.err


def test_folders_without_wavs_are_refused(tmp_path: Path, run: Run) -> None:
    touch_mouths(tmp_path / "mouths", ["a_b"])
    for kind in KINDS:
        (tmp_path / "audio/tr" / kind).mkdir(parents=True)
    outcome = run()
    assert outcome.code == 2
    assert "its folders mix, s1 and s2 hold no .wav file" in outcome.err


def test_a_list_that_cannot_be_written_ends_with_its_name(tmp_path: Path, run: Run) -> None:
    make(tmp_path)
    (tmp_path / "lists/tr/mix.json").mkdir(parents=True)
    outcome = run()
    assert outcome.code == 2
    assert f"{tmp_path}/lists/tr/mix.json: cannot be written (Is a directory)" in outcome.err
    (tmp_path / "lists/tr/mix.json").rmdir()
    (tmp_path / "lists/tr/left_out.tsv").unlink()
    (tmp_path / "lists/tr").rmdir()
    (tmp_path / "lists/tr").touch()
    assert f"{tmp_path}/lists/tr: cannot be written" in run().err


def test_names_that_a_terminal_would_obey_are_shown_as_escapes(tmp_path: Path, run: Run) -> None:
    make(tmp_path)
    write_mixtures(tmp_path / "audio", "tr", ["\x1b[31m\t\n"])
    outcome = run()
    assert "\x1b" not in outcome.out
    assert read_tsv(tmp_path / "lists/tr/left_out.tsv")[0][0] == r"\x1b[31m\t\n.wav"


def test_pieces_of_work_keep_the_order(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "AT_A_TIME", 2)
    make(tmp_path)
    assert run().code == 0
    assert [Path(row[0]).stem for row in rows(tmp_path, "mix")] == sorted(NAMES["lrs2"])
