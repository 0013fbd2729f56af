"""make demo, whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_and_leaves_what_it_names(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, DEMO], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = Path("Experiments/checkpoint/toy")
    for path in (Path("demo/store"), results / "best_model.pth", Path("demo/store.png"), results / "loss_curves.png"):
        assert (tmp_path / path).exists()
        assert str(path) in done.stdout
    assert "mouths/spk05_u0.npz: not a complete npz" in done.stdout
    history = torch.load(tmp_path / results / "last.ckpt", weights_only=True)["history"]
    assert history[-1]["val_loss"] < history[0]["val_loss"] - 1  # dB
