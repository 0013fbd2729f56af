"""Numbers that are not finite end a run, and no checkpoint ever holds them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, last, run

from iianet.batch import Batch
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.training.lightning_module import SeparationModule

EVERY_STEP = ("--set", "training.epochs=2", "training.checkpoint_every_n_steps=1")


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, value: float, stage: str = "train") -> None:
    """Let a step's loss be multiplied by a value."""
    loss = SeparationModule._loss

    def spoilt(self: SeparationModule, batch: Batch, own: str, mean: Any) -> torch.Tensor:
        found = loss(self, batch, own, mean)
        if own == stage and self.trainer.global_step == step:
            mean.sums *= value
            return found * value
        return found

    monkeypatch.setattr(SeparationModule, "_loss", spoilt)


def finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(
    corpus: Corpus,
    store: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: float,
) -> None:
    """The fourth step of five: not the epoch's end, which would be noticed late."""
    spoil(monkeypatch, 3, value)
    assert run(corpus, "--shards", store, *EVERY_STEP)[0] == 1
    message = capsys.readouterr().err
    assert "step 4 (epoch 0): a loss is not finite: training diverged" in message
    assert "The last good checkpoint is of step 3: give --resume last with a lower optimizer.lr" in message
    assert last()["global_step"] == 3
    assert finite(RESULTS / "last.ckpt")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(corpus, "--shards", store, *EVERY_STEP, "optimizer.lr=1e-4", "--resume", "last")[0] == 0
    assert finite(RESULTS / "last.ckpt")


def test_in_an_epochs_last_step_it_ends_before_anything_is_saved(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 9, float("nan"))
    assert run(corpus, "--shards", store, *EPOCHS)[0] == 1
    assert "The last good checkpoint is of step 5" in capsys.readouterr().err
    assert [path.name for path in RESULTS.glob("epoch*.ckpt")] == ["epoch=0.ckpt"]
    assert last()["global_step"] == 5


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As gradients that overflow leave them."""
    step = SeparationModule.optimizer_step

    def overflow(self: SeparationModule, *words: Any, **named: Any) -> None:
        step(self, *words, **named)
        if self.trainer.global_step == 2:  # before it is counted
            next(self.model.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(SeparationModule, "optimizer_step", overflow)
    assert run(corpus, "--shards", store, *EVERY_STEP)[0] == 1
    message = capsys.readouterr().err
    assert "step 3 (epoch 0): weights are not finite: training diverged" in message
    assert "is of step 2" in message
    assert last()["global_step"] == 2
    assert finite(RESULTS / "last.ckpt")


def test_a_validation_that_is_not_finite_ends_the_run_too(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 5, float("nan"), "val")
    assert run(corpus, "--shards", store, *EPOCHS)[0] == 1
    message = capsys.readouterr().err
    assert "step 5 (epoch 0): the validation loss is nan: training diverged" in message
    assert "No checkpoint was saved before it: start again with a lower optimizer.lr" in message
    assert not list(RESULTS.glob("*.ckpt"))


class OnGpu:
    """Stands for the loss of a step on a GPU: writes down what the GPU is given to do, and what is waited for."""

    device = torch.device("cuda", 0)

    def __init__(self, step: int, finite: bool, log: list[str]) -> None:
        self.step, self.finite, self.log = step, finite, log

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, words: Any = (), named: Any = None) -> "OnGpu":
        assert function is torch.isfinite
        words[0].log.append(f"flag {words[0].step}")
        return words[0]  # type: ignore[no-any-return]

    def to(self, device: str, non_blocking: bool) -> "OnGpu":
        assert (device, non_blocking) == ("cpu", True)
        self.log.append(f"copy {self.step}")
        return self

    def __bool__(self) -> bool:
        self.log.append(f"read {self.step}")
        return self.finite


def test_on_a_gpu_a_step_waits_for_nothing_that_was_queued_after_the_step_before(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def current_stream(_: torch.device) -> Any:
        step = log[-1].split()[1]
        return SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: log.append(f"await {step}")))

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    config = corpus.config()
    module = SeparationModule(config, LazyEncoder(config.encoder_source()))
    found = []
    for step, finite in enumerate([True, False, True, True]):
        log.append(f"forward {step}")
        module._watch(OnGpu(step, finite, log))  # type: ignore[arg-type]
        found.append(module.diverged)
    assert found == [False, False, True, True]
    assert log[:3] == ["forward 0", "flag 0", "copy 0"]
    for step in (1, 2, 3):
        of_step = [f"forward {step}", f"flag {step}", f"copy {step}", f"await {step - 1}", f"read {step - 1}"]
        assert log[5 * step - 2 : 5 * step + 3] == of_step


def test_weights_are_judged_with_one_wait_for_the_device(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for name in ("cpu", "item", "tolist", "__bool__", "__float__"):
        read = getattr(torch.Tensor, name)

        def count(self: torch.Tensor, *words: Any, name: str = name, read: Any = read) -> Any:
            waits.append(name)
            return read(self, *words)

        monkeypatch.setattr(torch.Tensor, name, count)
    config = corpus.config()
    module = SeparationModule(config, LazyEncoder(config.encoder_source()))
    waits.clear()
    module._refuse_not_finite_state({"state_dict": module.state_dict()})
    assert len(waits) == 1


def test_an_error_before_the_first_step_is_one_of_starting(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a resumed run, whose checkpoint has steps of an earlier process."""
    run(corpus, "--shards", store, "--set", "training.epochs=1")

    def refuse(self: SeparationModule) -> None:
        raise self.divergence("made up")

    monkeypatch.setattr(SeparationModule, "on_train_epoch_start", refuse)
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 2
