"""Stores of further members when their corpus goes on, and several of them as one: what is read stays right."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
import torch
from helpers.batches import batches, data
from helpers.builds import build_store, change_mouth, interrupt_build
from helpers.corpus import FOLDERS, SAMPLE_RATE, Corpus, edit_lists, make_corpus

from iianet.batch import Batch
from iianet.errors import ManifestError, StoreError
from iianet.regular_file import open_regular

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")
COUNTS = {"train": 8, "val": 3, "test": 0}
NUM_SAMPLES = 6 * 640


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", COUNTS, frames=(6, 7), num_samples=NUM_SAMPLES)


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """The same rows with the same audio, to the last bit."""
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.mixture, other.mixture) and torch.equal(one.target, other.target)
        assert not one.dropped


def rewrite_lists(corpus: Corpus, split: str, rows: slice) -> None:
    """Keep some mixtures of a split, or put them in another order."""
    edit_lists(corpus, split, lambda listed: listed[rows])


def make_lists(corpus: Corpus) -> None:
    """Write the lists of the whole corpus again."""
    make_corpus(corpus.root, COUNTS, frames=(6, 7), num_samples=NUM_SAMPLES)


def count_wavs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the wavs that are opened from now on."""
    opened: list[str] = []

    def note(path: Path) -> int:
        opened.append(path.name)
        return open_regular(path)

    monkeypatch.setattr("shardwriter.corpus.wavs.open_regular", note)
    return opened


def test_stored_audio_is_found_whatever_order_the_lists_have_now(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_store(corpus, tmp_path / "store", audio="embed", splits=SPLITS)
    rewrite_lists(corpus, "train", slice(None, None, -1))
    expected = batches(data(corpus, None))
    opened = count_wavs(monkeypatch)
    assert_same(batches(data(corpus, tmp_path / "store")), expected)
    assert not opened


def test_mixtures_that_came_after_the_build_are_read_by_path(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite_lists(corpus, "train", slice(1, 5))
    build_store(corpus, tmp_path / "store", audio="embed", splits=SPLITS)
    make_lists(corpus)
    expected = batches(data(corpus, None), epochs=1)
    opened = count_wavs(monkeypatch)
    assert_same(batches(data(corpus, tmp_path / "store"), epochs=1), expected)
    stored = {Path(row[0]).name for row in corpus.rows("train", "mix")[1:5]}
    assert opened and not stored & set(opened)


@pytest.mark.parametrize("finished", [True, False])
def test_audio_of_an_utterance_stored_again_is_found_by_its_newest_list(
    corpus: Corpus, tmp_path: Path, finished: bool
) -> None:
    """Its samples begin elsewhere in the newer audio.npy; where that is not written yet, the older one counts."""
    rewrite_lists(corpus, "train", slice(1, 5))
    build_store(corpus, tmp_path / "store", audio="embed", splits=SPLITS)
    make_lists(corpus)
    for name in corpus.names["train"]:
        change_mouth(corpus.mouth(name))
    if finished:
        build_store(corpus, tmp_path / "store", splits=SPLITS)
    else:
        interrupt_build(corpus, tmp_path / "store", packs=2, splits=SPLITS)
    assert_same(batches(data(corpus, tmp_path / "store")), batches(data(corpus, None)))


def test_utterance_whose_audio_could_not_be_stored_is_encoded_and_its_mended_wav_read(
    corpus: Corpus, tmp_path: Path
) -> None:
    wav = corpus.root / corpus.rows("train", "mix")[2][0]
    content = wav.read_bytes()
    wav.write_bytes(b"RIFF")
    assert len(build_store(corpus, tmp_path / "store", audio="embed", splits=SPLITS).failed["train"]) == 2
    wav.write_bytes(content)
    found = batches(data(corpus, tmp_path / "store"))
    assert any(batch.mouth_lengths for batch in found) and any(not batch.mouth_lengths for batch in found)
    assert_same(found, batches(data(corpus, None)))


def test_utterances_may_hold_audio_of_different_kinds(corpus: Corpus, tmp_path: Path) -> None:
    kinds = ("PCM_16", "PCM_24", "PCM_32")
    for number, row in enumerate(corpus.rows("train", "s1") + corpus.rows("train", "mix")):
        samples, _ = soundfile.read(corpus.root / row[0])
        soundfile.write(corpus.root / row[0], samples / 3, SAMPLE_RATE, subtype=kinds[number % 3])
    build_store(corpus, tmp_path / "store", audio="embed", splits=SPLITS)
    expected = batches(data(corpus, None))
    shutil.rmtree(corpus.root / "audio")
    assert_same(batches(data(corpus, tmp_path / "store")), expected)


def halves(corpus: Corpus, folder: Path, *overrides: str) -> tuple[Path, Path]:
    """Two stores that share a corpus: mixtures of utterances 0 to 3, and with all of val those of 4 to 7."""
    stores = folder / "first", folder / "second"
    for store, rows, splits in zip(stores, (slice(0, 3), slice(4, 7)), (("train",), SPLITS), strict=True):
        rewrite_lists(corpus, "train", rows)
        build_store(corpus, store, *overrides, splits=splits)
        make_lists(corpus)
    return stores


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_two_stores_are_read_as_their_union(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    settings = ("shardwriter.views=1", f"shardwriter.dtype={dtype}", "shardwriter.audio=embed")
    first, second = halves(corpus, tmp_path, *settings)
    build_store(corpus, tmp_path / "whole", *settings, splits=SPLITS)
    expected = batches(data(corpus, tmp_path / "whole"))
    opened = count_wavs(monkeypatch)
    found = batches(data(corpus, first, others=(second,)))
    assert_same(found, expected)
    assert not any(batch.mouth_lengths for batch in found)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.embedding, other.embedding)
    across = {Path(corpus.rows("train", "mix")[3][0]).name}  # the one mixture that neither was built from
    assert {name for name in opened if name.startswith(FOLDERS["train"])} == across


def test_audio_is_taken_from_the_store_that_holds_the_utterance_and_not_from_one_where_it_failed(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Both have utterance 3, each with the audio of another mixture; in one of them its npz was broken."""
    expected = batches(data(corpus, None))
    first, second = tmp_path / "first", tmp_path / "second"
    mouth = corpus.mouth("tr_003")
    content = mouth.read_bytes()
    mouth.write_bytes(b"broken")
    rewrite_lists(corpus, "train", slice(0, 3))
    build_store(corpus, first, "shardwriter.audio=embed", splits=("train",))
    mouth.write_bytes(content)
    make_lists(corpus)
    rewrite_lists(corpus, "train", slice(3, 7))
    build_store(corpus, second, "shardwriter.audio=embed", splits=SPLITS)
    make_lists(corpus)
    for stores in ((first, second), (second, first)):
        source = data(corpus, stores[0], others=stores[1:])
        assert not len(source.splits["train"].missing)
        assert_same(batches(source), expected)


def test_two_stores_without_a_manifest_are_read_as_their_union(corpus: Corpus, tmp_path: Path) -> None:
    first, second = halves(corpus, tmp_path, "shardwriter.audio=embed")
    kept = {Path(row[0]).name for row in corpus.rows("train", "mix")} - {Path(corpus.rows("train", "mix")[3][0]).name}
    shutil.rmtree(corpus.root / "json")
    shutil.rmtree(corpus.root / "audio")
    source = data(corpus, first, others=(second,))
    found = {Path(example.mixture).name for example in source.splits["train"].manifest.examples}
    assert found == kept
    assert not any(batch.dropped or batch.mouth_lengths for batch in batches(source))


def test_two_stores_without_a_manifest_may_not_hold_one_key(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("one", "other"):
        build_store(corpus, tmp_path / name, splits=SPLITS)
    shutil.rmtree(corpus.root / "json")
    with pytest.raises(ManifestError, match=r"8 keys are in more than one of the stores \(e\.g\. tr_00\d\)"):
        data(corpus, tmp_path / "one", others=(tmp_path / "other",)).prepare_splits()


def test_stores_of_unlike_numbers_of_views_give_what_both_have(corpus: Corpus, tmp_path: Path) -> None:
    first, second = halves(corpus, tmp_path, "shardwriter.views=1", "shardwriter.dtype=float32")
    rewrite_lists(corpus, "train", slice(0, 3))
    build_store(corpus, first, "shardwriter.views=2", splits=("train",))
    make_lists(corpus)
    source = data(corpus, first, others=(second,))
    assert source.splits["train"].views == 1
    alone = data(corpus, first)
    assert alone.splits["train"].views == 2
    assert any(batch.mouth_lengths for batch in batches(alone))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shardwriter.dtype=int8", "dtype: float16 here, int8 there"),
        ("shardwriter.audio=embed", "audio: path here, embed there"),
        ("videonet.videonet_config.seed=1", "encoder fingerprint: quick-0 here, quick-1 there"),
    ],
)
def test_stores_that_were_made_unlike_are_refused(corpus: Corpus, tmp_path: Path, setting: str, message: str) -> None:
    build_store(corpus, tmp_path / "one", splits=SPLITS)
    build_store(corpus, tmp_path / "other", setting, splits=SPLITS)
    with pytest.raises(StoreError, match=rf"one and .*other were built with different settings \({message}\)"):
        data(corpus, tmp_path / "one", others=(tmp_path / "other",)).prepare_splits()
