"""crop_rows in training: raw mouths, a store and its fallback see the same rows, or training does not start."""

from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.runs import build_store, losses, run

from iianet.encoder.source import EncoderSource

ROWS = "videonet.videonet_config.crop_rows"
FIFTY = f"{ROWS}=50"
STILL = ("--set", "datamodule.data_config.augment_mouth=false")


@pytest.mark.slow
def test_raw_mouths_a_store_and_what_it_lacks_give_equal_losses(corpus: Corpus, here: Path) -> None:
    assert run(corpus, *STILL)[0] == 0
    whole = losses()
    assert run(corpus, *STILL, FIFTY)[0] == 0
    raw = losses()
    assert raw != [pytest.approx(row, rel=1e-4) for row in whole]
    for limit in (None, 4):
        store = build_store(corpus, f"fifty-{limit}", limit, FIFTY)
        assert run(corpus, "--shards", store, *STILL, FIFTY)[0] == 0
        assert losses() == [pytest.approx(row, rel=1e-4) for row in raw]


@pytest.mark.parametrize(("made", "asked"), [(50, 88), (88, 50)])
def test_a_store_of_other_rows_is_refused_with_both_and_the_cure(
    corpus: Corpus,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    made: int,
    asked: int,
) -> None:
    store = build_store(corpus, f"made-{made}", 1, f"{ROWS}={made}")
    monkeypatch.setattr(EncoderSource, "load", lambda *_: pytest.fail("the encoder was loaded"))
    assert run(corpus, "--shards", store, "--set", f"{ROWS}={asked}")[0] == 2
    said = capsys.readouterr().err
    assert f"(crop_rows: {asked} here, {made} there)" in said
    assert f"--set {ROWS}={made}" in said
    assert "Traceback" not in said
    assert not list(here.iterdir())


def test_missing_utterances_are_added_with_the_rows_of_the_config(corpus: Corpus, here: Path) -> None:
    store = build_store(corpus, "to-complete", 1, FIFTY)
    assert run(corpus, "--shards", store, "--build_missing", *STILL, FIFTY)[0] == 0
    added = losses()
    assert run(corpus, *STILL, FIFTY)[0] == 0
    assert added == [pytest.approx(row, rel=1e-4) for row in losses()]
