"""Imports run one way: configs <- iianet <- shardwriter <- loaders <- train.py."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("configs", "iianet", "shardwriter", "loaders")
ALLOWED_IN_LOADERS = {
    "shardwriter.format",
    "shardwriter.manifest",
    "shardwriter.columns",
    "shardwriter.catalog",  # what a store holds
    "shardwriter.index",
    "shardwriter.plan",
    "shardwriter.identity",  # whether it was made with the same encoder
    "shardwriter.quantize",  # int8 embeddings
    "shardwriter.embedded_audio",
    "shardwriter.build",  # train.py --build_missing
    "shardwriter.shared_build",
    "shardwriter.shard_urls",  # tars without an index
    "shardwriter.tar_samples",
    "shardwriter.located",
    "shardwriter.recorded",
    "shardwriter.npy",
    "shardwriter.place",  # a folder, or a URL
    "shardwriter.mirror",
}


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_those_before_it(layer: str) -> None:
    later = LAYERS[LAYERS.index(layer) + 1 :]
    for path in (ROOT / layer).glob("*.py"):
        backwards = {name for name in imported(path) if name.split(".")[0] in (*later, "train", "examples")}
        assert not backwards, f"{path.name} imports {backwards}"


def test_loaders_know_only_the_format_of_the_store() -> None:
    for path in (ROOT / "loaders").glob("*.py"):
        foreign = {name for name in imported(path) if name.startswith("shardwriter")} - ALLOWED_IN_LOADERS
        assert not foreign, f"{path.name} imports {foreign}"


def test_only_the_checkpoint_module_knows_published_parameter_names() -> None:
    for path in ROOT.glob("*/*.py"):
        if path.parent.name in LAYERS and path.name != "checkpoint.py":
            assert "frontend3D" not in path.read_text(encoding="utf-8"), path


def test_no_file_unpickles_data() -> None:
    for path in [*ROOT.glob("*/*.py"), ROOT / "train.py"]:
        if path.parent.name in (*LAYERS, ROOT.name):
            text = path.read_text(encoding="utf-8")
            for unsafe in ("allow_pickle=True", "weights_only=False)"):
                assert unsafe not in text, path
            assert text.count("np.load(") == text.count("allow_pickle=False") - text.count("write_array("), path
