"""The datamodule section: where the corpus lies, what an example is, and how examples are read."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from iianet.config.fields import Count, Few, Name, NotNegative, PathName, PathNames, Real, Section, Whole, only
from iianet.config.problems import raise_problems
from iianet.config.utterance_names import Whose, names_problem

ONE_TARGET = "each mixture has one target speaker, and the reference never ran with another number; set n_src: 1"
ONE_RATE = (
    "mouths have 25 frames a second and a frame spans 640 samples, which is so at 16 kHz alone; "
    "resample the wavs and set sample_rate: 16000"
)
DYNAMIC_NAMES = {"AVSpeechDyanmicDataModule", "AVSpeechDynamicDataModule"}
"""Names that stand for dynamic mixing: as the published configs spell it, and as it was meant."""


class EmbeddingAugmentation(Section):
    """Light augmentation of embeddings while training; all of it is off by default."""

    time_mask: Whole = 0
    """Longest run of frames that is set to zero."""
    channel_dropout: Annotated[NotNegative, Field(lt=1)] = 0.0
    """Share of the channels that are set to zero."""
    noise: NotNegative = 0.0
    """Standard deviation of added noise, as a share of the embedding's own."""


class DataConfig(Section):
    """The corpus and how it is read. From `shards` on the keys are ours."""

    train_dir: PathNames
    """Folder of the training split's mix.json, s1.json and s2.json; a list of folders joins several corpora.

    Like all paths of a config it starts at the working directory; the paths in the lists start at `data_root`.
    """
    valid_dir: PathNames
    """Folder of the validation split's mix.json, s1.json and s2.json, or a list of folders."""
    test_dir: PathNames
    """Folder of the test split's mix.json, s1.json and s2.json, or a list of folders."""
    n_src: Annotated[Count, only(1, ONE_TARGET)] = 1
    sample_rate: Annotated[Count, only(16000, ONE_RATE)] = 16000
    segment: Annotated[Real, Field(gt=0)] = 2.0
    """Length of a training example, seconds: a whole number of mouth frames."""
    normalize_audio: bool = False
    batch_size: Count = 3
    """Examples in a batch of one rank."""
    num_workers: Few = 4
    """Loader workers of one rank; 0 loads in the training process."""
    pin_memory: bool = True
    persistent_workers: bool = False
    use_precomputed_embeddings: bool = False
    """Read embeddings from a store, as in the configs of an earlier tool; `shards` says from which."""
    shards: PathNames | None = None
    """Folder or URL of the store that `build-shards` wrote; or several, built with the same settings; null reads raw
    mouths."""
    cache_dir: PathName | None = None
    """Where stores behind a URL are copied to; null is iianet-shards in $XDG_CACHE_HOME, or in ~/.cache."""
    cache_gb: Annotated[Real, Field(gt=0)] = 100.0
    """Gigabytes of shards of each such store that are kept there."""
    data_root: PathName | None = None
    """Folder below which the paths of the manifests lie; null uses their common ancestor."""
    allow_outside_root: bool = False
    """Read files outside `data_root` too where a store's own audio lists name them; for stores that you trust."""
    key_from: Literal["stem", "path"] = "stem"
    """What an utterance's key is made of: its npz file's stem, or its path below `data_root`."""
    frame_tolerance: Whole = 1
    """Frames by which a mouth may be longer or shorter than its audio before it is listed."""
    train_mixing: Literal["dynamic", "static"] | None = None
    """Mix training sources anew each epoch, or use the manifest's mixtures; null follows `data_name`."""
    mix_apart: Whose | None = None
    """What two sources that dynamic mixing adds may never share, as in the published mixtures: a video, or a speaker;
    null adds any two utterances. `utterance_names` says how to tell."""
    utterance_names: Name | None = None
    """How the names of mouths tell the video or the speaker, for `mix_apart`: as those of lrs2, lrs3 (the video alone)
    or vox2; or a regular expression with a group `(?P<video>...)` or `(?P<speaker>...)`, which is searched for in the
    path of each mouth below `data_root`, without .npz."""
    augment_mouth: bool = True
    """Crop and flip training mouths at random where they are read raw, as the reference does."""
    on_missing: Literal["encode", "skip", "error"] = "encode"
    """What to do with an utterance missing from the store: encode it on the fly, skip it, or stop."""
    build_missing: bool = False
    """Add missing utterances to the store before the first epoch, on the devices of all ranks."""
    trust_imported: bool = False
    """Use imported embeddings, whose encoder is not recorded, as if this config's had made them."""
    segment_start: Literal[0, "random"] = 0
    """Where in a training example its segment begins: at 0, as in the reference, or at a random mouth frame."""
    views: Few | None = None
    """Augmented views that training draws from, beside the centre crop; null uses all that the store has."""
    embedding_augmentation: EmbeddingAugmentation = EmbeddingAugmentation()
    """Light augmentation of embeddings while training."""
    block_size: Count = 1000
    """Utterances read together: one shard's worth."""
    window_blocks: Count = 16
    """Blocks whose examples are shuffled together; a batch comes from most of them."""
    order_lanes: Count = 1
    """Parts of the training set that are shuffled apart, so that each node reads its own: a multiple of the nodes."""
    stream_batches: Count | None = None
    """Batches of an epoch and rank, where `shards` names tars instead of a store; null is one pass, on one rank."""
    read_ahead_windows: Whole = 1
    """Windows whose shards are read before they are needed, and checked once a run; 0 does neither."""

    @field_validator("segment", mode="before")
    @classmethod
    def _has_length(cls, value: Any) -> Any:
        if value is None:
            raise ValueError(
                "found null, which is for full-length items, and those come with evaluation; "
                "give the length of training examples in seconds, such as segment: 2.0"
            )
        return value

    @model_validator(mode="after")
    def _tells_what_is_mixed_apart(self) -> "DataConfig":
        problem = names_problem(self.utterance_names, self.mix_apart) if self.mix_apart else None
        raise_problems({"utterance_names": problem} if problem else {})
        return self


class DatamoduleSection(Section):
    """The corpus, and by its name how the training set is mixed."""

    data_name: Literal["AVSpeechDyanmicDataModule", "AVSpeechDynamicDataModule", "AVSpeechDataModule"] = (
        "AVSpeechDyanmicDataModule"
    )
    data_config: DataConfig
    """Where the corpus lies: at least train_dir, valid_dir and test_dir."""

    @property
    def dynamic_mixing(self) -> bool:
        """Whether training sources are mixed anew in each epoch."""
        if self.data_config.train_mixing is None:
            return self.data_name in DYNAMIC_NAMES
        return self.data_config.train_mixing == "dynamic"


def segment_problem(segment: float, fps: int) -> str | None:
    """What is wrong with a segment that is no whole number of mouth frames; None where it is one.

    Args:
        segment: Length of an example, seconds.
        fps: Mouth frames per second.
    """
    frames = segment * fps
    if math.isclose(frames, round(frames), rel_tol=1e-9):
        return None
    below = max(math.floor(frames), 1)
    near = " or ".join(f"{count / fps:g}" for count in (below, below + 1))
    return (
        f"found {segment}, which is {frames:.10g} mouth frames at {fps} a second, expected a whole number of them; set "
        f"segment to {near}"
    )
