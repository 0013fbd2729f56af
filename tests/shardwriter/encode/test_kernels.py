"""A build uses the kernels of its store: those of the config or the device's default where it makes one."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.builds import CPU, Run, build_store, edit_record, interrupt_build, opened
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError, WeightsError
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.encode.encoded import EncodedClips, EncodedSamples
from shardwriter.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("quick")

KERNELS = "videonet.videonet_config"
BF16 = f"{KERNELS}.precision=bf16"
FLOAT32 = f"{KERNELS}.precision=float32"
OTHER = Kernels(memory_format="contiguous", max_frames=9)
ASKED = (f"{KERNELS}.memory_format=contiguous", f"{KERNELS}.max_frames=9")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2, "test": 2})


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Kernels]:
    """Kernels of each build, as they encode."""
    found: list[Kernels] = []
    start = EncodedClips.open

    def open_and_note(source: EncodedClips, device: torch.device) -> EncodedSamples:
        samples = start(source, device)
        found.append(samples.encoder.kernels)
        return samples

    monkeypatch.setattr(EncodedClips, "open", open_and_note)
    return found


def kernels(store: Path) -> Kernels:
    return Kernels.from_record(opened(store).identity.precision)


def test_a_store_has_the_default_of_the_device_and_records_it(corpus: Corpus, store: Path, used: list[Kernels]) -> None:
    build_store(corpus, store)
    assert kernels(store) == default_kernels(CPU) != OTHER
    assert used == [default_kernels(CPU)]


def test_a_new_store_has_the_kernels_of_the_config_and_all_later_builds_use_the_same(
    corpus: Corpus, store: Path, used: list[Kernels]
) -> None:
    build_store(corpus, store, *ASKED, splits=("val",))
    build_store(corpus, store, splits=("train",))
    build_store(corpus, store, f"{KERNELS}.max_frames=100", splits=("test",))
    assert kernels(store) == OTHER
    assert used == [OTHER, OTHER, OTHER]


def test_an_overwrite_takes_those_of_the_config_and_is_resumed_with_its_own(
    corpus: Corpus, store: Path, used: list[Kernels]
) -> None:
    build_store(corpus, store)
    interrupt_build(corpus, store, *ASKED, packs=1, overwrite=True)
    assert kernels(store) == default_kernels(CPU)
    report = build_store(corpus, store, overwrite=True)
    assert report.planned["train"]["resumed"] > 0 and report.planned["train"]["new"] == 0
    assert kernels(store) == OTHER
    assert used == [default_kernels(CPU), OTHER, OTHER]


def test_a_process_with_other_weights_than_the_plan_refuses_to_encode(corpus: Corpus, store: Path) -> None:
    source = prepare(corpus.config(), Folder(store), BuildOptions(device=CPU)).job().source
    assert isinstance(source, EncodedClips)
    other = corpus.config("videonet.videonet_config.seed=1").encoder_source()
    said = "have the fingerprint quick-1, those of the build quick-0: .* changed meanwhile. Copy it to all of them"
    with pytest.raises(WeightsError, match=said):
        replace(source, encoder=None, encoder_source=other).open(CPU)


def test_a_store_keeps_its_precision_unless_another_is_asked_for(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, BF16, splits=("val",))
    assert kernels(store).dtype == "bfloat16"
    build_store(corpus, store, splits=("train",))
    assert kernels(store).dtype == "bfloat16"
    with pytest.raises(StoreError, match=r"precision: .*float32.* here, .*bfloat16.* there"):
        build_store(corpus, store, FLOAT32)


def test_kernels_of_a_gpu_are_not_used_on_a_cpu(
    corpus: Corpus, store: Path, used: list[Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Kernels(device="cuda", dtype="bfloat16", max_frames=4096)
    with monkeypatch.context() as patch:
        patch.setattr(EncoderSource, "kernels", lambda *_: gpu)
        build_store(corpus, store, BF16, splits=("val",))
    build_store(corpus, store, splits=("train",))
    assert kernels(store) == gpu
    assert used == [default_kernels(CPU, "bf16")] * 2


def test_precision_of_the_command_is_that_of_a_new_store_and_never_mixes_with_another(run: Run, store: Path) -> None:
    assert run("--encoder_precision", "bf16", "--data_split", "val").code == 0
    assert kernels(store) == default_kernels(CPU, "bf16")
    assert run("--data_split", "train").code == 0
    assert kernels(store).dtype == "bfloat16"
    refused = run("--encoder_precision", "float32")
    assert refused.code == 2
    assert re.search(r"precision: .*float32.* here, .*bfloat16.* there", refused.err) and "--overwrite" in refused.err
    assert run("--encoder_precision", "float32", "--overwrite").code == 0
    assert kernels(store) == default_kernels(CPU)


def test_kernels_of_another_version_are_refused_with_the_cure(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, splits=("val",))
    identity = asdict(opened(store).identity)
    identity["precision"]["memory_format"] = "blocked"
    edit_record(store, identity=identity)
    with pytest.raises(StoreError, match=r"memory_format 'blocked'; expected .*--overwrite"):
        build_store(corpus, store, splits=("train",))
    build_store(corpus, store, overwrite=True)
    assert kernels(store) == default_kernels(CPU)
