"""Names that a terminal would obey, from a corpus into a store and back, reach no terminal, log or JSON as they are."""

import json
import os
from pathlib import Path

import pytest
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus
from helpers.runs import run

from shardwriter import build_cli, inspect_cli

NAMES = ["red\x1b[31m", "turned\u202eleft", "c1\x9b7m"]
OBEYED = ("\x1b", "\u202e", "\x9b")


@pytest.fixture
def hostile(here: Path) -> Corpus:
    corpus = make_corpus(here / "corpus", {"train": dict.fromkeys(NAMES, 5), "val": 2, "test": 2})
    corpus.mouth(NAMES[0]).write_bytes(b"no npz")
    return corpus


def assert_harmless(outcome: Outcome, *codes: int) -> None:
    assert outcome.code in codes, outcome
    for text in (outcome.out, outcome.err):
        assert not [character for character in OBEYED if character in text]


def test_no_command_writes_what_a_terminal_would_obey(
    hostile: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = run_main(build_cli.main, ["--conf_dir", hostile.config_file, "--shards", "st", "--device", "cpu"], capsys)
    assert_harmless(built, 3)
    assert r"red\x1b[31m" in built.out + built.err
    (log,) = (here / "st/logs").iterdir()
    assert r"red\x1b[31m" in log.read_text() and "\x1b" not in log.read_text()
    checked = run_main(build_cli.main, ["--conf_dir", hostile.config_file, "--shards", "st", "--check"], capsys)
    assert_harmless(checked, 0, 2)
    shown = run_main(inspect_cli.main, ["st", "--key", NAMES[1]], capsys)
    assert_harmless(shown, 0)
    assert r"turned\u202eleft" in shown.out
    listed = run_main(inspect_cli.main, ["st", "--against", hostile.config_file, "--json"], capsys)
    assert_harmless(listed, 0, 1)
    json.loads(listed.out)
    trained, _ = run(hostile, "--shards", "st")
    assert trained == 0
    said = "".join(capsys.readouterr())
    assert not [character for character in OBEYED if character in said]


def test_a_name_that_is_not_utf_8_is_shown_as_its_bytes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.fsdecode(b"st\xff")
    outcome = run_main(inspect_cli.main, [folder], capsys)
    assert outcome.code == 2
    assert r"st\udcff" in outcome.err
