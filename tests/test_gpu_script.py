"""The script that measures what only a GPU can tell, run in small where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import ROOT

SECTIONS = ("Parity", "A training step", "Loading", "Building", "Training")


@pytest.mark.slow
def test_the_script_for_a_gpu_measures_everything_in_small_without_one(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--device", "cpu"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "gpu.md")], capture_output=True, text=True, timeout=290, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    parts = (tmp_path / "gpu.md").read_text().split("\n## ")
    assert [part.partition("\n")[0] for part in parts[1:]] == list(SECTIONS)
    assert all("|" in part for part in parts[1:]), "each section has a table"
    assert "failed" not in (tmp_path / "gpu.md").read_text().lower()
