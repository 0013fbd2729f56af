"""Imports run one way: iianet <- shardwriter <- loaders <- iianet_cli <- what starts them; and what a file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("iianet", "shardwriter", "loaders", "iianet_cli")
STARTS = ("train", "separate")
"""Files that start a command from a clone."""
LAYERS = (*PACKAGES, *STARTS)
"""Each imports only those before it."""
STORE = ("format", "storage", "corpus", "store")
"""Rooms of shardwriter that a reader needs."""
ROOMS = {
    "iianet": {
        "encoder": (),
        "separator": (),
        "config": ("encoder",),
        "training": ("config", "encoder", "separator"),
        "comparison": ("config", "encoder", "separator", "training"),
        "inference": ("config", "encoder", "separator"),
    },
    "shardwriter": {
        "format": (),
        "storage": ("format",),
        "corpus": ("format",),
        "prepare": ("format", "corpus"),
        "store": ("format", "storage", "corpus"),
        "encode": STORE,
        "execute": (*STORE, "encode"),
        "build": (*STORE, "encode", "execute"),
        "inspect": (*STORE, "build"),
    },
}
"""Folder of a package -> its other folders that it may import. Files that lie in a package itself may import all."""
READERS = {
    "loaders": STORE,
    "loaders.build_missing": (*STORE, "build", "execute"),
    "iianet_cli": STORE,
    "iianet_cli.stores": (*STORE, "build"),
}
"""Package or module -> rooms of shardwriter that it may import; building is for --build_missing alone."""
MOST_FILES = 15
MOST_LINES = 400


def ours() -> Iterator[Path]:
    """Every Python file of our packages, and those beside them that start commands."""
    for layer in PACKAGES:
        found = sorted((ROOT / layer).rglob("*.py"))
        assert found, f"no files below {layer}/: this test would check nothing"
        yield from found
    yield from (ROOT / f"{start}.py" for start in STARTS)


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


def room_of(module: str) -> tuple[str, str] | None:
    """Package and room of a module; None where it lies in no room."""
    package, room = [*module.split("."), ""][:2]
    return (package, room) if room in ROOMS.get(package, ()) else None


def test_every_folder_is_a_room() -> None:
    for package, rooms in ROOMS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
        assert folders == set(rooms), package


def test_rooms_import_one_way() -> None:
    for path in ours():
        own = module_of(path)
        rooms = {room for module in imported(path) if (room := room_of(module))}
        for package, room in rooms - {room_of(own)}:
            if place := room_of(own):
                allowed = package != place[0] or room in ROOMS[package][place[1]]
            else:
                allowed = package != "shardwriter" or room in READERS.get(
                    own, READERS.get(package_of(own), ROOMS[package])
                )
            assert allowed, f"{path.relative_to(ROOT)} imports {package}.{room}"


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): imported(path) for path in ours()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(modules[module] & modules.keys() - {module}):
                visit(other, (*way, module))
            done.add(module)

    for module in modules:
        visit(module, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_and_files_are_small(package: str) -> None:
    files = [path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__init__.py"]
    for folder in {path.parent for path in files}:
        assert len([path for path in files if path.parent == folder]) <= MOST_FILES, folder
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path


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


def test_all_that_is_printed_goes_through_the_terminal() -> None:
    """What comes out of files may hold what a terminal obeys; `iianet.terminal` escapes it."""
    for path in ours():
        if path.name not in ("terminal.py", "entry.py"):
            text = path.read_text(encoding="utf-8")
            for way in ("print(", "sys.stdout.write(", "sys.stderr.write(", "logging.Formatter("):
                assert not re.search(rf"(?<!\w){re.escape(way)}", text), f"{path}: {way}"


def test_no_file_unpickles_data() -> None:
    for path in ours():
        text = path.read_text(encoding="utf-8")
        for unsafe in ("allow_pickle=True", "weights_only=False)"):
            assert unsafe not in text, path
        assert text.count("np.load(") == text.count("allow_pickle=False") - text.count("write_array("), path
