"""Ranks that torchrun starts train together, or every one of them says why not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.runs import TRAIN, last
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from iianet.errors import ConfigError
from iianet.training.trainer import Ranks

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(corpus: Corpus, *words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(TRAIN)]
    command = [*launcher, "--conf_dir", str(corpus.config_file), *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.timeout(240)
def test_ranks_of_torchrun_train_as_one(corpus: Corpus, store: Path, here: Path) -> None:
    done = torchrun(corpus, "--shards", store, "--set", "training.epochs=1", "datamodule.data_config.batch_size=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("training on cpu, 2 ranks, 2 examples per step") == 1
    assert last()["global_step"] == 10 // 2


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_count_of_devices_that_torchrun_did_not_start_is_refused_on_every_rank(corpus: Corpus, here: Path) -> None:
    done = torchrun(corpus, "--set", "training.gpus=3")
    assert done.returncode != 0
    refusal = "error: training.gpus asks for 3 devices, [0, 1, 2], and torchrun started 2 ranks on this machine"
    assert done.stderr.count(refusal) == 2, done.stderr[-3000:]
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_variables_that_a_launcher_left_are_named(corpus: Corpus, store: Path, here: Path) -> None:
    command = [sys.executable, str(TRAIN), "--conf_dir", str(corpus.config_file), "--shards", str(store)]

    def train(**left: str) -> subprocess.CompletedProcess[str]:
        environment = {**ENVIRONMENT, **left}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)

    alone = train(RANK="1", WORLD_SIZE="2")
    assert alone.returncode == 2
    assert "RANK=1 and WORLD_SIZE=2 are set, but torchrun did not start this process" in alone.stderr
    assert "Traceback" not in alone.stderr
    batch_script = train(SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_ID="7", SLURM_JOB_NAME="job")
    assert batch_script.returncode == 0, batch_script.stderr[-3000:]
    assert "SLURM_NTASKS is 4, but srun did not start this process" in batch_script.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ranks_of_srun_train_as_one(corpus: Corpus, store: Path, here: Path) -> None:
    step = {"SLURM_JOB_ID": "70123", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    node = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "job"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(TRAIN), "--conf_dir", str(corpus.config_file), "--shards", str(store)]
    ranks = [
        subprocess.Popen(
            [*command, "--set", "datamodule.data_config.batch_size=1"],
            env={**ENVIRONMENT, **step, **node, "MASTER_PORT": port, "SLURM_PROCID": number, "SLURM_LOCALID": number},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("0", "1")
    ]
    said = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert "".join(said).count("training on cpu, 2 ranks, 2 examples per step") == 1
    assert last()["global_step"] == 10 // 2


def test_ranks_that_do_not_come_are_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(_: object) -> None:
        raise RuntimeError("The client socket has timed out after 1800000ms\nException raised from ...")

    monkeypatch.setattr(DDPStrategy, "setup_distributed", wait)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(
        ConfigError,
        match=r"waited in vain for the other ranks, 1 on 1 machine, at node1:29500: The client socket has timed out "
        r"after 1800000ms\. Start train\.py on each machine of training\.num_nodes, with one MASTER_ADDR",
    ):
        Ranks(cluster_environment=LightningEnvironment()).setup_distributed()
