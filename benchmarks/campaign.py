"""Damage every kind of file in every way we can think of: does a reader ever believe it, hang, or end in a traceback?

    python benchmarks/campaign.py [--cases 100000] [--seed 0] [--processes 2] [--minutes M] [--output FILE.md]
    python benchmarks/campaign.py --seed 0 --case 4711                  one case again, with what it said

Each case damages a file of a small folder (a corpus, stores, a run, tars of others), lets one reader read it, and
undoes the damage. Right is: the same data; our own error, which names the file; or utterances that are left out,
listed and counted. Cases are tried in worker processes, which may take 1.5 GB more than they have at their start, and
60 seconds a case. All failures are written beside the output, one JSON line each.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from helpers.campaign.cases import ALLOWED
from helpers.campaign.runner import Result, Tally, show, tried
from machine import machine
from tqdm import tqdm


def main() -> None:
    """Try the cases and say what came of them; exits with 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, help="end after so long, with the cases that were tried")
    parser.add_argument("--case", type=int, help="try this one alone, and say what it said")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.case is not None:
        arguments.first, arguments.cases, arguments.processes = arguments.case, 1, 1
    tally, end = Tally(), time.monotonic() + 60 * (arguments.minutes or 1e9)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    failures = arguments.output.with_suffix(".jsonl").open("w") if arguments.output else None
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, tqdm(total=arguments.cases, mininterval=5) as bar:
        wanted = (number for number in numbers if time.monotonic() < end)
        for result in tried(Path(folder), arguments.seed, wanted, arguments.processes):
            tally.add(result)
            bar.update()
            bar.set_postfix(failed=tally.failed, ways=len(tally.failures), refresh=False)
            if arguments.case is not None:
                print(f"{result.case}\n{result.outcome.word}: {result.outcome.sign}\n{result.outcome.detail}")
            if failures and result.outcome.word not in ALLOWED:
                failures.write(json.dumps([arguments.seed, *result]) + "\n")
                failures.flush()
    text = show(tally, arguments.seed, lambda result: _again(arguments.seed, result))
    print(text)
    if arguments.output:
        arguments.output.write_text(f"# Campaign\n\n{machine(torch.device('cpu'))}\n\n{text}\n", encoding="utf-8")
    sys.exit(1 if tally.failed else 0)


def _again(seed: int, result: Result) -> str:
    return f"{result.case} (python benchmarks/campaign.py --seed {seed} --case {result.number})"


if __name__ == "__main__":
    main()
