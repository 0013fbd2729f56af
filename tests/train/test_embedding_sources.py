"""Training from raw mouths, from a store, and from a store that lacks some."""

from pathlib import Path

import pytest
import torch
from helpers.corpus import Corpus, make_corpus
from helpers.runs import EPOCHS, build_store, last, losses, run

from iianet.checkpoint import export_published
from iianet.config.schema import load_config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels
from iianet.encoder.source import EncoderSource
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot


def results_of(folder: Path, corpus: Corpus, *words: object) -> Path:
    """Folder of the results of a run of two epochs in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, results = run(corpus, *words)
        assert code == 0
        return folder / results


@pytest.fixture(scope="module")
def raw(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run from raw mouths, without augmentation."""
    words = (*EPOCHS, "datamodule.data_config.augment_mouth=false")
    return results_of(tmp_path_factory.mktemp("raw"), corpus, *words)


@pytest.fixture(scope="module")
def full(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run from a store that lacks nothing."""
    return results_of(tmp_path_factory.mktemp("full"), corpus, "--shards", store, *EPOCHS)


def test_raw_mode_is_the_default_and_equals_a_store(raw: Path, full: Path) -> None:
    assert not load_config(raw / "conf.yml").datamodule.data_config.use_precomputed_embeddings
    assert load_config(full / "conf.yml").datamodule.data_config.use_precomputed_embeddings
    assert losses(full) == [pytest.approx(row, rel=1e-4) for row in losses(raw)]


def test_raw_mode_trains_with_augmentation(corpus: Corpus, raw: Path, here: Path) -> None:
    _, folder = run(corpus, *EPOCHS)
    assert losses(raw) != [pytest.approx(row, rel=1e-4) for row in losses(folder)]


def test_what_the_store_lacks_is_encoded_in_the_step_with_equal_losses(
    corpus: Corpus, full: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = build_store(corpus, "partial", 4)
    capsys.readouterr()
    _, folder = run(corpus, "--shards", partial, *EPOCHS)
    assert losses(folder) == [pytest.approx(row, rel=1e-4) for row in losses(full)]
    said = capsys.readouterr().err
    assert said.count("2 of 6 utterances are not in") == 1
    assert f"build-shards --conf_dir {corpus.config_file} --data_split all --shards {partial}" in said


def test_with_nothing_missing_the_encoder_is_not_loaded(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EncoderSource, "load", lambda *_: pytest.fail("the encoder was loaded"))
    assert run(corpus, "--shards", store)[0] == 0


def test_the_fallback_encodes_with_the_kernels_of_the_store(
    corpus: Corpus, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Kernels | None] = []
    partial = build_store(corpus, "bf16", 4, "videonet.videonet_config.precision=bf16")
    load = EncoderSource.load

    def keep(source: EncoderSource, device: torch.device, kernels: Kernels | None = None) -> ClipEncoder:
        asked.append(kernels)
        return load(source, device, kernels)

    monkeypatch.setattr(EncoderSource, "load", keep)
    assert run(corpus, "--shards", partial)[0] == 0
    recorded = dict(Snapshot.open(Folder(partial)).record.identity.precision)
    assert [kernels and kernels.record() for kernels in asked] == [recorded]


def test_the_encoder_neither_learns_nor_drifts_nor_lands_in_checkpoints(
    corpus: Corpus, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ClipEncoder] = []
    load = EncoderSource.load

    def keep(source: EncoderSource, device: torch.device, kernels: Kernels | None = None) -> ClipEncoder:
        loaded.append(load(source, device, kernels))
        return loaded[-1]

    monkeypatch.setattr(EncoderSource, "load", keep)
    _, folder = run(corpus)
    assert len(loaded) == 1
    fresh = load(corpus.config().encoder_source(), torch.device("cpu"))
    assert not loaded[0].training
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in loaded[0].state_dict().items())
    assert all(name.startswith("model.") or "mean" in name for name in last(folder)["state_dict"])


def test_the_command_line_wins_over_the_config(corpus: Corpus, store: Path, here: Path) -> None:
    named = [
        "--set",
        f"datamodule.data_config.shards={store}",
        "datamodule.data_config.use_precomputed_embeddings=true",
    ]
    run(corpus, *named)
    assert Path("Experiments/checkpoint/tiny/conf.yml").read_text().count("use_precomputed_embeddings: true") == 1
    _, folder = run(corpus, "--no_shards", *named)
    assert not load_config(folder / "conf.yml").datamodule.data_config.use_precomputed_embeddings
    _, folder = run(corpus, "--use-precomputed-embeddings", *named[:2])
    assert load_config(folder / "conf.yml").datamodule.data_config.use_precomputed_embeddings


def test_weights_saved_again_in_another_file_are_the_same_encoder(corpus: Corpus, here: Path) -> None:
    encoder = ClipEncoder.load_network(None, seed=corpus.config().videonet.videonet_config.seed)
    for name, extra in (("one.pth", {}), ("two.pth", {"epoch": 3})):
        torch.save({"model_state_dict": export_published(encoder), **extra}, name)
    weights = build_store(corpus, "weights", None, f"videonet.videonet_config.pretrain={here / 'one.pth'}")
    assert run(corpus, "--shards", weights, "--set", "videonet.videonet_config.pretrain=two.pth")[0] == 0


def test_on_missing_error_stops_at_an_npz_that_cannot_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(here / "corpus", frames=5)
    corpus.mouth("tr_001").write_bytes(b"broken")
    assert run(corpus)[0] == 0
    assert "tr_001: skipped" in capsys.readouterr().err
    code, _ = run(corpus, "--on_missing", "error")
    assert code == 2
    assert "tr_001" in capsys.readouterr().err.splitlines()[-1]
