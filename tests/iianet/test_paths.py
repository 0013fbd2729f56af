from collections.abc import Callable
from pathlib import Path

import pytest

from iianet.errors import ConfigError
from iianet.paths import expand_path, expand_word


def test_home_and_variables_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert expand_path("~/store") == tmp_path / "store"
    assert expand_path("$SCRATCH/store") == Path("/scratch/store")
    assert expand_path("${SCRATCH}x/store") == Path("/scratchx/store")
    assert expand_path("a~b") == Path("a~b")


def test_what_exists_keeps_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "$five").mkdir()
    (tmp_path / "~").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expand_path("$five") == Path("$five")
    assert expand_path("~") == Path("~")


def test_a_variable_without_a_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=r"\$NOWHERE/store: the environment variable NOWHERE is not set; set it"):
        expand_path("$NOWHERE/store")


def test_an_unknown_user_is_an_error_of_ours() -> None:
    with pytest.raises(ConfigError, match="~nobody-of-that-name/store: the folder that ~ stands for is not known"):
        expand_path("~nobody-of-that-name/store")


def test_words_that_are_urls_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_word("s3://bucket/$prefix/~") == "s3://bucket/$prefix/~"
    assert expand_word("pipe:cat ~/x") == "pipe:cat ~/x"
    assert expand_word("~/train-{000000..000003}.tar") == f"{tmp_path}/train-{{000000..000003}}.tar"
    assert expand_word("./store/") == "./store/"


@pytest.mark.parametrize("expand", [expand_path, expand_word])
def test_a_name_that_no_file_can_have_is_refused(expand: Callable[[str], object]) -> None:
    """The system would raise an error of its own wherever it is asked for such a file."""
    with pytest.raises(ConfigError, match=r"^here/x{75}: no file .* 300 bytes; expected at most 255 bytes, "):
        expand(f"here/{'x' * 300}/y")
    with pytest.raises(ConfigError, match=r"a name with a zero byte in it; .* Correct the path$"):
        expand("a\0b")
    assert str(expand("é" * 127)) == "é" * 127
    assert expand_word(f"s3://bucket/{'x' * 300}") == f"s3://bucket/{'x' * 300}"
    pattern = "train-{" + ",".join(f"{number:06d}" for number in range(60)) + "}.tar"
    assert expand_word(pattern) == pattern
