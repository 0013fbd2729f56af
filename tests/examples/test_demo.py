"""make demo, whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_and_leaves_what_it_names(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, DEMO], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = Path("demo/checkpoint/toy")
    pictures = (Path("demo/store.png"), results / "loss_curves.png", Path("demo/figures/si_snri.png"))
    for path in (Path("demo/store"), results / "best_model.pth", *pictures, Path("demo/figures/examples")):
        assert (tmp_path / path).exists()
        assert str(path) in done.stdout
    assert "mouths/spk05_u0.npz: not a complete npz" in done.stdout
    improvement = json.loads((tmp_path / "demo/figures/summary.json").read_text())["figures"]["si_snri"]
    assert improvement["mean"] >= 5.0
    assert f"SI-SNRi on the test split: {improvement['mean']:.2f} dB" in done.stdout
    assert len(list((tmp_path / "demo/figures/examples").glob("*/estimate.wav"))) == 6
