"""What the commands share."""

import subprocess
import sys
from pathlib import Path

import pytest

import iianet
from iianet.command_line import own_environment

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
