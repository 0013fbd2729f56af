"""Training from tars without an index of ours, by path, brace pattern or URL, through WebDataset's pipeline.

    <key>.embedding.npy, or the only npy                embedding, (512, frames), float16, float32 or int8
    <key>.scale.npy                                     scale of an int8 embedding, (512,), float32
    <key>.mixture.wav and <key>.source.wav, or .flac    audio of one example; or
    <key>.json with the `audio` list of a store         audio of each entry: in <key>.audio.npy, else below data_root

No other member is read, nothing is unpickled, and no command is run: `tar_urls` opens the tars, and not WebDataset. A
shard belongs to one worker of one rank, so the order depends on their numbers; an epoch that is resumed in its middle
starts over.
"""

import io
import logging
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import xxhash
from torch import Tensor
from webdataset import DataPipeline, SimpleShardList, batched, shuffle

from iianet.batch import Batch, Dropped, fit_frames
from iianet.config.data_section import DataConfig
from iianet.config.schema import Config
from iianet.errors import AudioError, ConfigError, ManifestError, StoreError
from iianet.training.epoch_length import limited, refuse_unfit_interval
from loaders.assemble import FLOAT_BYTES, Row, collate, row_bytes
from loaders.audio import Kind, Recording, Segment, read_segment
from loaders.datamodule import RankedData
from loaders.dataset import TimedLoader
from loaders.epochs import EpochDataset, Epochs, Position
from loaders.matching import record_beside, refuse_other_encoder_of_tars
from loaders.mixing import Mixer, dropped, refuse_apart_in_streams
from loaders.read_ahead import Share, worker_share
from loaders.workers import sendable, shared_zeros
from shardwriter.corpus.outside import is_outside
from shardwriter.format.names import AUDIO_MEMBER, METADATA_MEMBER
from shardwriter.format.npy import read_npy
from shardwriter.format.sample import audio_entries, parse_metadata
from shardwriter.storage.tar_samples import RawSample, is_decoded, read_embedding, read_samples, sample_name
from shardwriter.storage.tar_urls import TEST, TRAIN, VAL, is_tars, open_shard, split_tars

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 1000
"""Examples among which each worker draws the next one."""
PROBED_SAMPLES = 8
"""Samples of which one must be fit to train on, else the run does not start."""
STREAM_BATCHES = "datamodule.data_config.stream_batches"


class StreamExample(NamedTuple):
    """A source of a mixture in a sample of a tar: the sample's key and members, and the audio with its length."""

    key: str
    sample: RawSample
    num_samples: int
    source: Recording
    mixture: Recording


def read_examples(sample: RawSample, data_root: Path | None) -> list[StreamExample]:
    """List the examples of a sample. Raises StoreError or AudioError where it has none that can be trained on."""
    key, name = str(sample["__key__"]), sample_name(sample)
    for suffix in ("wav", "flac"):
        source, mixture = sample.get(f"source.{suffix}"), sample.get(f"mixture.{suffix}")
        if source is not None and mixture is not None:
            return [StreamExample(key, sample, min(_length(source, name), _length(mixture, name)), source, mixture)]
    try:
        entries = audio_entries(parse_metadata(sample.get(METADATA_MEMBER, b"{}")))
    except ValueError as error:
        raise StoreError(f"{name}: {METADATA_MEMBER}: {error}") from error
    if not entries:
        raise StoreError(f"{name}: has no audio to train on; expected mixture.wav and source.wav, or an `audio` list")
    lengths = [entry["num_samples"] for entry in entries]
    recordings: Sequence[Recording]
    if AUDIO_MEMBER in sample:
        stored: npt.NDArray[Any] = read_npy(sample[AUDIO_MEMBER], f"{name}: {AUDIO_MEMBER}")
        if stored.shape != (2 * sum(lengths),) or stored.dtype.name not in ("int16", "int32", "float32"):
            expected = f"expected ({2 * sum(lengths)},) int16, int32 or float32, as its json says"
            raise StoreError(f"{name}: {AUDIO_MEMBER} is {stored.shape} {stored.dtype}; {expected}")
        recordings = np.split(stored, np.cumsum(np.repeat(lengths, 2))[:-1])
    else:
        recordings = [_below(data_root, entry[kind], name) for entry in entries for kind in ("source", "mixture")]
    parts = zip(lengths, recordings[::2], recordings[1::2], strict=True)
    return [StreamExample(key, sample, length, source, mixture) for length, source, mixture in parts]


def _length(content: bytes, name: str) -> int:
    try:
        return int(soundfile.info(io.BytesIO(content)).frames)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: its audio cannot be read ({error})") from error


def _below(data_root: Path | None, path: str, name: str) -> Path:
    """Path of a wav: a tar may name none outside the folder that the user named."""
    if data_root is None:
        raise StoreError(f"{name}: its audio is {path}; give --data_root, the folder where such paths start")
    if is_outside(path):
        raise StoreError(f"{name}: its audio is {path}; expected a path below data_root ({data_root})")
    return data_root / path


def with_interferers(examples: Iterable[StreamExample]) -> Iterator[tuple[StreamExample, StreamExample | None]]:
    """Pair each example with the next one of another utterance, the last ones with the one before them.

    Raises ManifestError where all are of one utterance.
    """
    group: list[StreamExample] = []
    before: StreamExample | None = None
    for example in examples:
        if group and example.key != group[0].key:
            yield from ((each, example) for each in group)
            before, group = group[-1], []
        group.append(example)
    if group and before is None:
        raise ManifestError(
            f"{sample_name(group[0].sample)}: dynamic mixing adds a source of another utterance, but the shards that "
            "one worker reads have no other; set datamodule.data_config.train_mixing: static, or use fewer num_workers"
        )
    yield from ((each, before) for each in group)


class StreamDataset(EpochDataset[Batch]):
    """Batches of one split on one rank.

    In training each worker of each rank reads shards of its own. In validation each rank reads all shards and takes its
    rows of every global batch, so that all ranks have equally many batches.

    Attributes:
        batches: Batches of a training epoch on this rank; None is one pass over the shards.
        too_short: Examples that each worker has left out in this epoch as shorter than the segment, `(workers,)`.
    """

    def __init__(
        self, config: Config, split: str, urls: list[str], data_root: Path | None, rank: Share, num_workers: int
    ) -> None:
        self.split, self.urls, self.data_root, self.rank = split, urls, data_root, rank
        self.seed, self.dynamic_mixing = config.training.seed, config.datamodule.dynamic_mixing
        self.options = options = config.datamodule.data_config
        self.batches = options.stream_batches if split == TRAIN else None
        self.num_samples = round(options.segment * options.sample_rate)
        self.mixer = Mixer(read_audio=self._read_audio, num_samples=self.num_samples, normalise=options.normalize_audio)
        self.dim, self.samples_per_frame = config.encoder.dim, options.sample_rate // config.encoder.fps
        self.frames = round(options.segment * config.encoder.fps)
        self.too_short = shared_zeros(max(num_workers, 1))
        self.epochs = Epochs(math.inf if self.batches is None else self.batches)
        self.batch_bytes = options.batch_size * row_bytes(self.num_samples, self.dim * self.frames * FLOAT_BYTES)
        self._worker = Share(number=0, of=1)
        self._dropped: list[Dropped] = []

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("the number of batches is not known")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return sendable(self._batches())

    def _batches(self) -> Iterator[Batch]:
        self._worker = worker_share()
        self._dropped.clear()
        self.too_short[self._worker.number] = 0
        epoch = self.epochs.begin().epoch
        yield from self._training(epoch) if self.split == TRAIN else self._validation()
        if self._dropped and self.batches is None:
            yield self._batch([])

    def _training(self, epoch: int) -> Iterator[Batch]:
        seed = f"{self.seed} {epoch}"
        numbers = random.Random(f"{seed} {self.rank.number} {self._worker.number}")
        rows = DataPipeline(
            SimpleShardList(self.urls, seed=seed),
            lambda shards: islice(shards, self.rank.number, None, self.rank.of),  # its own would trust os.environ
            lambda shards: islice(shards, self._worker.number, None, self._worker.of),
            self._examples,
            shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=numbers),
            lambda examples: self._rows(examples, numbers),
        )
        count = len(range(self._worker.number, self.batches, self._worker.of)) if self.batches else None
        batches = batched(self.options.batch_size, collation_fn=self._batch)
        return islice(batches(rows.repeat() if self.batches else rows), count)

    def _validation(self) -> Iterator[Batch]:
        size = self.options.batch_size
        examples = self._examples(islice(SimpleShardList(self.urls), self._worker.number, None, self._worker.of))
        while group := list(islice(examples, size * self.rank.of)):
            made = [self._row(example) for example in group[self.rank.number * size :][:size]]
            yield self._batch([row for row in made if row is not None])

    def _examples(self, shards: Iterable[dict[str, str]]) -> Iterator[StreamExample]:
        """The examples that are as long as the segment."""
        for sample in read_samples((shard["url"] for shard in shards), select=is_decoded):
            try:
                examples = read_examples(sample, self.data_root)
            except (AudioError, StoreError) as error:
                self._dropped.append(Dropped(str(sample["__key__"]), str(error)))
                continue
            long = [example for example in examples if example.num_samples >= self.num_samples]
            self.too_short[self._worker.number] += len(examples) - len(long)
            yield from long

    def _rows(self, examples: Iterable[StreamExample], numbers: random.Random) -> Iterator[tuple[Row, Tensor]]:
        """Rows of one pass. Raises StoreError where it has none and would be repeated without end."""

        def start(example: StreamExample | None) -> int:
            spare = example.num_samples - self.num_samples if example else 0
            return numbers.randint(0, spare // self.samples_per_frame) if self.options.segment_start == "random" else 0

        found = False
        pairs = with_interferers(examples) if self.dynamic_mixing else ((example, None) for example in examples)
        for example, interferer in pairs:
            row = self._row(example, interferer, start(example), start(interferer))
            if row is not None:
                yield row
            found = found or row is not None
        if self.batches and not found:
            reason = self._dropped[-1].reason if self._dropped else "no example is as long as the segment"
            raise StoreError(
                f"{self.urls[0]}: the shards that a worker of rank {self.rank.number} reads have nothing to train on: "
                f"{reason}. Fix them, or use fewer num_workers"
            )

    def _row(
        self, example: StreamExample, interferer: StreamExample | None = None, start: int = 0, interferer_start: int = 0
    ) -> tuple[Row, Tensor] | None:
        """A row and its embedding, `(512, frames)`; None, and the reason noted, where it cannot be read."""
        try:
            first, second = start * self.samples_per_frame, interferer_start * self.samples_per_frame
            mixed = self.mixer.read(example, first, interferer, second)
            embedding = read_embedding(example.sample, self.dim)
        except (AudioError, StoreError) as error:
            self._dropped.append(dropped(error, example.key, interferer.key if interferer else ""))
            return None
        start = min(start, embedding.shape[1] - 1)
        segment = torch.from_numpy(np.array(embedding[:, start : start + self.frames]))
        return Row(example.key, *mixed), fit_frames(segment, self.frames)

    def _read_audio(self, kind: Kind, example: StreamExample, start: int, num_samples: int) -> Segment:
        recording = example.source if kind == "source" else example.mixture
        return read_segment(recording, start, num_samples, self.options.sample_rate, sample_name(example.sample))

    def _batch(self, made: Sequence[tuple[Row, Tensor]]) -> Batch:
        rows = [row for row, _ in made]
        embeddings = [embedding for _, embedding in made] or [torch.zeros(self.dim, self.frames)]
        lost = tuple(self._dropped)
        self._dropped.clear()
        bytes_read = sum(embedding.nbytes for _, embedding in made)
        return collate(rows, lost, torch.stack(embeddings), self.num_samples, bytes_read)


class StreamLoader(TimedLoader):
    """The loader of a stream, whose position is not saved; `epoch` says which epoch the next iteration is."""

    dataset: StreamDataset

    def __init__(self, dataset: StreamDataset, epoch: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.epoch, self._logged = epoch, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.epochs.seek(Position(self.epoch(), 0))
        examples = 0
        for number, batch in enumerate(super().__iter__(), start=1):
            examples += batch.num_examples
            if number == self.dataset.batches:  # nobody asks for another one
                self._log_too_short()
            yield batch
        self._log_too_short()
        split, url = self.dataset.split, self.dataset.urls[0]
        if not examples and self.dataset.rank.of == 1:
            raise StoreError(
                f"{split}: {url} and further tars have nothing to train on: {self._logged} examples are shorter than "
                "the segment; add longer mixtures or shorten datamodule.data_config.segment"
            )

    def _log_too_short(self) -> None:
        count, split, seconds = int(self.dataset.too_short.sum()), self.dataset.split, self.dataset.options.segment
        if count not in (0, self._logged):
            logger.info("%s: %d examples are shorter than the segment of %g s and left out", split, count, seconds)
        self._logged = count


class StreamData(RankedData):
    """Loaders of the examples in tars, which `words` name by path, brace pattern or URL; see `split_tars`."""

    def __init__(self, config: Config, words: Sequence[str]) -> None:
        super().__init__(config)
        self.urls = split_tars(words, (VAL,) if config.training.test_every_n_epochs is None else (VAL, TEST))

    def prepare_splits(self) -> None:
        """Log what a stream does not promise. Raises FeatureStoreError where no first sample can be trained on."""
        refuse_apart_in_streams(self.config.datamodule)
        for split, urls in self.urls.items():
            open_shard(urls[-1]).close()
            self._refuse_other_layout(split, urls[0])
        urls = [url for split in self.urls.values() for url in split]
        refuse_other_encoder_of_tars(urls, self.config.encoder_source(encodes=False), self.options.trust_imported)
        logger.info(
            "shards that are streamed: %s. The order of a stream depends on the numbers of ranks and workers; an epoch "
            "that is resumed in its middle starts over.",
            ", ".join(f"{split} {len(urls)}" for split, urls in self.urls.items()),
        )

    def order_facts(self) -> dict[str, Any]:
        """What a resumed run must have in common. Raises FeatureStoreError where training does not fit the shards."""
        self._refuse_unfit_training()
        names = "\n".join(sorted(url.rpartition("/")[2] for url in self.urls[TRAIN]))
        return {
            **super().order_facts(),
            "stream": True,
            "global batch": self.options.batch_size * self.world_size,
            "batches in an epoch": self.options.stream_batches,
            "tars": f"{len(self.urls[TRAIN])} of the digest {xxhash.xxh3_64_hexdigest(os.fsencode(names))}",
        }

    def train_dataloader(self) -> StreamLoader:
        """The shards of this rank, shuffled."""
        return self._loader(TRAIN, len(self.urls[TRAIN][self.rank :: self.world_size]))

    def val_dataloader(self) -> StreamLoader:
        """Every example once, as it was mixed."""
        return self._loader(VAL, len(self.urls[VAL]))

    def test_dataloader(self) -> StreamLoader:
        """The same of the test split."""
        return self._loader(TEST, len(self.urls[TEST]))

    def _loader(self, split: str, shards: int) -> StreamLoader:
        options = self.loader_options(shards, "shards")
        urls, data_root = self.urls[split], self._data_root(split)
        rank = Share(number=self.rank, of=self.world_size)
        dataset = StreamDataset(self.config, split, urls, data_root, rank, options["num_workers"])
        return StreamLoader(dataset, lambda: int(self._trainer.current_epoch) if self._trainer else 0, **options)

    def _refuse_unfit_training(self) -> None:
        training, batches, shards = self.config.training, self.options.stream_batches, self.urls[TRAIN]
        if len(shards) < self.world_size:
            raise StoreError(
                f"{shards[0]}: there are {len(shards)} shards and {self.world_size} ranks, and a shard is read by one "
                "rank; write more shards, or train with fewer ranks"
            )
        if batches is not None:
            refuse_unfit_interval(training, limited(batches, training.limit_train_batches, "limit_train_batches"))
        elif self.world_size > 1:
            raise ConfigError(
                f"{STREAM_BATCHES} is not set, and with {self.world_size} ranks an epoch must be equally long on all; "
                f"give the number of batches on each rank, such as --set {STREAM_BATCHES}=1000"
            )
        cures = {"limit_val_batches": "give a count"}
        if batches is None:
            cures["limit_train_batches"] = f"give a count, or set {STREAM_BATCHES}"
            cures["val_check_interval"] = f"set {STREAM_BATCHES}"
        for name, cure in cures.items():
            value = getattr(training, name)
            if isinstance(value, float) or (value is not None and name == "val_check_interval"):
                raise ConfigError(
                    f"training.{name} is {value}, and the length of a stream is not known; leave it out, or {cure}"
                )

    def _data_root(self, split: str) -> Path | None:
        """The configured one, else that of the store whose shards these are."""
        if self.options.data_root is not None:
            return Path(os.path.abspath(self.options.data_root))
        record = record_beside(self.urls[split][0])
        return Path(record.data_root) if record and record.data_root else None

    def _refuse_other_layout(self, split: str, url: str) -> None:
        """Raise StoreError where none of the first samples can be trained on."""
        reason = "it has no sample"
        for sample in islice(read_samples([url], select=is_decoded), PROBED_SAMPLES):
            try:
                read_embedding(sample, self.config.encoder.dim)
                read_examples(sample, self._data_root(split))
                return
            except (StoreError, AudioError) as error:
                reason = str(error)
        raise StoreError(f"{split}: {url}: cannot be trained on: {reason}")


def stream_words(options: DataConfig) -> list[str]:
    """The words of --shards that name tars. Raises ConfigError where stores are named too, or are to be built."""
    named = [options.shards] if isinstance(options.shards, str) else options.shards or []
    streams = [word for word in named if is_tars(word)] if options.use_precomputed_embeddings else []
    if streams and (streams != named or options.build_missing):
        raise ConfigError(
            f"--shards {streams[0]}: tars are read as a stream, beside which there can be no store's folder, and "
            "nothing is built. Name either tars or stores"
        )
    return streams
