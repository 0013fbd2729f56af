"""Which errors of ours do tests produce? Each place that makes one is noted, and those that none made are listed.

    pytest --raised FILE      appends the place of each error, and says at the end which places made none

Forked processes are seen, too; those that a test starts by a command line are not.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from iianet import errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("iianet", "shardwriter", "loaders", "iianet_cli")


def note_errors(file: Path) -> None:
    """From now on, append the place of each error that this process, or a fork of it, makes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()

    def __init__(self: Exception, *arguments: Any) -> None:
        Exception.__init__(self, *arguments)
        frame = sys._getframe(1)
        while frame.f_code.co_filename == errors.__file__ and frame.f_back:  # of an error that makes its own message
            frame = frame.f_back
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if place not in seen:
            seen.add(place)
            with file.open("a") as stream:
                stream.write(f"{place}\n")

    errors.FeatureStoreError.__init__ = __init__  # type: ignore[method-assign]


def never_made(file: Path) -> list[str]:
    """Places in our packages that make an error, and made none of those noted."""
    noted = set(file.read_text().split("\n")) if file.exists() else set()
    return [
        f"{path.relative_to(ROOT)}:{first}"
        for path, first, last in places()
        if not any(f"{path}:{line}" in noted for line in range(first, last + 1))
    ]


def places() -> Iterator[tuple[Path, int, int]]:
    """Each call in our packages that makes an error of the tree: its file, first line and last line."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    known = set(_error_names(trees.values()))
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                yield path, node.lineno, node.end_lineno or node.lineno


def _error_names(trees: Iterable[ast.Module]) -> Iterator[str]:
    """Names of our errors, and of what is derived from them."""
    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in classes:
        if any(isinstance(base, ast.Name) and base.id in known for base in node.bases):
            known.add(node.name)
    return iter(known)
