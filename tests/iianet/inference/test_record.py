"""The rows of an evaluation survive kills, and never mix with those of another one."""

from pathlib import Path

import pytest

from iianet.errors import ConfigError
from iianet.inference.metrics import ExampleFigures
from iianet.inference.record import EvaluatedRow, EvaluationRecord
from iianet.inference.summary import Summary

FACTS = {"checkpoint": "abc", "split": "test"}
COLUMNS = ("si_snr", "sdr")


def row(number: int, value: float = 1.5, **missing: str) -> EvaluatedRow:
    values = {name: value + number / 3 for name in COLUMNS if name not in missing}
    name = (f"key{number}", f"a, mix {number}.wav", f"target\u00fc{number}.wav")
    return EvaluatedRow(name=name, seconds=2.0, figures=ExampleFigures(values=values, missing=missing))


def test_rows_come_back_bit_by_bit(tmp_path: Path) -> None:
    rows = [row(0), row(1, sdr="the target is silent"), row(2)]
    EvaluationRecord(tmp_path / "out", FACTS, COLUMNS).add(rows)
    again = EvaluationRecord(tmp_path / "out", FACTS, COLUMNS)
    assert again.rows == {each.name: each for each in rows}


def test_a_row_that_a_kill_has_cut_is_made_again(tmp_path: Path) -> None:
    record = EvaluationRecord(tmp_path, FACTS, COLUMNS)
    record.add([row(0), row(1)])
    whole = record.csv.read_bytes()
    for cut in range(1, 40):
        record.csv.write_bytes(whole[:-cut])
        again = EvaluationRecord(tmp_path, FACTS, COLUMNS)
        assert list(again.rows) == [row(0).name]
        again.add([row(1)])
        assert again.csv.read_bytes() == whole


@pytest.mark.parametrize(
    ("facts", "columns", "said"),
    [
        ({**FACTS, "checkpoint": "def"}, COLUMNS, "of which checkpoint is abc; here it is def"),
        ({**FACTS, "segment": "full"}, COLUMNS, "of which segment is None; here it is full"),
        (FACTS, ("si_snr",), "of which columns is si_snr, sdr; here it is si_snr"),
    ],
)
def test_another_evaluation_in_the_folder_is_refused(
    tmp_path: Path, facts: dict[str, str], columns: tuple[str, ...], said: str
) -> None:
    record = EvaluationRecord(tmp_path, FACTS, COLUMNS)
    record.add([row(0)])
    before = record.csv.read_bytes()
    with pytest.raises(ConfigError, match=said + r".*--out DIR"):
        EvaluationRecord(tmp_path, facts, columns)
    assert record.csv.read_bytes() == before


@pytest.mark.parametrize("damage", ["key,mixture\n", "a,b,c,2,1.0,x,\n", "a,b\n"])
def test_a_csv_that_was_edited_wrongly_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    record = EvaluationRecord(tmp_path, FACTS, COLUMNS)
    header = record.csv.read_text()
    record.csv.write_text(damage if damage.startswith("key") else header + damage)
    with pytest.raises(ConfigError, match=r"metrics\.csv: (its columns|a row) .*(anew|delete)"):
        EvaluationRecord(tmp_path, FACTS, COLUMNS)


def test_a_summary_counts_what_has_no_figure_and_never_as_zero() -> None:
    rows = [row(0), row(3), row(6, sdr="the target is silent")]
    found = Summary.of(rows, COLUMNS, examples=5, too_short=["short.wav"], unreadable={"k, m": "gone"})
    assert found.figures["si_snr"] is not None
    assert found.figures["sdr"] is not None
    assert (found.figures["si_snr"].mean, found.figures["si_snr"].median, found.figures["si_snr"].number) == (
        2.5,
        2.5,
        3,
    )
    assert found.figures["si_snr"].std == 1.0
    assert (found.figures["sdr"].mean, found.figures["sdr"].number) == (2.0, 2)
    assert found.no_figure == {"sdr: the target is silent": 1}
    table = found.table()
    for said in ("3 of 5 examples evaluated", "short.wav", "k, m: gone", "1 example without sdr: the target is silent"):
        assert said in table


def test_a_figure_that_no_example_has_is_shown_as_none() -> None:
    found = Summary.of([row(0, sdr="silent")], COLUMNS, examples=1, too_short=[], unreadable={})
    assert found.figures["sdr"] is None
    assert any(line.split()[:2] == ["SDR", "(dB)"] and "-" in line for line in found.table().splitlines())
