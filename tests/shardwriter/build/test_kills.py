"""A build that is killed again and again ends with the store of one that was not."""

import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[3] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_builds_end_with_equal_stores() -> None:
    done = subprocess.run([sys.executable, KILLS, "--kills", "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert done.stdout.startswith("20 kills, ")
