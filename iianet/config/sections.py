"""The sections on networks, losses, the training run, the store's build and the experiment.

Keys, spellings and defaults are those of the reference's configs (JusperLee/IIANet) unless a class says otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from iianet.config.fields import (
    Batches,
    Compilation,
    Count,
    Few,
    Name,
    NotNegative,
    PathName,
    Real,
    Section,
    Seed,
    Whole,
    only,
)
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.registry import encoder_problem
from iianet.wording import show

SdrType = Literal["pairwise_neg_snr", "pairwise_neg_sisdr", "pairwise_neg_sdsdr"]


class AudionetConfig(Section):
    """Sizes of the separator."""

    out_channels: Count = 128
    in_channels: Count = 512
    vpre_channels: Count = 512
    """Rows of an embedding: as many as the encoder of the videonet section gives."""
    vin_channels: Count = 64
    vout_channels: Count = 64
    num_blocks: Count = 16
    upsampling_depth: Count = 5
    enc_kernel_size: Count = 1
    """Kernel of the audio encoder, milliseconds."""
    num_sources: Annotated[Count, only(1, "each mixture has one target speaker; set num_sources: 1")] = 1


class AudionetSection(Section):
    """The separator."""

    audionet_name: Literal["IIANet"] = "IIANet"
    audionet_config: AudionetConfig = AudionetConfig()


class VideonetConfig(Section):
    """Weights of the frozen encoder, and how it computes. From `seed` on the keys are ours.

    `memory_format` and `max_frames` change speed and memory, and the last bits of embeddings. They are for new stores
    and for raw mode: a store records its settings, and what is encoded for it later is encoded with them.
    """

    pretrain: PathName | None = None
    """File with the published weights; null draws random ones, which serve for trying things out only."""
    relu_type: Literal["prelu"] = "prelu"
    seed: Seed = 0
    """Seed of the random weights that a null `pretrain` stands for."""
    precision: Literal["float32", "bf16"] | None = None
    """Arithmetic of the encoder; null is that of the store, or float32 where there is none."""
    memory_format: Literal["contiguous", "channels_last"] | None = None
    """Layout of the encoder's features; null is the default of the device, channels_last on CPUs and on CUDA."""
    max_frames: Count | None = None
    """Frames that the encoder takes at a time, which bounds its memory, about 2 MB a frame; null is the default of the
    device, 32 on CPUs and 1024 on CUDA."""
    crop_rows: Annotated[Count, Field(le=CROP_SIZE)] = CROP_SIZE
    """Rows of the 88 x 88 crop that the encoder sees, from the top. The published IIANet networks were trained and
    tested with 50, as the reference cuts rows where it means frames."""


class VideonetSection(Section):
    """The encoder of mouths. The published one is the lip encoder ResNetVideoModel."""

    videonet_name: str = "ResNetVideoModel"
    """Name of an encoder in `iianet.encoder.registry`."""
    videonet_config: VideonetConfig = VideonetConfig()

    @field_validator("videonet_name")
    @classmethod
    def _known_name(cls, value: str) -> str:
        problem = encoder_problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value


class LossOptions(Section):
    """How the permutation-invariant loss pairs estimates with sources."""

    pit_from: Literal["pw_mtx"] = "pw_mtx"
    threshold_byloss: bool = False
    perm_reduce: None = None


class TrainLoss(Section):
    """The loss that is minimised."""

    loss_func: Literal["PITLossWrapper"] = "PITLossWrapper"
    sdr_type: SdrType = "pairwise_neg_snr"
    config: LossOptions = LossOptions()


class ValLoss(TrainLoss):
    """The loss that validation reports, and that scheduler, early stopping and checkpoints follow."""

    sdr_type: SdrType = "pairwise_neg_sisdr"


class LossSection(Section):
    """Both losses."""

    train: TrainLoss = TrainLoss()
    val: ValLoss = ValLoss()


class EarlyStop(Section):
    """When to stop before the last epoch."""

    monitor: Literal["val_loss/dataloader_idx_0"] = "val_loss/dataloader_idx_0"
    """Validation loss, the one figure that can be monitored, under its published name."""
    mode: Literal["min", "max"] = "min"
    patience: Whole = 20
    verbose: bool = True


class TrainingSection(Section):
    """The training run. From `gradient_clip_val` on the keys are ours, with the values that the reference fixes."""

    system: Literal["AudioVisualLightningModule"] = "AudioVisualLightningModule"
    gpus: list[Whole] | Whole | None = None
    """GPUs to use: their numbers, how many, or null for one if there is any."""
    parallel: Literal["ddp"] = "ddp"
    epochs: Count = 500
    early_stop: EarlyStop | None = EarlyStop()
    gradient_clip_val: NotNegative = 5.0
    """Largest gradient norm of a step; larger gradients are scaled down to it, and 0 scales none."""
    save_top_k: Annotated[int, Field(ge=-1)] = 5
    """Best checkpoints kept; -1 keeps every epoch's."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of the examples."""
    loggers: list[Literal["tensorboard", "csv", "wandb"]] = Field(default=["tensorboard", "csv"])
    """Where metrics go; an empty list logs nowhere."""
    log_every_n_steps: Count = 50
    """Training steps from one logged loss to the next."""
    num_nodes: Count = 1
    """Machines that train together, each with the devices of `gpus`; start train.py on each of them, under Slurm or
    torchrun, which set its rank."""
    accumulate_grad_batches: Count = 1
    """Batches whose gradients make one optimizer step; an epoch's last step may have fewer."""
    limit_train_batches: Batches | None = None
    """Batches of an epoch, or their share of all; null uses all."""
    limit_val_batches: Batches | None = None
    """Batches of a validation, or their share of all; null uses all."""
    val_check_interval: Batches | None = None
    """Batches, or the share of an epoch, from one validation to the next; null validates once at its end. Early
    stopping and the best checkpoints use every validation. The scheduler is stepped once an epoch, by its last
    validation, which the loss curves show too."""
    test_every_n_epochs: Count | None = None
    """Epochs from one run of the test split (test_dir) through the network to the next: with 10, after epochs 0, 10, 20
    and so on, as in the reference. Its figure is logged beside that of validation, and decides nothing; null never
    opens the split."""
    checkpoint_every_n_steps: Count | None = None
    """Optimizer steps from one save of last.ckpt to the next, to survive kill -9 with little lost; null saves it after
    validation only. SIGTERM always saves it."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the separator's steps, in Lightning's names. Mixed keeps weights and optimizer in float32; the lip
    encoder always uses the store's. 16-mixed needs a GPU."""
    tf32: bool = False
    """Let a GPU round the factors of products and convolutions in float32 to 10 bits, which takes less time. The lip
    encoder never does."""
    cudnn_benchmark: bool = False
    """Let cuDNN try its kernels at the first step and keep the fastest. Results then differ in their last bits from run
    to run."""
    checkpoint_activations: bool = False
    """Keep of each iteration of the separator what goes into it alone, and compute the rest once more in backward: less
    memory for more time, and the same results."""
    compile: Compilation = False
    """Compile the separator with torch.compile: the first steps take minutes. With cuda_graphs, a GPU also records the
    kernels of each iteration once and then starts them together. Checkpoints are the same either way."""

    @field_validator("gpus", mode="before")
    @classmethod
    def _devices(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list) else [value]
        if value is None or all(type(number) is int and 0 <= number < 1000 for number in numbers):
            return value
        raise ValueError(
            f"found {show(value)}, expected a list of device numbers such as [0, 1], a count, or null for one GPU if "
            "there is any; for all GPUs give their count"
        )


class ShardwriterSection(Section):
    """How `build-shards` makes a store. All of this section is ours."""

    dtype: Literal["float16", "float32", "int8"] = "float16"
    """Type in which embeddings are stored; float16 takes half the bytes of float32, and int8 about 60 % of those of
    float16 for clips of 2 s."""
    audio: Literal["path", "embed"] = "path"
    """Whether samples say where their wavs lie, or hold them; changed wavs are noticed in neither case."""
    views: Few = 0
    """Augmented views of each training utterance, stored beside its centre crop."""
    utterances_per_shard: Count = 1000
    """Utterances in a shard; the last one of a plan may have fewer."""
    batch_size: Count = 32
    """Clips encoded together."""
    num_workers: Annotated[Few, Field(gt=0)] = 2
    """Threads that read mouth npz files ahead of the encoder."""
    keep_replaced_days: Annotated[Real, Field(ge=0, le=36_500)] | None = None
    """Days for which shards replaced by --overwrite or --compact are kept, for runs that still read them.

    null: 7 behind a URL, where readers cannot be seen; in a folder as long as they are read.
    """


class ExpSection(Section):
    """The experiment."""

    exp_name: Name
    """Name of the experiment and of its output folder."""

    @field_validator("exp_name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if value in {".", ".."} or any(separator in value for separator in "/\\"):
            raise ValueError(f"found {show(value)}, expected the name of one folder, without / or \\")
        return value
