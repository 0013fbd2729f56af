"""--precision and --compile change the separator's arithmetic, and neither embeddings nor checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.recorder import Stop, recorded, steps
from helpers.runs import EPOCHS, last, run, run_recorded
from test_exact_resume import SETTINGS, Ended, assert_it_never_stopped

from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.separator.model import IIANet
from iianet.training.lightning_module import SeparationModule

COMPILE_SECONDS = 400
SHALLOW = "audionet.audionet_config.upsampling_depth=2"
SMALL = ("audionet.audionet_config.num_blocks=1", SHALLOW)
"""There is less to compile."""
Seen = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The embedding and the estimate of every step."""
    found: Seen = []
    forward = IIANet.forward

    def watch(self: IIANet, mixture: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        estimate = forward(self, mixture, embedding)
        found.append((embedding.clone(), estimate.detach()))
        return estimate

    monkeypatch.setattr(IIANet, "forward", watch)
    return found


def test_in_bf16_mixed_mouths_are_encoded_as_ever_and_separated_in_bfloat16(
    corpus: Corpus, here: Path, seen: Seen
) -> None:
    """No stored embedding can differ from one that is encoded in the step."""
    limits = ("--set", "training.limit_train_batches=1", "training.epochs=1")
    assert run(corpus, *limits)[0] == 0
    exact = seen.copy()
    seen.clear()
    assert run(corpus, *limits, "--precision", "bf16-mixed")[0] == 0
    (embedding, estimate), (expected, reference) = seen[0], exact[0]
    assert embedding.dtype == expected.dtype == torch.float32
    assert torch.equal(embedding, expected)
    assert (estimate.dtype, reference.dtype) == (torch.bfloat16, torch.float32)


def test_a_checkpoint_of_bf16_mixed_holds_float32(corpus: Corpus, store: Path, here: Path) -> None:
    assert run(corpus, "--shards", store, "--precision", "bf16-mixed")[0] == 0
    assert {value.dtype for value in last()["state_dict"].values()} == {torch.float32}


def test_16_mixed_is_refused_on_the_cpu(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(here / "steps"):
        assert run(corpus, "--shards", store, "--precision", "16-mixed")[0] == 2
    assert "give --precision bf16-mixed" in capsys.readouterr().err
    assert not steps(here / "steps")
    assert not Path("Experiments").exists()


def test_a_compiled_network_has_the_tensors_of_any_other(corpus: Corpus) -> None:
    def tensors(*overrides: str) -> dict[str, Any]:
        config = corpus.config(*overrides)
        return SeparationModule(config, LazyEncoder(config.encoder_source())).state_dict()

    assert tensors("training.compile=true").keys() == tensors().keys()


@pytest.fixture(scope="module")
def compiled(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A compiled run that never stops, and the folder that it ran in: checkpoints hold paths."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ("--shards", store, "--compile", "--set", *SETTINGS, *SMALL)
        whole = run_recorded(corpus, *words, record=Path("whole"), timeout=COMPILE_SECONDS)
        assert whole.returncode == 0, whole.stderr[-3000:]
        return folder, Ended(steps=steps(Path("whole")), checkpoint=last())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stop", [Stop("train", 8, "SIGTERM"), Stop("validation", 3, "SIGTERM")], ids=["training", "validation"]
)
def test_a_compiled_run_goes_on_as_if_it_had_never_stopped(
    corpus: Corpus,
    store: Path,
    compiled: tuple[Path, Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Stop,
) -> None:
    """Stopped in validation it meets the shapes in another order, of which the last batch is the smaller."""
    folder, whole = compiled
    monkeypatch.chdir(folder)
    shutil.rmtree("Experiments")
    words = ("--shards", store, "--compile", "--set", *SETTINGS, *SMALL)
    stopped = run_recorded(corpus, *words, record=tmp_path / "stopped", stop=stop, timeout=COMPILE_SECONDS)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    resumed = run_recorded(corpus, *words, "--resume", "last", record=tmp_path / "resumed", timeout=COMPILE_SECONDS)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_it_never_stopped(whole, steps(tmp_path / "stopped"), steps(tmp_path / "resumed"), lost=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_computes_what_an_uncompiled_one_does_and_goes_on_as_one(
    corpus: Corpus, store: Path, here: Path
) -> None:
    words = ("--shards", store, "--set", "training.epochs=1", SHALLOW)
    assert run(corpus, *words)[0] == 0
    plain = last()["state_dict"]
    shutil.rmtree("Experiments")
    compiled = run_recorded(corpus, *words, "--compile", record=Path("steps"), timeout=COMPILE_SECONDS)
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    state = last()["state_dict"]
    assert state.keys() == plain.keys()
    # The dropped values are other ones, drawn by the compiled code; Adam's first steps are of one size.
    assert max(float((state[name] - plain[name]).abs().max()) for name in plain) < 0.02
    assert run(corpus, "--shards", store, *EPOCHS, SHALLOW, "--resume", "last")[0] == 0
