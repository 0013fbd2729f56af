"""The LightningDataModule: manifests, stores and order of a config -> one loader a split."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import xxhash

from iianet.batch import Batch
from iianet.config.schema import Config
from iianet.errors import AudioError, ConfigError, ManifestError, MouthError, StoreError
from iianet.launch import usable_cores
from iianet.wording import counted
from loaders.assemble import Assembler
from loaders.audio import EmbeddedAudio, Kind, WavFiles
from loaders.dataset import BatchLoader, ExampleDataset
from loaders.epochs import BEGINNING, Position
from loaders.mixing import Mixer
from loaders.order import Indices, Order
from loaders.read_ahead import ReadAhead
from loaders.split import Split, open_split, recorded_manifests, split_manifests, warn_of_idle_stores
from shardwriter.corpus.groups import groups_of
from shardwriter.corpus.manifest import Manifest, is_listed, manifest_folders
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

NO_TEST = ", or leave training.test_every_n_epochs out"
"""Words that end what is said of a test split that cannot be used."""
PROBED_FILES = 8
"""Files of which one must be fit to train on, else the run does not start."""


class RankedData(pl.LightningDataModule):
    """What stores and streams share: the options of the data, and the rank of this process."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.options = config.datamodule.data_config
        self._said: set[str] = set()  # of training and validation once

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return int(self._trainer.global_rank) if self._trainer else 0

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return int(self._trainer.world_size) if self._trainer else 1

    @property
    def num_nodes(self) -> int:
        """Machines of the run."""
        return int(self._trainer.num_nodes) if self._trainer else 1

    def order_facts(self) -> dict[str, Any]:
        """What decides the order of the examples, for checkpoints; not the ranks, which may change while the global
        batch stays what it is."""
        return {
            "seed": self.config.training.seed,
            "segment": self.options.segment,
            "segment_start": self.options.segment_start,
            "dynamic_mixing": self.config.datamodule.dynamic_mixing,
        }

    def loader_options(self, most_workers: int, unit: str) -> dict[str, Any]:
        """Options of a DataLoader, with num_workers as configured, but no more than there are cores or shards."""
        wanted = self.options.num_workers
        workers = min(wanted, most_workers)
        fact = f"num_workers is {wanted}; there are {most_workers} {unit}, so {workers} are started"
        if workers < wanted and fact not in self._said:
            logger.info("%s", fact)
            self._said.add(fact)
        return {
            "num_workers": workers,
            "pin_memory": self.options.pin_memory and torch.cuda.is_available(),
            "persistent_workers": self.options.persistent_workers and workers > 0,
            "ranks_here": self.world_size // self.num_nodes,
        }

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Send a batch behind the step before it; Lightning would wait until that is done."""
        return batch.to(device, non_blocking=True)

    @property
    def _trainer(self) -> Any:
        return self.trainer


class SeparationData(RankedData):
    """Loaders of a config's training and validation examples, and of those that are tested meanwhile.

    Args:
        config: Configuration of the run.
        snapshots: Opened stores, built with the same settings; none is raw mode.
        build_command: Command that would add missing utterances, for the message about them.
        will_build: Whether they will be added before the first epoch.
        names: Names of the splits to open.
        shortest: Seconds that an example must have, and are read of it; None is the config's segment.
    """

    def __init__(
        self,
        config: Config,
        snapshots: Sequence[Snapshot],
        build_command: str,
        will_build: bool = False,
        names: Sequence[str] = ("train", "val"),
        shortest: float | None = None,
    ) -> None:
        super().__init__(config)
        self._names = tuple(names)
        self._tests_meanwhile = {"train", "test"} <= {*names}
        self._shortest = shortest
        self.snapshots = tuple(snapshots)
        self.build_command = build_command
        self.will_build = will_build
        self._position: dict[str, int] = BEGINNING._asdict()
        self._train_loader: BatchLoader | None = None

    def prepare_splits(self) -> None:
        """Open the splits, and log what is left out or missing.

        Raises FeatureStoreError as `open_split`, or where names do not tell what `mix_apart` asks for.
        """
        assert self.splits
        self._log_groups()

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The opened splits."""
        folders = manifest_folders(self.config)
        if self._tests_meanwhile:
            self._refuse_without_test(folders["test"])
        manifests = split_manifests(self.config, self.snapshots, self._names)
        for split, manifest in manifests.items():
            if not len(manifest.examples):
                named = " and ".join(map(str, folders[split]))
                raise ManifestError(
                    f"{split}: there are no examples: {named} lists none, or is not on this machine and the "
                    "store has no such split. Fix the folder in the config, or build the split"
                    f"{NO_TEST if split == 'test' and self._tests_meanwhile else ''}."
                )
        opened = {
            split: open_split(
                self.config, self.snapshots, manifest, self.build_command, self.will_build, self._shortest
            )
            for split, manifest in manifests.items()
        }
        warn_of_idle_stores(opened.values())
        for one in opened.values():
            self._refuse_unusable(one)
        if self._tests_meanwhile:
            self._refuse_skipped_test(opened["test"])
        return opened

    def reopen(self, snapshots: Sequence[Snapshot]) -> None:
        """Read from these stores from now on, to which missing utterances were added."""
        self.snapshots = tuple(snapshots)
        self.will_build = False
        del self.splits
        vars(self).pop("_groups", None)

    def train_dataloader(self) -> BatchLoader:
        """Permuted epochs, the last incomplete global batch left out."""
        self._train_loader = self._loader("train", Position(**self._position))
        return self._train_loader

    def val_dataloader(self) -> BatchLoader:
        """Every example once, in hash order."""
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        """The same of the test split."""
        return self._loader("test")

    def state_dict(self) -> dict[str, int]:
        """Position of training. The Trainer restores loaders itself, but only within an epoch."""
        return self._train_loader.state_dict() if self._train_loader else self._position

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the training loader resume there."""
        self._position = dict(state_dict)

    def order_facts(self) -> dict[str, Any]:
        """See `RankedData.order_facts`."""
        return {
            **super().order_facts(),
            **{f"{split} manifest": self.splits[split].manifest.digest() for split in ("train", "val")},
            "block_size": self.options.block_size,
            "window_blocks": self.options.window_blocks,
            "order_lanes": self.options.order_lanes,
            "views": self.splits["train"].views,
            **self._group_facts(),
        }

    def order(self, split: str) -> Order:
        """Order of a split: training is permuted, validation is not. Raises ManifestError where there is no batch."""
        opened, training = self.splits[split], split == "train"
        order = Order(
            utterance_of_example=opened.manifest.utterance_of_example(),
            eligible=opened.eligible,
            seed=self.config.training.seed,
            batch_size=self.options.batch_size,
            world_size=self.world_size,
            shuffle=training,
            dynamic_mixing=training and self.config.datamodule.dynamic_mixing,
            drop_last=training,
            block_size=self.options.block_size,
            window_blocks=self.options.window_blocks,
            lanes=self._lanes if training else 1,
            views=opened.views,
            spare_frames=opened.spare_frames if training and self.options.segment_start == "random" else None,
            group_of_example=self._group_of_example() if training else None,
        )
        if order.num_batches == 0:
            raise ManifestError(
                f"{split}: {len(order.eligible)} examples do not fill one batch of {order.batch_size} on each of "
                f"{order.world_size} ranks; lower datamodule.data_config.batch_size"
            )
        return order

    def assembler(self, split: str, order: Order) -> Assembler:
        """What makes the batches of a split in an order."""
        opened, encoder = self.splits[split], self.config.encoder
        return Assembler(
            split=opened,
            order=order,
            mixer=Mixer(
                read_audio=self._audio(opened).read,
                num_samples=opened.num_samples,
                normalise=self.options.normalize_audio,
            ),
            frames=opened.num_samples // opened.samples_per_frame,
            context_frames=encoder.context_frames,
            dim=encoder.dim,
            skip_missing=opened.stored is not None and self.options.on_missing == "skip",
            augment_mouth=split == "train" and opened.stored is None and self.options.augment_mouth,
        )

    def read_ahead(self, opened: Split) -> ReadAhead:
        """What reads the shards of a split before its embeddings are needed; there are none in raw mode."""
        files, give_up = (opened.stored.files, opened.stored.give_up) if opened.stored else ([], None)
        return ReadAhead(files, self.options.read_ahead_windows, give_up)

    def _loader(self, split: str, start: Position = BEGINNING) -> BatchLoader:
        assembler, ahead = self.assembler(split, self.order(split)), self.read_ahead(self.splits[split])
        return BatchLoader(
            ExampleDataset(assembler, self.rank, ahead, start=start, advances=split == "train"),
            **self.loader_options(usable_cores(), "cores"),
        )

    @cached_property
    def _groups(self) -> Indices | None:
        """Group of each training utterance that is mixed apart, `(utterances,)`; None where any two may be mixed."""
        whose, names = self.options.mix_apart, self.options.utterance_names
        is_mixed = "train" in self._names and self.config.datamodule.dynamic_mixing
        if whose is None or names is None or not is_mixed:
            return None
        return groups_of(self.splits["train"].manifest, whose, names)

    def _group_of_example(self) -> Indices | None:
        return None if self._groups is None else self._groups[self.splits["train"].manifest.utterance_of_example()]

    def _group_facts(self) -> dict[str, Any]:
        """What of `mix_apart` decides the order; nothing where it is not set, as in checkpoints of before."""
        if self._groups is None:
            return {}
        digest = xxhash.xxh3_64_hexdigest(self._groups.astype("<i8").tobytes())
        return {"mix_apart": f"{self.options.mix_apart}, groups of the digest {digest}"}

    def _log_groups(self) -> None:
        if self._groups is not None:
            count, whose = len(np.unique(self._groups)), self.options.mix_apart
            logger.info("train: mixes no two utterances of one %s; there are %s", whose, counted(count, f"{whose}"))

    def _audio(self, opened: Split) -> WavFiles | EmbeddedAudio:
        manifest, stored = opened.manifest, opened.stored
        wavs = self._wavs(opened)
        if stored is None or stored.centre.audio_offsets is None:
            return wavs
        root = manifest.data_root if len(self.snapshots) == 1 else None
        recorded = recorded_manifests(self.config, self.snapshots, manifest.split, root, complete=True)
        return EmbeddedAudio(manifest, stored, recorded, wavs)

    def _refuse_without_test(self, folders: Sequence[Path]) -> None:
        """Raise ManifestError where nothing can say what the test split is."""
        if not self.snapshots and not is_listed(folders):
            named = " and ".join(map(str, folders))
            raise ManifestError(
                f"test: training.test_every_n_epochs is {self.config.training.test_every_n_epochs}, and {named} has no "
                f"mix.json; correct datamodule.data_config.test_dir{NO_TEST}"
            )

    def _refuse_skipped_test(self, opened: Split) -> None:
        """Raise StoreError where nothing of the test split would be left."""
        if self.options.on_missing == "skip" and len(opened.missing) == len(opened.used):
            raise StoreError(
                f"test: {self.snapshots[0].storage.name} holds none of its {len(opened.used)} utterances, and "
                f"--on_missing is skip; build them: {self.build_command}{NO_TEST}"
            )

    def _refuse_unusable(self, opened: Split) -> None:
        """Raise ManifestError where none of the first npz or wavs that a split reads can be used."""
        manifest, stored, wavs = opened.manifest, opened.stored, self._wavs(opened)
        if stored is None:
            mouths = manifest.utterances.column("mouth")
            paths = (manifest.data_root / str(mouths[row]) for row in opened.used[:PROBED_FILES].tolist())
            _refuse_all(manifest, "npz", (partial(read_mouth_npz, path) for path in paths), "make the npz again")
        if stored is None or stored.centre.audio_offsets is None:
            cure = f"convert the wavs, such as with ffmpeg -i IN.wav -ar {self.options.sample_rate} -ac 1 OUT.wav"
            is_mixed = manifest.split == "train" and self.config.datamodule.dynamic_mixing
            kinds: tuple[Kind, ...] = ("source",) if is_mixed else ("source", "mixture")
            for kind in kinds:
                examples = opened.eligible[:PROBED_FILES].tolist()
                readers = (partial(wavs.read, kind, example, 0, opened.num_samples) for example in examples)
                _refuse_all(manifest, "wavs", readers, cure)

    def _wavs(self, opened: Split) -> WavFiles:
        return WavFiles(opened.manifest, self.options.sample_rate)

    @property
    def _lanes(self) -> int:
        lanes, nodes = self.options.order_lanes, self.num_nodes
        if lanes > 1 and lanes % nodes:
            raise ConfigError(
                f"datamodule.data_config.order_lanes is {lanes}, and there are {nodes} nodes; expected a multiple of "
                "the nodes, so that each reads its own part of the shards"
            )
        return lanes


def _refuse_all(manifest: Manifest, what: str, readers: Iterable[Callable[[], object]], cure: str) -> None:
    """Raise ManifestError where none of some files can be read: that is no bad file, but a wrong folder or format."""
    problems = []
    for read in readers:
        try:
            read()
            return
        except (AudioError, MouthError) as error:
            problems.append(str(error))
    raise ManifestError(
        f"{manifest.split}: none of the first {len(problems)} {what} can be used, e.g. {problems[0]}. Relative paths "
        f"start at {manifest.data_root}: give the right folder with --data_root; or {cure}"
    )
