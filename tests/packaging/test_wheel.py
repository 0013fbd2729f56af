"""An installation finds all of its own, and nothing else, in folders that hold what users have in theirs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from iianet.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("iianet", "iianet_cli", "loaders", "shardwriter")
SOURCES = (*PACKAGES, "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
COMMANDS = (
    "build-shards",
    "inspect-shards",
    "prepare-lists",
    "prepare-mixtures",
    "train-iianet",
    "evaluate-iianet",
    "separate-iianet",
    "export-iianet",
)
TRAP = "raise SystemExit('a file of the working directory was imported: ' + __file__)\n"
SCRIPT = """
import subprocess, sys
import numpy as np
import iianet, iianet_cli, loaders, shardwriter
from iianet.command_line import own_environment
from iianet_cli.train_cli import OWN_COMMAND
from loaders import ShardedEmbeddings
from shardwriter import write_store
from torch.utils.data import DataLoader

if __name__ == "__main__":
    mine = [(f"clip{number}", np.full((4, 5), number, np.float32)) for number in range(6)]
    write_store("my-store", ((key, embedding, {}) for key, embedding in mine), split="train")
    dataset = ShardedEmbeddings("my-store", split="train", batch_size=4)
    read = {}
    for batch in DataLoader(dataset, batch_size=None, num_workers=1):
        read.update(zip(batch.keys, batch.embedding, strict=True))
    assert sorted(read) == [key for key, _ in mine]
    assert all(np.array_equal(np.asarray(read[key]), embedding) for key, embedding in mine)
    assert subprocess.run([*OWN_COMMAND, "--version"], env=own_environment()).returncode == 0
    for package in (iianet, iianet_cli, loaders, shardwriter):
        print(package.__file__)
"""
"""A user's own: embeddings into a store and back, as the README has it."""


def run(words: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without what leads Python to this clone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240)


def succeed(words: list[str | Path], folder: Path) -> str:
    """Output of a command that must end well."""
    done = run(words, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_sources(folder: Path) -> Path:
    """Copy what is built, so that nothing of an earlier build gets into it and nothing is left in the clone."""
    folder.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with this wheel, and with the packages of the running one but not its editable project.

    The running site-packages are named in a .pth file, and .pth files there are not read, which an editable project
    needs. They come after the new environment's own, and only after pip is done, which would else find the project.

    Returns:
        The environment's folder of commands.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    succeed([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    running = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "running.pth").write_text("\n".join(running) + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    build += ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    succeed([*build, copy_sources(folder / "sources")], folder)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(folder / "sources")
    return install(wheel, folder / "environment")


@pytest.fixture(params=["packages", "plain folders"])
def here(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's folder, whose configs/ and shared/ are Python packages or not."""
    return make_users_folder(tmp_path, request.param == "packages")


def make_users_folder(folder: Path, with_packages: bool) -> Path:
    """Make a folder with configs/, shared/, utils.py and train.py, none of which is for us to import."""
    names = ["utils.py", "train.py", "configs/settings.py", "shared/settings.py"]
    names += ["configs/__init__.py", "shared/__init__.py"] if with_packages else []
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TRAP)
    return folder


def assert_reaches_the_published_config(done: subprocess.CompletedProcess[str], name: str, home: Path) -> None:
    """Its file in `home` was read, and what is missing is the corpus that it names."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"using the published config {home}/" in done.stderr, done.stderr
    assert f"DataPreProcess/{name}/" in done.stdout + done.stderr


def test_each_command_starts(installed: Path, here: Path) -> None:
    for command in COMMANDS:
        assert f"usage: {command} " in succeed([installed / command, "--help"], here)
        assert succeed([installed / command, "--version"], here) == f"{command} {__version__}\n"


def test_modules_start_alone_and_by_torchrun(installed: Path, here: Path) -> None:
    python = installed / "python"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    for start in ([], torchrun):
        assert "usage: build-shards " in succeed([python, *start, "-m", "shardwriter.build_cli", "--help"], here)


def test_commands_find_the_published_configs(installed: Path, here: Path) -> None:
    home = installed.parent
    weights = ["--set", "videonet.videonet_config.pretrain=null"]
    check = run([installed / "build-shards", "--conf_dir", "LRS2-IIANet.yml", "--shards", "st", "--check"], here)
    assert_reaches_the_published_config(check, "LRS2", home)
    train = run([installed / "train-iianet", "--conf_dir", "configs/LRS3-IIANet.yml", *weights], here)
    assert_reaches_the_published_config(train, "LRS3", home)


def test_a_users_script_writes_and_reads_a_store(installed: Path, here: Path) -> None:
    """And all of ours comes from the wheel; inspect-shards compares the store with a published config."""
    (here / "script.py").write_text(SCRIPT)
    printed = succeed([installed / "python", "script.py"], here).splitlines()
    assert printed[0] == f"train-iianet {__version__}"
    (site_packages,) = installed.parent.glob("lib/python*/site-packages")
    assert printed[1:] == [str(site_packages / package / "__init__.py") for package in PACKAGES]
    assert all((site_packages / package / "py.typed").is_file() for package in PACKAGES)
    against = run([installed / "inspect-shards", "my-store", "--against", "Vox2-IIANet.yml"], here)
    assert_reaches_the_published_config(against, "Vox2", installed.parent)


def test_an_editable_installation_reads_the_clones_configs(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    make_users_folder(here, with_packages=True)
    clone = copy_sources(tmp_path / "clone")
    build = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    succeed([sys.executable, "-c", build, tmp_path], clone)
    (wheel,) = tmp_path.glob("*.whl")
    commands = install(wheel, tmp_path / "environment")
    done = run([commands / "build-shards", "--conf_dir", "LRS2-IIANet.yml", "--shards", "st", "--check"], here)
    assert_reaches_the_published_config(done, "LRS2", clone)
