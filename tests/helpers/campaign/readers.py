"""Every way in which a user's files are read: the three commands with their options, and the loaders.

A reader returns what it saw. It is called with the place and with the name of the store that it reads; its working
directory is the place's own.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from helpers.campaign.place import Place
from iianet.batch import Batch
from iianet.checkpoint import load_published, read_checkpoint
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.errors import FeatureStoreError
from iianet.separator.model import IIANet
from iianet.wording import printable
from iianet_cli import train_cli
from iianet_cli.stores import open_stores
from loaders.datamodule import SeparationData
from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from loaders.streams import StreamData
from shardwriter import build_cli, inspect_cli

Name = tuple[object, ...]
Values = dict[Name, npt.NDArray[Any]]
Main = Callable[[Sequence[str] | None], object]


@dataclass
class Seen:
    """What a reader saw.

    Attributes:
        values: Arrays by name; the last part of a name is an utterance's key, where it is of one.
        text: What was printed and logged.
        code: Exit code of a command, 0 of a loader.
        is_shown: Whether the text reached a terminal as it is; a loader's is its caller's to show.
    """

    values: Values = field(default_factory=dict)
    text: str = ""
    code: object = 0
    is_shown: bool = False


Reader = Callable[[Place, str], Seen]


heard = io.StringIO()
"""What the reader of this moment, or the last one, printed and logged."""


@contextlib.contextmanager
def overheard() -> Any:
    """Catch what is printed and logged inside the block; logging is left as it was."""
    global heard
    root, ours = logging.getLogger(), logging.getLogger("shardwriter")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    text = heard = io.StringIO()
    root.handlers[:] = [logging.StreamHandler(text)]
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def command(main: Main, *words: object) -> Seen:
    """Run a command."""
    seen = Seen(code=None, is_shown=True)
    with overheard() as text:
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            seen.code = end.code
        finally:
            seen.text = text.getvalue()
    return seen


# Loaders


def train(place: Place, store: str) -> Seen:
    """One epoch and a validation, as train.py reads them from a store."""
    used = ["datamodule.data_config.use_precomputed_embeddings=true"]
    return _batches(place, [*used, f"datamodule.data_config.shards={place.store(store)}"])


def train_raw(place: Place, _: str) -> Seen:
    """The same from npz."""
    return _batches(place, ["datamodule.data_config.use_precomputed_embeddings=false"])


def _batches(place: Place, overrides: list[str]) -> Seen:
    seen = Seen()
    with overheard() as text:
        config = place.corpus.config("datamodule.data_config.augment_mouth=false", *overrides)
        source = config.encoder_source()
        data = SeparationData(config, open_stores(config, source), "build-shards ...")
        encoder = LazyEncoder(source)
        for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            for number, batch in enumerate(loader):
                _add(seen, (name, number), batch, encoder.complete(batch))
        seen.text = text.getvalue() + seen.text
    return seen


def _add(seen: Seen, name: Name, batch: Batch, embedding: torch.Tensor | None) -> None:
    count: dict[str, int] = {}
    for row, key in enumerate(batch.keys):
        if batch.weight[row]:
            count[key] = count.get(key, 0) + 1
            own = (*name, count[key], key)
            seen.values["mixture", *own] = batch.mixture[row].numpy()
            seen.values["target", *own] = batch.target[row].numpy()
            if embedding is not None:
                seen.values["embedding", *own] = embedding[row].float().numpy()
    seen.text += "".join(f"dropped: {key}: {reason}\n" for key, reason in batch.dropped)


def embeddings(place: Place, store: str) -> Seen:
    """Every embedding of a store, by ShardedEmbeddings."""
    return _embeddings(place, store, ("train", "val", *(["train_view1"] if store == "int8" else [])))


def _embeddings(place: Place, store: str, splits: Sequence[str]) -> Seen:
    seen = Seen()
    with overheard() as text:
        for split in splits:
            for batch in ShardedEmbeddings(place.store(store), split, batch_size=4, shuffle=False):
                for key, values, frames in zip(batch.keys, batch.embedding, batch.frames, strict=True):
                    seen.values["stored", split, key] = values[:, : int(frames)].float().numpy().copy()
        seen.text = text.getvalue()
    return seen


def stream(place: Place, _: str) -> Seen:
    """One epoch and a validation from tars of others."""
    seen = Seen()
    with overheard() as text:
        words = [str(place.root / "foreign" / f"{split}-*.tar") for split in ("train", "val")]
        words = [str(path) for word in words for path in sorted(Path(word).parent.glob(Path(word).name))]
        data = StreamData(place.corpus.config("datamodule.data_config.trust_imported=true"), words)
        data.prepare_splits()
        for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            for number, batch in enumerate(loader):
                _add(seen, (name, number), batch, batch.embedding)
        seen.text = text.getvalue() + seen.text
    return seen


def weights(place: Place, _: str) -> Seen:
    """A network filled from best_model.pth."""
    path = next(iter((place.here / "Experiments").rglob("best_model.pth")), place.here / "best_model.pth")
    with overheard() as text:
        model = IIANet(**place.corpus.config().audionet.audionet_config.model_dump())
        load_published(model, read_checkpoint(path), path)
    return Seen(
        {("weights", name): value.numpy().copy() for name, value in model.state_dict().items()}, text.getvalue()
    )


# Commands


def inspect(*words: object) -> Reader:
    """inspect-shards with further words."""

    def read(place: Place, store: str) -> Seen:
        return command(inspect_cli.main, place.store(store), *(_filled(place, word) for word in words))

    return read


def inspect_foreign(place: Place, _: str) -> Seen:
    return command(inspect_cli.main, place.root / "foreign" / "train-{000000..000001}.tar")


def build(*words: object, into: str | None = None, splits: Sequence[str] = ("train", "val")) -> Reader:
    """build-shards with further words, and what the store then holds of some splits."""

    def read(place: Place, store: str) -> Seen:
        store = into or store
        own = ["--conf_dir", place.corpus.config_file, "--device", "cpu", "--shards", place.store(store)]
        seen = command(build_cli.main, *own, *(_filled(place, word) for word in words))
        return _then_read(place, store, seen, splits)

    return read


def reindex(place: Place, store: str) -> Seen:
    """inspect-shards --reindex, and what the store then holds."""
    return _then_read(place, store, command(inspect_cli.main, place.store(store), "--reindex"))


def _then_read(place: Place, store: str, seen: Seen, splits: Sequence[str] = ("train", "val")) -> Seen:
    try:
        after = _embeddings(place, store, splits)
        seen.values = after.values
        seen.text += printable(after.text)
    except FeatureStoreError as error:
        seen.text += printable(f"{heard.getvalue()}then: {error}\n")
        seen.code = seen.code or "cannot be read"
    return seen


def resume(place: Place, store: str) -> Seen:
    """train.py --resume last, and the weights that it ends with."""
    own = ["--conf_dir", place.corpus.config_file, "--shards", place.store(store), "--resume", "last"]
    seen = command(train_cli.main, *own, "--set", "training.epochs=2")
    for path in (place.here / "Experiments").rglob("last.ckpt") if seen.code == 0 else ():
        state = torch.load(path, weights_only=True)["state_dict"]
        seen.values = {("weights", name): value.numpy() for name, value in state.items()}
    return seen


def _filled(place: Place, word: object) -> object:
    """CONFIG and OUT stand for places."""
    return {"CONFIG": place.corpus.config_file, "OUT": place.root / "out", "OUT.png": place.root / "out/it.png"}.get(
        str(word), word
    )
