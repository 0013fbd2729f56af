"""The Python examples of the READMEs: they run, and run again, under every way to start worker processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MINE = """
import numpy as np
mine = [(f"speaker/utt.{n}", np.random.rand(8, 5).astype("float16")) for n in range(40)]
"""
EXAMPLE = """
import multiprocessing
import sys

import numpy as np

from loaders import EmbeddingLoader, ShardedEmbeddings
from shardwriter import open_store, write_store


def main() -> None:
    mine = ((f"speaker/utt.{n}", np.random.rand(8, 5).astype("float16"), {"label": n}) for n in range(40))
    write_store("my-store", mine, split="train")
    loader = EmbeddingLoader(ShardedEmbeddings("my-store", split="train", batch_size=32), num_workers=2)
    for epoch in range(2):
        for batch in loader:
            for key, embedding, metadata in zip(batch.keys, batch.embedding, batch.metadata):
                assert (open_store("my-store")[key].embedding == embedding.numpy()).all()
                print(epoch, key, metadata["label"])


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    main()
"""


def run(folder: Path, code: str, *words: str) -> str:
    (folder / "example.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "example.py", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("readme", ["README.md", pytest.param("README.zh-CN.md", marks=pytest.mark.slow)])
def test_the_example_of_the_readme_runs_and_runs_again(readme: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for code in blocks:
        for _ in range(2):
            run(tmp_path, MINE + code)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=SLOW), pytest.param("forkserver", marks=SLOW)])
def test_workers_may_be_started_in_any_way(method: str, tmp_path: Path) -> None:
    for _ in range(2):
        lines = run(tmp_path, EXAMPLE, method).splitlines()
        assert sorted(lines) == sorted(f"{epoch} speaker/utt.{n} {n}" for epoch in range(2) for n in range(40))
        assert lines[:40] != [line.replace("1 ", "0 ", 1) for line in lines[40:]]
