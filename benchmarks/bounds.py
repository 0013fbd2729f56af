"""Do the bounds of pyproject.toml hold? The tests with the lowest versions that it allows, and with the newest.

    python benchmarks/bounds.py [--python python3.11 ...] [--set lowest newest] [--output FILE.md] [PYTEST WORDS ...]

For each interpreter that is there (by default python3.11 to python3.14) and each set, an environment is made below
build/bounds, and the quick tests are run in it, or what the last words say. `--index URL` is a further index of
packages, such as https://download.pytorch.org/whl/cpu, from where torch comes without CUDA. The table at the end says
what ran.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTERPRETERS = ("python3.11", "python3.12", "python3.13", "python3.14")
PINNED = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=|==)([\w.]+)")
SHOWN = ("torch", "numpy", "pyarrow", "pydantic", "pytorch-lightning", "obstore")


def main() -> None:
    """Make the environments, run the tests, print the table; exits with 1 where tests failed or nothing was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", nargs="+", default=INTERPRETERS)
    parser.add_argument("--set", nargs="+", choices=["lowest", "newest"], default=["lowest", "newest"], dest="sets")
    parser.add_argument("--index", help="a further index of packages")
    parser.add_argument("--output", type=Path)
    arguments, words = parser.parse_known_args()
    rows = [
        _try(python, kind, arguments.index, words or ["-m", "not slow"])
        for python in arguments.python
        for kind in arguments.sets
    ]
    lines = ["| Python | set | versions | tests |", "| --- | --- | --- | --- |"]
    text = "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
    print(text)
    if arguments.output:
        arguments.output.write_text(f"# Bounds\n\n{date.today().isoformat()}\n\n{text}\n", encoding="utf-8")
    ran = [row for row in rows if " passed" in row[-1]]
    sys.exit(0 if ran and not any("failed" in row[-1] or "error" in row[-1] for row in rows) else 1)


def lowest(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """The lowest version of each dependency that the project allows."""
    dependencies = tomllib.loads(project.read_text())["project"]["dependencies"]
    found = {word: PINNED.match(word) for word in dependencies}
    if unbounded := [word for word, match in found.items() if match is None]:
        sys.exit(f"{project}: {', '.join(unbounded)} have no lowest version")
    return [f"{match[1]}=={match[2]}" for match in found.values() if match]


def _try(python: str, kind: str, index: str | None, words: Sequence[str]) -> tuple[str, str, str, str]:
    if shutil.which(python) is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        return python, kind, "", "not tried: no such interpreter"
    folder = ROOT / "build" / "bounds" / f"{python}-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    own = str(folder / "bin" / "python")
    extra = ["--extra-index-url", index] if index else []
    pins = lowest() if kind == "lowest" else ["--upgrade"]
    install = [own, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *extra, "setuptools>=77", *pins]
    installed = subprocess.run([*install, f"{ROOT}[dev]"], capture_output=True, text=True)
    if installed.returncode:
        return python, kind, "", f"error: cannot be installed: {installed.stderr.strip().splitlines()[-1]}"
    listed = subprocess.run([own, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True)
    versions = {row["name"].lower(): row["version"] for row in json.loads(listed.stdout)}
    command = [own, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider", *words]
    tests = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (folder / "tests.txt").write_text(tests.stdout + tests.stderr)
    last = (tests.stdout.strip().splitlines() or ["error: nothing was said"])[-1].strip("= ")
    return python, kind, ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions), last


if __name__ == "__main__":
    main()
