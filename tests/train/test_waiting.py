"""A training step gives a GPU its work and does not wait for what comes of it."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, last, run
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from iianet.batch import Batch
from iianet.encoder.kernels import exact_kernels
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.losses import PAIRWISE_LOSSES, PermutationInvariantLoss
from iianet.separator.operators import shares_of_means
from iianet.training import progress
from iianet.training.lightning_module import SeparationModule
from iianet.training.trainer import Ranks

GPU = torch.device("cuda", 0)
ON_CPU = {"_watch", "_single_tensor_adam", "settle", "packed_windows"}
"""Functions that take numbers out of tensors of the CPU: a GPU's flag of a loss is looked at a step later, its Adam
counts steps there; what is known of shards, and the places of clips in a pack, are the processor's own."""


class Waits(TorchDispatchMode):
    """Notes which functions take a number out of a tensor, which waits for a GPU, in each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = [[]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            stack = [frame.name for frame in traceback.extract_stack()]
            if not ON_CPU & set(stack):
                self.steps[-1].append(" > ".join(stack[-8:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["store", "raw"])
def test_no_step_between_two_log_intervals_waits_for_its_results(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    waits, begin = Waits(), SeparationModule.training_step

    def training_step(self: SeparationModule, *words: Any) -> torch.Tensor:
        waits.steps.append([])
        return begin(self, *words)

    monkeypatch.setattr(SeparationModule, "training_step", training_step)
    monkeypatch.setattr("iianet.training.trainer.progress", lambda _: [progress.Bar(leave=True)])
    with waits:
        assert run(corpus, *(["--shards", store] if mode == "store" else []))[0] == 0
    _, first, *steps, last = waits.steps
    assert first, "the bar shows what the first step came to"
    assert last, "the epoch's figures are logged behind its last step"
    assert len(steps) == 3
    assert steps == [[]] * 3


def index(tensor: torch.Tensor, places: Any) -> torch.Tensor:
    """What an index by numbers, slices and None takes; torch's own looks for the GPU. Others would be copied to it."""
    axis, found = 0, tensor
    given = places if isinstance(places, tuple) else (places,)
    for place in given:
        if place is Ellipsis:
            axis = tensor.ndim - (len(given) - 1 - given.index(Ellipsis))
        elif place is None:
            found, axis = found.unsqueeze(axis), axis + 1
        elif isinstance(place, slice):
            found, axis = torch.ops.aten.slice(found, axis, place.start, place.stop, place.step or 1), axis + 1
        else:
            assert isinstance(place, int), f"{place} would be copied to the GPU, which waits for it"
            found = found.select(axis, place)
    return found


def test_forward_losses_and_mean_copy_nothing_to_a_gpu(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a GPU that is not there: to take a number out of one, or to index it by a list, is an error."""
    wishes = ("noise=0.1", "channel_dropout=0.1", "time_mask=2")
    name = "datamodule.data_config.embedding_augmentation"
    config = corpus.config(*(f"{name}.{wish}" for wish in wishes), "loss.train.config.threshold_byloss=true")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it looks for the GPU
    monkeypatch.setattr(torch.Tensor, "__getitem__", index)
    module = SeparationModule(config, LazyEncoder(config.encoder_source()))
    with FakeTensorMode():
        for owner in module.modules():
            for named in (owner._parameters, owner._buffers):
                named.update(
                    {
                        name: torch.empty(kept.shape, dtype=kept.dtype, device=GPU)
                        for name, kept in named.items()
                        if kept is not None
                    }
                )
        module.train_mean.sums = torch.zeros(2, dtype=torch.float64, device=GPU)
        module._device = GPU
        sound, embedding = torch.zeros(2, 3200, device=GPU), torch.zeros(2, config.encoder.dim, 5, device=GPU)
        batch = Batch(
            mixture=sound,
            target=sound,
            embedding=embedding,
            mouths=torch.zeros(0, 88, 88, dtype=torch.uint8, device=GPU),
            mouth_lengths=(),
            mouth_leads=(),
            mouth_rows=(),
            weight=torch.ones(2, device=GPU),
            keys=("a", "b"),
            num_examples=2,
        )
        estimate = module(batch)
        for kind in PAIRWISE_LOSSES:
            loss = PermutationInvariantLoss(sdr_type=kind, threshold_byloss=True)
            losses = loss(estimate, sound.unsqueeze(1))
            module.train_mean.update(losses, loss.weights(losses, batch.weight))
            three = torch.zeros(2, 3, 3200, device=GPU)
            assert loss(three, three).device == GPU
        assert module.train_mean.compute().device == GPU
    shares_of_means.cache_clear()  # it keeps tensors of that GPU


def test_batches_are_sent_without_a_wait(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, send = [], Batch.to

    def to(batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
        asked.append(non_blocking)
        return send(batch, device, non_blocking)

    monkeypatch.setattr(Batch, "to", to)
    run(corpus, "--shards", store)
    assert asked == [True] * 7, "of five steps and two batches of validation"


def test_ranks_agree_without_their_gpus() -> None:
    """A tensor of a GPU cannot be made here."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        ranks = Ranks(parallel_devices=[GPU], cluster_environment=LightningEnvironment())
        decisions = [ranks.reduce_boolean_decision(one, all=every) for one in (False, True) for every in (False, True)]
    finally:
        torch.distributed.destroy_process_group()
    assert decisions == [False, False, True, True]


@pytest.mark.parametrize("decision", [False, True])
def test_all_ranks_decide_or_any_of_them(monkeypatch: pytest.MonkeyPatch, decision: bool) -> None:
    def reduce(votes: torch.Tensor, how: Any, group: Any) -> None:
        """With another rank, which decides otherwise."""
        least = how == torch.distributed.ReduceOp.MIN
        votes.copy_(torch.minimum(votes, 1 - votes) if least else torch.maximum(votes, 1 - votes))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    ranks = Ranks(parallel_devices=[GPU], cluster_environment=LightningEnvironment())
    assert ranks.reduce_boolean_decision(decision, all=True) is False
    assert ranks.reduce_boolean_decision(decision, all=False) is True


@pytest.mark.parametrize(
    ("settings", "fused"),
    [
        ([], True),
        (["training.precision=16-mixed"], None),
        (["training.precision=16-mixed", "training.gradient_clip_val=0"], True),
        (["training.precision=bf16-mixed"], True),
        (["optimizer.foreach=true"], None),
        (["optimizer.optim_name=adamax"], None),
    ],
)
def test_the_optimizer_of_a_gpu_takes_its_step_in_one_kernel(
    corpus: Corpus, settings: list[str], fused: bool | None
) -> None:
    config = corpus.config(*settings)
    module = SeparationModule(config, LazyEncoder(config.encoder_source()))
    assert module.configure_optimizers().defaults.get("fused") is None
    module._device = GPU
    assert module.configure_optimizers().defaults.get("fused") is fused


def test_a_checkpoint_of_a_gpu_is_gone_on_with_by_the_kernels_of_a_cpu(corpus: Corpus, store: Path, here: Path) -> None:
    run(corpus, "--shards", store)
    checkpoint = last()
    checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] = True
    torch.save(checkpoint, RESULTS / "last.ckpt")
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 0
    assert last()["epochs_done"] == 2
    assert last()["optimizer_states"][0]["param_groups"][0]["fused"] is None


@pytest.fixture
def backends() -> Iterator[None]:
    """Put the settings of torch's backends back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("wish", ["true", "false"])
def test_a_gpu_rounds_factors_where_that_is_asked_for_but_never_the_encoders(
    corpus: Corpus, store: Path, here: Path, backends: None, wish: str
) -> None:
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    for kind in kinds:
        kind.allow_tf32 = wish == "false"
    torch.backends.cudnn.benchmark = wish == "false"
    run(corpus, "--shards", store, "--set", f"training.tf32={wish}", "--set", f"training.cudnn_benchmark={wish}")
    assert [kind.allow_tf32 for kind in kinds] == [wish == "true"] * 2
    assert torch.backends.cudnn.benchmark is (wish == "true")
    with exact_kernels(torch.device("cpu")):
        assert [kind.allow_tf32 for kind in kinds] == [False, False]
    assert [kind.allow_tf32 for kind in kinds] == [wish == "true"] * 2
