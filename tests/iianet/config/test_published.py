"""The published configs are found from any folder; a file of the user's own wins."""

import logging
from pathlib import Path

import pytest

from iianet.config import published
from iianet.config.document import read_document
from iianet.config.published import find_config, published_configs
from iianet.config.schema import load_config
from iianet.errors import ConfigError

NAMES = ["LRS2-IIANet.yml", "LRS3-IIANet.yml", "Vox2-IIANet.yml"]
OWN = "datamodule: {data_config: {train_dir: tr, valid_dir: cv, test_dir: tt}}\nexp: {exp_name: own}\n"


pytestmark = pytest.mark.usefixtures("here")


def test_the_published_configs_are_those_of_the_repository() -> None:
    configs = Path(__file__).parents[3] / "configs"
    assert list(published_configs()) == NAMES
    assert {path.resolve() for path in published_configs().values()} == {configs / name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "configs/", "./configs/"])
def test_a_published_config_is_found_from_any_folder_and_named(
    folder: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert load_config(folder + name).exp.exp_name == name.removesuffix(".yml")
    (line,) = caplog.messages
    assert f"{name}: no such file; using the published config {published_configs()[name]}" in line


@pytest.mark.parametrize("path", ["LRS2-IIANet.yml", "configs/LRS2-IIANet.yml"])
def test_an_own_file_of_that_name_wins(path: str, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / path).parent.mkdir(exist_ok=True)
    (here / path).write_text(OWN)
    with caplog.at_level(logging.INFO):
        assert load_config(path).exp.exp_name == "own"
    assert not caplog.messages


def test_an_own_file_that_cannot_be_read_is_not_replaced(here: Path) -> None:
    (here / NAMES[0]).symlink_to(here / "gone.yml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(NAMES[0])


@pytest.mark.parametrize("path", ["other/LRS2-IIANet.yml", "{here}/configs/LRS2-IIANet.yml", "toy.yml", "LRS1.yml"])
def test_other_missing_files_are_errors_that_name_the_published_ones(path: str, here: Path) -> None:
    path = path.format(here=here)
    assert find_config(Path(path)) == Path(path)
    with pytest.raises(ConfigError, match=f"no such file.*{', '.join(NAMES)}"):
        load_config(path)


def test_a_name_that_is_almost_that_of_a_published_config_names_it(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"LRS9.yml: no such file; did you mean LRS[23]-IIANet.yml\?"):
        load_config("LRS9.yml")
    (here / "configs").mkdir()
    with pytest.raises(ConfigError, match=r"Vox2.yml: no such file; did you mean Vox2-IIANet.yml\?"):
        load_config("configs/Vox2.yml")


def test_a_folder_is_no_config_and_what_it_holds_is_listed(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "own.yml").write_text(OWN)
    with pytest.raises(ConfigError, match=r"mine: cannot be read as a config: .*regular file; .*mine holds own.yml"):
        load_config("mine")


def test_an_installation_without_them_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a folder named configs taken for ours that lies beside an installed package."""
    (here / "lib" / "configs").mkdir(parents=True)
    (here / "lib" / "configs" / NAMES[0]).write_text(OWN)
    monkeypatch.setattr(published, "__file__", str(here / "lib" / "iianet" / "config" / "published.py"))
    with pytest.raises(ConfigError, match="no published config: they are missing from this installation"):
        read_document(find_config(Path(NAMES[0])))
