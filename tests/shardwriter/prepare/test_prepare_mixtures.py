"""prepare-mixtures makes the mixtures of a list, resumes, and tells what it cannot make."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.commands import Outcome, run_main
from helpers.recordings import KINDS, read_tsv, speech, touch_mouths, write_wav

from iianet.config.schema import load_config
from iianet.errors import OutputError
from shardwriter import prepare_lists_cli
from shardwriter.corpus.manifest import load_manifests
from shardwriter.format.files import is_alive
from shardwriter.prepare.mixing import make_mixtures
from shardwriter.prepare.mixing_list import read_mixing_list
from shardwriter.prepare.mixture import _as_int16
from shardwriter.prepare.speech_level import published_level, standard_level
from shardwriter.prepare_mixtures_cli import main

ROOT = Path(__file__).parents[3]
LINES = [
    "a_1.wav 2.16068 b_1.wav -2.16068",
    "b_1.wav -0.53084 more/c_1.wav 0.53084",
    "more/c_1.wav 4.5 a_1.wav -4.5",
    "a_2.wav 1 b_1.wav -1",
]
MADE = [
    "a_1_2.1607_b_1_-2.1607.wav",
    "a_2_1_b_1_-1.wav",
    "b_1_-0.53084_c_1_0.53084.wav",
    "c_1_4.5_a_1_-4.5.wav",
]
Run = Callable[..., Outcome]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Four utterances, and a list of mixtures of them."""
    for number, name in enumerate(("a_1", "b_1", "more/c_1", "a_2")):
        write_wav(tmp_path / "wavs" / f"{name}.wav", speech(1 + number / 10, 150 + 60 * number, number))
    (tmp_path / "list.scp").write_text("\n".join(LINES) + "\n")
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """prepare-mixtures of the list, with further words, in this process."""

    def prepare_mixtures(*words: object, out: str = "out") -> Outcome:
        own = ["--list", here / "list.scp", "--audio", here / "wavs", "--out", here / out, "--num_processes", 1]
        return run_main(main, [*own, *words], capsys)

    return prepare_mixtures


def contents(folder: Path) -> dict[str, bytes]:
    """Every wav below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


def pcm(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    info = soundfile.info(path)
    assert (rate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "WAV")
    return np.asarray(samples)


def gains(here: Path, folder: str, name: str, stems: tuple[str, str]) -> list[tuple[float, np.ndarray]]:
    """What the sources of a mixture were multiplied by, and what they are, as they were recorded."""
    found = []
    for kind, stem in zip(("s1", "s2"), stems, strict=True):
        source, voice = pcm(here / folder / kind / name) / 32768, soundfile.read(here / f"wavs/{stem}.wav")[0]
        common = voice[: len(source)]
        found.append((float(source @ common / (common @ common)), voice))
    return found


def test_mixtures_are_made_as_the_published_ones(here: Path, run: Run) -> None:
    """Named, cut, at their levels, scaled alike to 0.9 of full scale, and 16 bits."""
    outcome = run()
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, "4 mixtures made")
    for kind in KINDS:
        assert sorted(os.listdir(here / "out" / kind)) == MADE
    for name, stems, snr in ((MADE[0], ("a_1", "b_1"), 2.16068), (MADE[3], ("more/c_1", "a_1"), 4.5)):
        mix, *sources = (pcm(here / "out" / kind / name) / 32768 for kind in KINDS)
        assert {len(mix), *map(len, sources)} == {16_000}, "the shorter one is 1 s"
        assert np.abs(np.stack([mix, *sources])).max() == pytest.approx(0.9, abs=1 / 32768)
        assert np.abs(mix - sources[0] - sources[1]).max() < 1.6 / 32768
        found = gains(here, "out", name, stems)
        first, second = (10 * np.log10(gain**2 * published_level(voice)) for gain, voice in found)
        assert first - second == pytest.approx(2 * snr, abs=0.01)
        for source, (gain, voice) in zip(sources, found, strict=True):
            assert np.abs(source - gain * voice[:16_000]).max() < 0.6 / 32768


def test_halves_are_rounded_away_from_zero_as_in_matlab() -> None:
    found = _as_int16(np.array([0.5, -0.5, 1.5, -1.5, 2.4, -2.6]) / 32768)
    assert found.tolist() == [1, -1, 2, -2, 2, -3]


def test_levels_of_the_standard_are_an_option(here: Path, run: Run) -> None:
    hum = 0.3 * np.sin(2 * np.pi * 50 * np.arange(16_000) / 16_000)
    write_wav(here / "wavs/a_1.wav", speech(1) + hum)
    run()
    run("--level", "p56", out="other")
    for folder, level in (("out", published_level), ("other", standard_level)):
        found = gains(here, folder, MADE[0], ("a_1", "b_1"))
        first, second = (10 * np.log10(gain**2 * level(voice)) for gain, voice in found)
        assert first - second == pytest.approx(2 * 2.16068, abs=0.01)


def test_several_processes_make_the_same_bytes(here: Path, run: Run) -> None:
    run()
    assert run("--num_processes", 2, out="two").code == 0
    assert contents(here / "out") == contents(here / "two")
    assert len(contents(here / "two")) == 12


def test_what_is_whole_is_not_made_again_and_what_is_not_is(here: Path, run: Run) -> None:
    run()
    whole = contents(here / "out")
    (here / "out/s1" / MADE[1]).unlink()
    cut = here / "out/mix" / MADE[2]
    cut.write_bytes(cut.read_bytes()[:-2])
    kept = {kind: (here / "out" / kind / MADE[0]).stat().st_mtime_ns for kind in KINDS}
    time.sleep(0.01)
    assert run().out.splitlines()[0] == "2 mixtures made, 2 were there already"
    assert contents(here / "out") == whole
    assert {kind: (here / "out" / kind / MADE[0]).stat().st_mtime_ns for kind in KINDS} == kept


def test_what_died_writers_have_left_is_deleted(here: Path, run: Run) -> None:
    left = here / f"out/s2/.tmp-{MADE[0]}-{socket.gethostname()}-{2**22 + 1}-{'0' * 16}"
    left.parent.mkdir(parents=True)
    left.touch()
    run()
    assert not left.exists()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), "cannot be read"),
        (lambda path: write_wav(path, speech(1), rate=8000), "1 channel at 8000 Hz; expected mono at 16000 Hz"),
        (lambda path: write_wav(path, np.stack([speech(1)] * 2, axis=1)), "2 channels at 16000 Hz"),
        (lambda path: write_wav(path, 16_000), "is silent; expected speech"),
        (lambda path: write_wav(path, np.full(16_000, np.nan), subtype="FLOAT"), "holds what are no numbers"),
    ],
)
def test_mixtures_that_cannot_be_made_are_counted_and_listed(
    here: Path, run: Run, lost: Callable[[Path], object], said: str
) -> None:
    lost(here / "wavs/more/c_1.wav")
    outcome = run()
    assert outcome.code == 3
    assert outcome.out.splitlines()[0] == "2 mixtures made"
    assert "Failed (2); fix the wavs and run it again:" in outcome.out
    failed = read_tsv(here / "out/failed.tsv")
    assert sorted(row[0] for row in failed) == [MADE[2], MADE[3]]
    assert all(said in row[1] and "c_1.wav" in row[1] for row in failed)
    write_wav(here / "wavs/more/c_1.wav", speech(1))
    assert run().code == 0
    assert read_tsv(here / "out/failed.tsv") == []


def test_a_source_may_be_silent_as_long_as_the_shorter_one_lasts(here: Path, run: Run) -> None:
    write_wav(here / "wavs/a_1.wav", np.append(np.zeros(16_000), speech(1)))
    write_wav(here / "wavs/b_1.wav", speech(1))
    (here / "list.scp").write_text("a_1.wav 0 b_1.wav 0\n")
    assert run().code == 0
    assert not pcm(here / "out/s1/a_1_0_b_1_0.wav").any()
    assert np.array_equal(pcm(here / "out/mix/a_1_0_b_1_0.wav"), pcm(here / "out/s2/a_1_0_b_1_0.wav"))


def test_folders_of_another_level_or_of_others_are_refused(here: Path, run: Run) -> None:
    run()
    before = contents(here / "out")
    outcome = run("--level", "p56")
    assert outcome.code == 2
    assert 'were made with {"level": "published"}, and now {"level": "p56"} is asked for' in outcome.err
    (here / "out/mixing.json").write_text("{")
    assert run().code == 2
    (here / "out/mixing.json").unlink()
    outcome = run()
    assert outcome.code == 2
    assert "holds wavs, and no mixing.json that says how they were made" in outcome.err
    assert contents(here / "out") == before


def test_wavs_of_a_wrong_folder_are_refused_before_anything_is_made(here: Path, run: Run) -> None:
    outcome = run("--audio", here / "nowhere")
    assert outcome.code == 2
    assert f"none of its first 8 wavs exists, e.g. {here}/nowhere/a_1.wav" in outcome.err
    assert outcome.err.rstrip().endswith(f"start at {here}/nowhere; correct --audio")
    (here / "list.scp").write_text("/other/x/a_1.wav 1 /other/x/more/c_1.wav -1\n")
    outcome = run()
    assert outcome.err.rstrip().endswith("such as --list_root /other/x")
    assert not (here / "out").exists()
    assert run("--list_root", "/other/x").code == 0


def test_one_lost_wav_among_the_first_is_no_wrong_folder(here: Path, run: Run) -> None:
    for name in ("a_1", "b_1", "a_2"):
        (here / "wavs" / f"{name}.wav").unlink()
    assert run().code == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_a_wav_that_cannot_be_written_ends_it_and_the_rest_is_whole(here: Path, run: Run, processes: int) -> None:
    (here / "out/s2" / MADE[2]).mkdir(parents=True)
    outcome = run("--num_processes", processes)
    assert outcome.code == 2
    assert f"{here}/out/s2/{MADE[2]}: cannot be written (Is a directory)" in outcome.err
    (here / "out/s2" / MADE[2]).rmdir()
    assert run().code == 0
    assert run(out="whole").code == 0
    assert contents(here / "out") == contents(here / "whole")


def test_a_process_that_the_system_ends_is_told(here: Path) -> None:
    lines = [f"a_1.wav {snr / 100} b_1.wav {-snr / 100}" for snr in range(1, 400)]
    (here / "list.scp").write_text("\n".join(lines))
    pairs = read_mixing_list(here / "list.scp", here / "wavs")

    def end_one() -> None:
        while not list((here / "out/mix").glob("a*.wav")):
            time.sleep(0.02)
        os.kill(active_children()[0].pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=end_one)
    killer.start()
    with pytest.raises(OutputError, match=r"a process that mixed was ended, .* with fewer --num_processes"):
        make_mixtures(pairs, here / "out", "published", 2)
    killer.join()


def writers(folder: Path) -> set[int]:
    """Processes of which there are unfinished files."""
    return {int(path.name.split("-")[-2]) for path in folder.rglob(".tmp-*")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_killed_is_resumed_to_the_same_bytes(here: Path, run: Run, number: signal.Signals) -> None:
    lines = [f"a_1.wav {snr / 100} b_1.wav {-snr / 100}" for snr in range(1, 200)]
    (here / "list.scp").write_text("\n".join(lines))
    words = ["--list", here / "list.scp", "--audio", here / "wavs", "--out", here / "killed", "--num_processes", 2]
    command = [sys.executable, "-m", "shardwriter.prepare_mixtures_cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True)
    while len(list((here / "killed/mix").glob("a*.wav"))) < 10:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()  # to its end: no process of it is left that could write
    assert process.wait(20) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    if number != signal.SIGKILL:
        assert "Stopped. Every wav in" in said
        assert "Traceback" not in said
    there = len(list((here / "killed/s2").glob("a*.wav")))
    assert there < 199, "it was killed too late to show anything"
    not_reaped = {pid for pid in writers(here / "killed") if is_alive(pid)}  # what init has not yet taken note of
    assert run("--num_processes", 2, out="killed").code == 0
    assert run("--num_processes", 2, out="whole").code == 0
    assert contents(here / "killed") == contents(here / "whole")
    assert writers(here / "killed") <= not_reaped


def test_what_it_makes_is_listed_by_prepare_lists_and_read(
    here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("tr", "cv", "tt"):
        assert run(out=f"audio/{split}").code == 0
    touch_mouths(here / "mouths", ["a_1", "a_2", "b_1", "c_1"])
    words = ["--audio", here / "audio", "--mouths", here / "mouths", "--out", here / "lists"]
    assert run_main(prepare_lists_cli.main, ["lrs2", *words], capsys).code == 0
    folders = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
    overrides = [f"datamodule.data_config.{key}={here}/lists/{split}" for key, split in folders.items()]
    manifest = load_manifests(load_config("LRS2-IIANet.yml", overrides))["train"]
    assert len(manifest.examples) == 8
    assert sorted(manifest.utterances.column("name").to_pylist()) == ["a_1", "a_2", "b_1", "c_1"]


@pytest.mark.parametrize("command", ["prepare_lists_cli", "prepare_mixtures_cli"])
def test_the_commands_show_an_example_and_load_no_torch(command: str) -> None:
    program = f"import sys, shardwriter.{command} as it; assert 'torch' not in sys.modules; it.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    name = command.removesuffix("_cli").replace("_", "-")
    assert done.stdout.rstrip().splitlines()[-2:][0] == "example:"
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"  {name} ")


def test_the_settings_are_recorded_first(here: Path, run: Run) -> None:
    (here / "out/s2" / MADE[0]).mkdir(parents=True)
    assert run().code == 2
    assert json.loads((here / "out/mixing.json").read_text()) == {"level": "published"}
