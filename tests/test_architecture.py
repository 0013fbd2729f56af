"""Imports run one way: iianet <- shardwriter <- loaders <- iianet_cli <- train.py; and what a file of ours may hold."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("iianet", "shardwriter", "loaders", "iianet_cli", "train")
"""Each imports only those before it."""
MOST_FILES = 15
MOST_LINES = 400


def ours() -> Iterator[Path]:
    """Every Python file of our packages, and train.py."""
    for layer in LAYERS[:-1]:
        found = sorted((ROOT / layer).rglob("*.py"))
        assert found, f"no files below {layer}/: this test would check nothing"
        yield from found
    yield ROOT / "train.py"


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, and what it takes from packages, which may be modules too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_imports_run_one_way() -> None:
    for path in ours():
        own = package_of(module_of(path))
        allowed = {*LAYERS[: LAYERS.index(own) + 1]}
        known = {package_of(name) for name in imported(path)} & {*LAYERS, "examples", "benchmarks", "tests", "helpers"}
        assert known <= allowed, f"{path.relative_to(ROOT)} imports {known - allowed}"


@pytest.mark.parametrize("module", ["shardwriter.format.names", "shardwriter"])
def test_the_format_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_only_the_checkpoint_module_knows_published_parameter_names() -> None:
    for path in ours():
        if path.name != "checkpoint.py":
            assert "frontend3D" not in path.read_text(encoding="utf-8"), path


def test_no_file_unpickles_data() -> None:
    for path in ours():
        text = path.read_text(encoding="utf-8")
        for unsafe in ("allow_pickle=True", "weights_only=False)"):
            assert unsafe not in text, path
        assert text.count("np.load(") == text.count("allow_pickle=False") - text.count("write_array("), path
