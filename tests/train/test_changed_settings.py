"""Settings that are others on --resume than in the checkpoint: applied and said, or refused."""

import shutil
from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.recorder import recorded, steps
from helpers.runs import RESULTS, last, run

from iianet.config.schema import load_config

FALLING = "scheduler={sche_name: StepLR, sche_config: {step_size: 1, gamma: 0.5}}"


@pytest.fixture(scope="module")
def trained(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, whose learning rate fell from 1e-3 to 2.5e-4."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(corpus, "--shards", store, "--set", "training.epochs=2", FALLING)[0] == 0
    return place / RESULTS


@pytest.fixture
def folder(trained: Path, here: Path) -> Path:
    return shutil.copytree(trained, here / RESULTS)


def resumed(corpus: Corpus, store: Path, *settings: str) -> list[float]:
    """Resume for two epochs more. Returns the learning rate of each one's last step."""
    with recorded(Path("steps")):
        words = ("--set", "training.epochs=4", FALLING, *settings, "--resume", "last")
        assert run(corpus, "--shards", store, *words)[0] == 0
    rates = {step["epoch"]: step["lr"] for step in steps(Path("steps"))}
    return [rates[2], rates[3]]


def test_equal_settings_are_resumed_without_a_word(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resumed(corpus, store) == pytest.approx([2.5e-4, 1.25e-4])
    assert "applies" not in capsys.readouterr().err


def test_another_learning_rate_applies_and_its_schedule_starts_anew(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resumed(corpus, store, "optimizer.lr=3e-4") == pytest.approx([3e-4, 1.5e-4])
    said = capsys.readouterr().err
    assert "optimizer.lr was 0.001 there and is 0.0003 here; from step 10 on, what is here applies" in said
    assert "the learning rate is 0.0003 from here on, and its schedule starts anew" in said
    assert load_config(folder / "conf.yml").optimizer.lr == 3e-4
    assert last()["history"][-1]["lr"] == pytest.approx(1.5e-4)


def test_another_schedule_starts_anew_from_the_rate_that_the_run_had(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "scheduler={sche_name: StepLR, sche_config: {step_size: 1, gamma: 0.1}}"
    assert resumed(corpus, store, other) == pytest.approx([2.5e-4, 2.5e-5])
    assert "scheduler.sche_config.gamma was 0.5 there and is 0.1 here" in capsys.readouterr().err


KINDS = {
    "CosineAnnealingLR": "{T_max: 2}",
    "ReduceLROnPlateau": "{patience: 0, factor: 0.1, mode: max}",  # each validation is too good
    "ExponentialLR": "{gamma: 0.1}",
    "CyclicLR": "{base_lr: 0.01, max_lr: 0.02, step_size_up: 1, step_size_down: 1, cycle_momentum: false}",
}
HAD = "from the learning rate that the run had"


@pytest.mark.parametrize(
    ("kind", "rates", "where"),
    [
        ("CosineAnnealingLR", [2.5e-4, 1.25e-4], HAD),
        ("ReduceLROnPlateau", [2.5e-4, 2.5e-4], HAD),
        ("ExponentialLR", [2.5e-4, 2.5e-5], HAD),
        ("CyclicLR", [0.01, 0.02], "at the learning rates that it names"),
    ],
)
def test_a_scheduler_of_another_kind_starts_anew_and_it_is_said_from_where(
    corpus: Corpus,
    store: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    rates: list[float],
    where: str,
) -> None:
    other = f"scheduler={{sche_name: {kind}, sche_config: {KINDS[kind]}}}"
    assert resumed(corpus, store, other) == pytest.approx(rates)
    said = capsys.readouterr().err
    assert f'scheduler.sche_name was "StepLR" there and is "{kind}" here' in said
    assert f"the schedule starts anew, {where}" in said


def test_a_scheduler_that_is_taken_away_leaves_the_rate_and_one_that_is_added_starts_from_it(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resumed(corpus, store, "scheduler={sche_name: null}") == pytest.approx([2.5e-4, 2.5e-4])
    said = capsys.readouterr().err
    assert 'scheduler.sche_name was "StepLR" there and is null here' in said
    assert "there is no schedule from here on: the learning rate stays at what the run had" in said
    shutil.rmtree("steps")
    with recorded(Path("steps")):
        words = ("--set", "training.epochs=6", FALLING, "--resume", "last")
        assert run(corpus, "--shards", store, *words)[0] == 0
    assert [step["lr"] for step in steps(Path("steps"))][::5] == pytest.approx([2.5e-4, 1.25e-4])
    said = capsys.readouterr().err
    assert 'scheduler.sche_name was null there and is "StepLR" here' in said
    assert "the schedule starts anew, from the learning rate that the run had" in said


def test_a_scheduler_that_moved_the_optimizer_s_momentum_leaves_it_as_the_config_has_it(
    corpus: Corpus, store: Path, here: Path
) -> None:
    """Else it would stay where the schedule happened to be."""
    cycle = "scheduler={sche_name: OneCycleLR, sche_config: {max_lr: 0.002, total_steps: 20}}"
    assert run(corpus, "--shards", store, "--set", "training.epochs=2", cycle)[0] == 0
    (group,) = last()["optimizer_states"][0]["param_groups"]
    assert group["betas"][0] != 0.9
    assert run(corpus, "--shards", store, "--set", "training.epochs=3", FALLING, "--resume", "last")[0] == 0
    (group,) = last()["optimizer_states"][0]["param_groups"]
    assert tuple(group["betas"]) == (0.9, 0.999)


def test_another_weight_decay_applies_to_the_steps(corpus: Corpus, store: Path, folder: Path) -> None:
    assert resumed(corpus, store, "optimizer.weight_decay=0.25") == pytest.approx([2.5e-4, 1.25e-4])
    (group,) = last()["optimizer_states"][0]["param_groups"]
    assert group["weight_decay"] == 0.25


def test_the_next_resume_starts_from_what_applied(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed(corpus, store, "optimizer.lr=3e-4")
    shutil.rmtree("steps")
    capsys.readouterr()
    with recorded(Path("steps")):
        words = ("--set", "training.epochs=5", FALLING, "optimizer.lr=3e-4", "--resume", "last")
        assert run(corpus, "--shards", store, *words)[0] == 0
    assert steps(Path("steps"))[0]["lr"] == pytest.approx(7.5e-5)
    assert "applies" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.accumulate_grad_batches=2", "training.accumulate_grad_batches was 1 there and is 2 here"),
        ("loss.train.sdr_type=pairwise_neg_sisdr", "loss.train.sdr_type was"),
        ("datamodule.data_config.normalize_audio=true", "normalize_audio was false there and is true here"),
        ("training.tf32=true", "training.tf32 was false there and is true here"),
        ("training.gradient_clip_val=1.0", "training.gradient_clip_val was 5.0 there and is 1.0 here"),
    ],
)
def test_what_steps_compute_otherwise_is_said(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    words = ("--set", "training.epochs=3", FALLING, setting, "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optimizer.optim_name=sgd"], 'optimizer.optim_name was "adam" there and is "sgd" here'),
        (["optimizer.optim_name=AdamW"], 'optimizer.optim_name was "adam" there and is "AdamW" here'),
        (["optimizer.betas=[0.8, 0.9]"], "optimizer.betas was not recorded there and is [0.8, 0.9] here"),
        (["optimizer.amsgrad=true"], "optimizer.amsgrad was not recorded there and is true here"),
    ],
)
def test_an_optimizer_whose_state_is_another_is_refused_and_nothing_is_written(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str], settings: list[str], said: str
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = ("--set", "training.epochs=3", FALLING, *settings, "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 2
    message = capsys.readouterr().err
    assert said in message
    assert "only optimizer.lr and optimizer.weight_decay may change" in message
    assert "without --resume" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_network_is_refused_though_its_tensors_fit(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks share their weights, so any number of them fits."""
    before = (folder / "conf.yml").read_bytes()
    words = ("--set", "training.epochs=4", FALLING, "audionet.audionet_config.num_blocks=5", "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 2
    said = capsys.readouterr().err
    assert "audionet.audionet_config.num_blocks was" in said and "here, which is another network" in said
    assert (folder / "conf.yml").read_bytes() == before


@pytest.mark.parametrize("how", ["last", "auto"])
def test_a_damaged_last_checkpoint_names_one_that_is_whole(
    corpus: Corpus, store: Path, folder: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    (folder / "last.ckpt").write_bytes(b"x\n")
    assert run(corpus, "--shards", store, "--set", "training.epochs=4", FALLING, "--resume", how)[0] == 2
    said = capsys.readouterr().err
    assert "last.ckpt: is damaged (2 bytes), so the run cannot be resumed from it" in said
    assert f"--resume {folder / 'epoch='}" in said
