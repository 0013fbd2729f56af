"""The whole way on a made corpus: build shards, look into them, train from them, evaluate. Three minutes on a CPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.path.relpath(Path(__file__).parent.parent))
CONFIG = str(HOME / "configs" / "toy.yml")
DEMO = Path("demo")
CORPUS = DEMO / "corpus"
STORE = DEMO / "store"
PICTURE = DEMO / "store.png"
FIGURES = DEMO / "figures"
RESULTS = DEMO / "checkpoint" / "toy"
SOME_FAILED = 3


def main() -> None:
    """Run the steps of the README one after the other."""
    started = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)  # of an earlier demo
    run(
        "A toy corpus: two made voices in each mixture, mouths that open with them",
        str(HOME / "examples" / "toy_corpus.py"),
        *(str(CORPUS), "--utterances", "200"),
    )
    build = ("-m", "shardwriter.build_cli", "--conf_dir", CONFIG, "--shards", str(STORE))
    code = run("Encode every mouth once, into tar shards", *build, allowed=(0, SOME_FAILED))
    if code == SOME_FAILED:
        print("\n(One npz of the toy corpus is broken on purpose: the build lists it, continues, and exits with 3.)")
    run("Look into the store", "-m", "shardwriter.inspect_cli", str(STORE), "--plot", str(PICTURE))
    train = (str(HOME / "train.py"), "--conf_dir", CONFIG, "--shards", str(STORE), "--exp_dir", str(DEMO))
    run("Train from the store", *train)
    best = str(RESULTS / "best_model.pth")
    chosen = ("--checkpoint", best, "--segment", "full", "--save", "2", "--out", str(FIGURES))
    run(
        "Evaluate it on voices that it has never heard",
        *(str(HOME / "evaluate.py"), "--conf_dir", CONFIG, "--shards", str(STORE), *chosen),
    )
    improvement = json.loads((FIGURES / "summary.json").read_text(encoding="utf-8"))["figures"]["si_snri"]["mean"]
    print(f"\nDone in {time.monotonic() - started:.0f} s. SI-SNRi on the test split: {improvement:.2f} dB.")
    print(f"  shards      {STORE}\n  checkpoint  {best}")
    print(f"  figures     {FIGURES / 'metrics.csv'}")
    print(f"  pictures    {PICTURE}, {RESULTS / 'loss_curves.png'}, {FIGURES / 'si_snri.png'}")
    print(f"  to listen   {FIGURES / 'examples'}: mixture, target and estimate of the best, worst and median examples")


def run(title: str, *words: str, allowed: tuple[int, ...] = (0,)) -> int:
    """Show a command and run it; stop with its exit code where that is not one of `allowed`."""
    print(f"\n== {title}\n$ python {' '.join(words)}\n", flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code not in allowed:
        sys.exit(code)
    return code


if __name__ == "__main__":
    main()
