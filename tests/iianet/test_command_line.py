"""What the commands share."""

import logging
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.commands import run_main

import iianet
import iianet_cli
import loaders
import shardwriter
from iianet import interruption, version
from iianet.command_line import config_overrides, own_environment, run_command
from iianet.config.schema import load_config
from iianet_cli import entry, evaluate_cli, export_cli, separate_cli, train_cli
from shardwriter import build_cli, inspect_cli, prepare_lists_cli, prepare_mixtures_cli

ROOT = Path(__file__).parents[2]
PROGRAM = "import iianet, os; print(iianet.__file__); print(os.environ['PYTHONPATH'])"


def test_a_command_that_is_started_again_imports_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder of the user's own with our name, nor a lost PYTHONPATH, changes that."""
    other = tmp_path / "iianet"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.setenv("PYTHONPATH", "given")
    command = [sys.executable, "-c", PROGRAM]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    found = subprocess.run(command, cwd=tmp_path, env=own_environment(), capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[0] == iianet.__file__
    assert found.stdout.splitlines()[1].split(":")[-1] == "given"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (build_cli, "build-shards"),
        (inspect_cli, "inspect-shards"),
        (prepare_lists_cli, "prepare-lists"),
        (prepare_mixtures_cli, "prepare-mixtures"),
        (train_cli, "train-iianet"),
        (evaluate_cli, "evaluate-iianet"),
        (export_cli, "export-iianet"),
        (separate_cli, "separate-iianet"),
    ],
)
def test_each_command_prints_its_version(command: ModuleType, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_main(command.main, ["--version"], capsys)
    assert (outcome.code, outcome.out) == (0, f"{name} {version.__version__}\n")


def test_packages_have_the_projects_version_and_types() -> None:
    packages = (iianet, shardwriter, loaders, iianet_cli)
    assert {package.__version__ for package in packages} == {version.__version__}
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (expected["name"], expected["version"]) == (version.DISTRIBUTION, version.__version__)
    for package in packages:
        assert (Path(package.__path__[0]) / "py.typed").is_file()


def test_code_that_was_never_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "DISTRIBUTION", "no-such-distribution")
    assert version._version() == version.NOT_INSTALLED


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (build_cli, ["--config", "x.yml"], "--config: unknown flag; did you mean --conf_dir?"),
        (train_cli, ["--conf_dir", "x.yml", "--resme=last"], "--resme: unknown flag; did you mean --resume?"),
        (
            train_cli,
            ["--conf-dir", "x.yml", "--gpus", "2"],
            "--gpus: unknown flag; train-iianet --help shows all flags",
        ),
        (build_cli, [], "the following arguments are required: --conf_dir; build-shards --help shows all flags"),
        (
            build_cli,
            ["--conf_dir", "x.yml", "--data_split", "trian"],
            "--data_split: found 'trian', expected all, or some of train, val, test; did you mean train?",
        ),
        (
            train_cli,
            ["--conf_dir", "x.yml", "--precision", "bf16"],
            "--precision: found 'bf16', expected 32-true, bf16-mixed or 16-mixed; did you mean bf16-mixed?",
        ),
        (
            build_cli,
            ["--conf_dir", "x.yml", "--views", "1_0"],
            "--views: found '1_0', expected a whole number from 0 on",
        ),
        (build_cli, ["--conf_dir", "x.yml", "--limit", "-1"], "--limit: found '-1', expected a whole number above 0"),
        (inspect_cli, ["store", "--recheck", "0"], "--recheck: found '0', expected a whole number above 0"),
        (
            inspect_cli,
            ["$NO_SUCH/store"],
            "$NO_SUCH/store: the environment variable NO_SUCH is not set; set it, or write",
        ),
        (train_cli, ["--conf_dir", "$NO_SUCH/x.yml"], "the environment variable NO_SUCH is not set"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_with_the_cure(
    command: ModuleType, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_main(command.main, words, capsys)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and said in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("left", [{"RANK": "1"}, {"SLURM_PROCID": "3"}])
def test_what_a_launcher_left_behind_silences_no_command(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)

    def command(_: list[str]) -> int:
        logging.getLogger("ours").info("a word")
        return 0

    assert run_command(command, []) == 0
    assert capsys.readouterr().err == "INFO: a word\n"


def test_a_path_that_a_variable_holds_is_expanded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", f"{tmp_path}/$B")
    given = build_cli._parser("build-shards").read(["--conf_dir", "LRS2-IIANet.yml", "--data_root", "$A/corpus"])
    config = load_config(given.conf_dir, config_overrides(given))
    assert config.datamodule.data_config.data_root == f"{tmp_path}/$B/corpus"


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ("all", ("train", "val", "test")),
        ("valid", ("val",)),
        ("test,train", ("train", "test")),
        ("train,valid", ("train", "val")),
        ("val,val", ("val",)),
    ],
)
def test_splits_are_given_alone_together_or_by_the_keys_of_the_config(text: str, splits: tuple[str, ...]) -> None:
    given = build_cli._parser("build-shards").read(["--conf_dir", "x.yml", "--data_split", text])
    assert given.data_split == splits


@pytest.mark.parametrize("start", ["build_shards", "inspect_shards", "prepare_lists", "prepare_mixtures", "train"])
def test_ctrl_c_while_the_imports_run_ends_a_command_as_later(start: str) -> None:
    """Even where a library would turn the interruption into an error of its own."""
    program = f"""
import os, signal
from iianet import interruption
from iianet_cli import entry
def import_module(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError
interruption.import_module = import_module
signal.signal(signal.SIGINT, signal.default_int_handler)
entry.{start}()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_the_handler_of_ctrl_c_is_put_back(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        monkeypatch.setattr(interruption, "import_module", lambda _: SimpleNamespace(main=lambda: None))
        entry.build_shards()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "command",
    [
        "shardwriter.build_cli",
        "shardwriter.inspect_cli",
        "shardwriter.prepare_lists_cli",
        "shardwriter.prepare_mixtures_cli",
        "iianet_cli.train_cli",
    ],
)
def test_ctrl_c_while_the_imports_run_ends_a_command_that_python_starts(command: str, tmp_path: Path) -> None:
    """`python -m` is the way of a clone that is not installed."""
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    program = f"""
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(tmp_path)!r})
runpy.run_module({command!r}, run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_commands_start_before_what_takes_seconds_is_imported() -> None:
    program = "import sys, iianet_cli.entry; sys.exit(bool({'torch', 'numpy', 'pyarrow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name.partition(":")[0] for name in scripts.values()} == {"iianet_cli.entry"}
    assert all(hasattr(entry, name.partition(":")[2]) for name in scripts.values())
