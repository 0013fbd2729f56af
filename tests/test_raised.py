"""The list of errors that no test makes is true."""

from pathlib import Path

import pytest
from helpers import raised

from iianet.errors import ConfigError, StoreError


def test_a_place_that_made_an_error_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "iianet" / "thing.py"
    source.parent.mkdir()
    source.write_text(
        "from iianet.errors import ConfigError, StoreError, UnreadableError\n"
        "class LostError(StoreError):\n    pass\n"
        "def one():\n    raise ConfigError(\n        'a'\n    )\n"
        "def other():\n    raise LostError('b')\n"
        "def third():\n    return StoreError('c')\n"
        "def fourth():\n    return UnreadableError('d', OSError(5, 'e'))\n"
    )
    monkeypatch.setattr(raised, "ROOT", tmp_path)
    monkeypatch.setattr(raised.errors.FeatureStoreError, "__init__", Exception.__init__)
    noted = tmp_path / "noted.txt"
    assert raised.never_made(noted) == [f"iianet/thing.py:{line}" for line in (5, 9, 11, 13)]
    raised.note_errors(noted)
    module: dict[str, object] = {}
    exec(compile(source.read_text(), source, "exec"), module)
    with pytest.raises(ConfigError):
        module["one"]()  # type: ignore[operator]
    with pytest.raises(StoreError):
        module["other"]()  # type: ignore[operator]
    assert module["fourth"]() is not None  # type: ignore[operator]
    assert raised.never_made(noted) == ["iianet/thing.py:11"]
