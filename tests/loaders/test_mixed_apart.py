"""Dynamic mixing adds no two clips of one video, or of one speaker, where the config says so."""

from pathlib import Path

import pytest
import soundfile
from helpers.batches import data
from helpers.builds import build_store, tar
from helpers.corpus import Corpus, make_corpus
from helpers.streamed_tars import stream

from iianet.errors import ConfigError, ManifestError
from loaders.datamodule import SeparationData

KEY = "datamodule.data_config"
APART = (f"{KEY}.mix_apart=video", f"{KEY}.utterance_names=lrs2")
NAMES = [f"{video}_{clip:05d}" for video in ("630", "631", "632") for clip in range(4)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(
        tmp_path_factory.mktemp("corpus"), {"train": dict.fromkeys(NAMES, 4), "val": {"a_1": 4, "b_1": 4, "one": 4}}
    )


def pairs(source: SeparationData, epochs: int = 10) -> list[tuple[str, str]]:
    """Names of the two utterances of each mixture of some epochs; an interferer of -1 is an empty name."""
    order, names = source.order("train"), source.splits["train"].manifest.utterances.column("name").to_pylist()
    found = []
    for number in range(epochs):
        epoch = order.epoch(number)
        for one, other in zip(epoch.example, epoch.interferer, strict=True):
            utterances = order.utterance_of_example[[one, other]]
            found.append((names[utterances[0]], names[utterances[1]] if other >= 0 else ""))
    assert found
    return found


def videos(names: tuple[str, str]) -> set[str]:
    return {name.partition("_")[0] for name in names}


def test_no_two_clips_of_a_video_are_mixed(corpus: Corpus) -> None:
    assert any(len(videos(names)) == 1 for names in pairs(data(corpus, None)))
    assert all(len(videos(names)) == 2 for names in pairs(data(corpus, None, *APART)))


def test_what_is_read_is_what_was_drawn(corpus: Corpus) -> None:
    """Mixture less target is the interferer's source, of another video."""
    source = data(corpus, None, *APART)
    sources = {}
    for kind in ("s1", "s2"):
        for wav, mouth, _ in corpus.rows("train", kind):
            samples, _ = soundfile.read(corpus.root / wav, dtype="float32")
            sources[samples.tobytes()] = Path(mouth).stem
    seen = 0
    for batch in source.train_dataloader():
        for key, mixture, target in zip(batch.keys, batch.mixture.numpy(), batch.target.numpy(), strict=True):
            added = (mixture - target).tobytes()
            (other,) = [name for wav, name in sources.items() if wav == added]  # PCM16 adds up in float32 to the bit
            assert len(videos((key, other))) == 2
            seen += 1
    assert seen > 10


def test_validation_asks_no_names(corpus: Corpus) -> None:
    """Its mixtures are those of the lists, whatever their utterances are called."""
    assert list(data(corpus, None, *APART).val_dataloader())


def test_static_mixing_asks_no_names(corpus: Corpus) -> None:
    odd = (f"{KEY}.mix_apart=speaker", f"{KEY}.utterance_names=vox2", f"{KEY}.train_mixing=static")
    source = data(corpus, None, *odd)
    source.prepare_splits()
    assert {other for _, other in pairs(source)} == {""}
    assert "mix_apart" not in source.order_facts()


def test_names_that_do_not_tell_stop_a_run_before_it_starts(corpus: Corpus) -> None:
    source = data(corpus, None, f"{KEY}.mix_apart=speaker", f"{KEY}.utterance_names=vox2")
    with pytest.raises(ManifestError, match="12 utterances of 12 do not tell the speaker"):
        source.prepare_splits()


def test_the_groups_are_said_once(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data(corpus, None, *APART).prepare_splits()
    assert caplog.text.count("train: mixes no two utterances of one video; there are 3 videos") == 1
    caplog.clear()
    data(corpus, None).prepare_splits()
    assert "mixes no two" not in caplog.text


def test_order_facts_tell_groups_apart_and_nothing_without_them(corpus: Corpus) -> None:
    own = r"'(?P<speaker>63[0-2])_(?P<video>\d)'"
    facts = {
        name: data(corpus, None, *overrides).order_facts().get("mix_apart")
        for name, overrides in {
            "none": (),
            "lrs2": APART,
            "lrs3": (APART[0], f"{KEY}.utterance_names=lrs3"),
            "speaker": (f"{KEY}.mix_apart=speaker", f"{KEY}.utterance_names={own}"),
        }.items()
    }
    assert facts["none"] is None
    assert facts["lrs2"] == facts["lrs3"], "these are the same groups"
    assert facts["speaker"] not in (None, facts["lrs2"])


def test_a_stream_of_tars_cannot_mix_apart(corpus: Corpus, quick: None) -> None:
    build_store(corpus, corpus.root / "store", splits=("train", "val"))
    words = str(tar(corpus.root / "store", "train"))
    with pytest.raises(ConfigError, match="mix_apart: video needs to choose what is mixed, and a stream"):
        stream(corpus, words, *APART)
    stream(corpus, words, *APART, f"{KEY}.train_mixing=static")
