"""What the commands share."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from helpers.commands import run_main

import iianet
import iianet_cli
import loaders
import shardwriter
from iianet import version
from iianet.command_line import own_environment
from iianet_cli import train_cli
from shardwriter import build_cli, inspect_cli

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
    [(build_cli, "build-shards"), (inspect_cli, "inspect-shards"), (train_cli, "train-iianet")],
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
