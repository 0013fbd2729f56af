"""A store is encoded with the kernels that it was begun with; a long build measures which are quick."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.builds import CPU, build_store, interrupt_build, quick_encoder
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.kernels import Kernels, candidates, default_kernels
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.build import build
from shardwriter.encode import kernel_choice
from shardwriter.encode.kernel_choice import quickest_kernels
from shardwriter.execute import executor
from shardwriter.store.catalog import read_store_record

BF16 = "videonet.videonet_config.precision=bf16"
FLOAT32 = "videonet.videonet_config.precision=float32"
OTHER = Kernels(memory_format="contiguous", max_frames=9)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2, "test": 2})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Every build is long, and finds `OTHER` the quickest; the precisions that were measured for."""
    asked: list[str | None] = []

    def found(source: EncoderSource, _device: torch.device) -> Kernels:
        asked.append(source.precision)
        return OTHER

    monkeypatch.setattr(build, "MEASURED_FROM", 1)
    monkeypatch.setattr(build, "quickest_kernels", found)
    return asked


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Kernels]:
    """Kernels of each build, as they encode."""
    found: list[Kernels] = []
    run_tasks = executor.run_tasks

    def run(*arguments: Any) -> None:
        found.append(arguments[3].encoder.kernels)
        run_tasks(*arguments)

    monkeypatch.setattr(executor, "run_tasks", run)
    return found


@pytest.fixture(autouse=True)
def quick() -> Any:
    with quick_encoder():
        yield


def kernels(store: Path) -> Kernels:
    return Kernels.from_record(read_store_record(store).identity.precision)


def test_a_short_build_takes_the_default_and_records_it(corpus: Corpus, tmp_path: Path, used: list[Kernels]) -> None:
    build_store(corpus, tmp_path / "store")
    assert kernels(tmp_path / "store") == default_kernels(CPU) == used[0]


def test_a_long_build_measures_once_and_all_later_ones_use_the_same(
    corpus: Corpus, tmp_path: Path, measured: list[str | None], used: list[Kernels]
) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, splits=("val",))
    build_store(corpus, store, splits=("train",))
    assert measured == [None]
    assert kernels(store) == OTHER
    assert used == [OTHER, OTHER]


def test_an_overwrite_measures_again_and_once_begun_goes_on_with_that(
    corpus: Corpus, tmp_path: Path, measured: list[str | None], used: list[Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(build, "MEASURED_FROM", 1000)
        build_store(corpus, store)
    interrupt_build(corpus, store, packs=1, overwrite=True)
    assert (kernels(store), measured) == (default_kernels(CPU), [None])
    build_store(corpus, store, overwrite=True)
    assert (kernels(store), measured) == (OTHER, [None])
    assert set(used[1:]) == {OTHER}


def test_a_store_keeps_its_precision_unless_another_is_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, BF16, splits=("val",))
    assert kernels(store).dtype == "bfloat16"
    build_store(corpus, store, splits=("train",))
    assert kernels(store).dtype == "bfloat16"
    with pytest.raises(StoreError, match=r"precision: .*float32.* here, .*bfloat16.* there"):
        build_store(corpus, store, FLOAT32)


def test_kernels_chosen_for_a_gpu_are_not_used_on_a_cpu(
    corpus: Corpus, tmp_path: Path, used: list[Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    gpu = Kernels(device="cuda", dtype="bfloat16", max_frames=4096)
    with monkeypatch.context() as patch:
        patch.setattr(build, "MEASURED_FROM", 1)
        patch.setattr(build, "quickest_kernels", lambda *_: gpu)
        build_store(corpus, store, BF16, splits=("val",))
    build_store(corpus, store, splits=("train",))
    assert kernels(store) == gpu
    assert used == [default_kernels(CPU, "bf16")] * 2


@pytest.mark.parametrize(("quicker", "full"), [(0, False), (3, False), (1, True)])
def test_the_quickest_wins_that_fits_and_the_default_where_none_is_plainly_quicker(
    quicker: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = candidates(CPU, "bf16")
    clock = [0.0]

    class Timed:
        def __init__(self, _network: object, kernels: Kernels) -> None:
            self.kernels = kernels

        def to(self, _device: torch.device) -> "Timed":
            return self

        def columns(self, frames: torch.Tensor, _lengths: list[int]) -> torch.Tensor:
            if full and self.kernels.max_frames > tried[0].max_frames:
                clock[0] += 0.01
                raise torch.OutOfMemoryError
            clock[0] += 0.5 if quicker and self.kernels == tried[quicker] else 1.0 if self.kernels == tried[0] else 0.97
            return frames

    monkeypatch.setattr(kernel_choice, "ClipEncoder", Timed)
    monkeypatch.setattr(kernel_choice.time, "monotonic", lambda: clock[0])
    assert quickest_kernels(EncoderSource(None, 0, "bf16"), CPU) == tried[quicker]
