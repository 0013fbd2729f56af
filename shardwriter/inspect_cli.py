"""The command inspect-shards."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("shardwriter.inspect_cli")()

import argparse
from pathlib import Path

from iianet.command_line import Parser, add_override_flags, at_least_one, command, config_overrides
from iianet.config.schema import Config, load_config
from iianet.errors import ConfigError, StoreError
from iianet.launch import choose_device
from iianet.paths import expand_word
from iianet.terminal import say
from shardwriter.format.names import parse_view_split
from shardwriter.inspect.compare import compare, compare_encoder, corpus_manifests, show_comparisons
from shardwriter.inspect.export_embeddings import export_embeddings
from shardwriter.inspect.foreign import read_foreign
from shardwriter.inspect.inspected import InspectedStore, choose_evenly
from shardwriter.inspect.plot import draw, drawing_of
from shardwriter.inspect.recheck import recheck
from shardwriter.inspect.reindex import reindex
from shardwriter.inspect.report import Section, as_json, as_text, problems_of
from shardwriter.inspect.sample import Sample, find_samples, read_sample, show_samples
from shardwriter.inspect.summary import build_command, summarise
from shardwriter.inspect.verify import verify
from shardwriter.storage.locate import Cache, open_storage
from shardwriter.storage.tar_urls import expand, is_tars

FINE = 0
PROBLEMS = 1
PLOTTED = 3
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Show what a store holds, look at a sample, compare it with the corpus, verify every byte. Exit "
        "codes: 0 fine, also where a build is not finished yet; 1 problems found: what was built is damaged or gone, "
        "or something that was asked for has failed; 2 not a store or could not start.",
    )
    parser.add_argument(
        "store",
        type=expand_word,
        metavar="STORE",
        help="store folder or its URL, such as s3://bucket/prefix; or shards made by others: a tar, "
        "'DIR/train-{000000..000003}.tar', or the same by http or https",
    )
    parser.add_argument("--key", metavar="KEY", help="show one sample, by its key or its utterance's name")
    parser.add_argument("--verify", action="store_true", help="read every shard whole and check it against its index")
    parser.add_argument(
        "--plot", type=expand_word, metavar="FILE.png", help=f"draw {PLOTTED} utterances, or the one of --key"
    )
    parser.add_argument(
        "--export_embeddings",
        type=expand_word,
        metavar="DIR",
        help="write the embeddings below DIR as xxx_embedding.npz, in float32",
    )
    parser.add_argument(
        "--reindex",
        action="store_true",
        help="first make store.json, plans and indexes anew from the tars of a store that has lost them; in a folder",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs, and nothing else, on stdout")
    parser.add_argument(
        "--cache_dir",
        type=expand_word,
        metavar="DIR",
        help="where a store behind a URL is copied to (default: ~/.cache/iianet-shards)",
    )
    corpus = parser.add_argument_group("comparing with the corpus")
    corpus.add_argument(
        "--against", type=expand_word, metavar="CONFIG", help="list what the store lacks of the corpus of a YAML config"
    )
    corpus.add_argument("--recheck", type=at_least_one, metavar="N", help="with --against: encode N utterances again")
    corpus.add_argument(
        "--device", help="of --recheck: cpu, cuda or cuda:N (default: the first GPU where there is one)"
    )
    add_override_flags(corpus)
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    if not arguments.reindex and is_tars(arguments.store):
        _refuse_store_flags(arguments)
        sections = [read_foreign(expand(arguments.store))]
    else:
        _check_flags(arguments)
        if arguments.reindex:
            reindex(arguments.store, _own_root(arguments))
        storage = open_storage(arguments.store, Cache.at(arguments.cache_dir))
        sections = _sections(InspectedStore.open(storage), arguments)
    say(as_json(sections) if arguments.json else as_text(sections))
    return PROBLEMS if problems_of(sections) else FINE


def _refuse_store_flags(arguments: argparse.Namespace) -> None:
    names = ("key", "verify", "plot", "export_embeddings", "against", "recheck", "device", "data_root")
    given = [f"--{name}" for name in names if getattr(arguments, name)] + ["--set"] * bool(arguments.overrides)
    if given:
        raise ConfigError(f"{given[0]}: works on a store's folder; tars can be shown and nothing more")


def _check_flags(arguments: argparse.Namespace) -> None:
    for name, flag in (("recheck", "--recheck"), ("overrides", "--set")):
        if getattr(arguments, name) and arguments.against is None:
            raise ConfigError(f"{flag}: needs --against CONFIG, which says where weights and corpus are")
    if arguments.export_embeddings is not None and arguments.key is not None:
        raise ConfigError("--export_embeddings: writes all utterances of a store; leave --key out")
    if arguments.plot is not None and Path(arguments.plot).suffix not in PICTURE_SUFFIXES:
        raise ConfigError(f"--plot {arguments.plot}: expected a file name with one of {', '.join(PICTURE_SUFFIXES)}")


def _sections(store: InspectedStore, arguments: argparse.Namespace) -> list[Section]:
    config = load_config(arguments.against, config_overrides(arguments)) if arguments.against else None
    manifests = corpus_manifests(store, config) if config is not None else {}
    compared = compare(store, manifests, config.datamodule.data_config.frame_tolerance) if config is not None else None
    sections = [summarise(store, compared)] if arguments.key is None else []  # one sample needs no count of all
    if not arguments.verify:  # which says the same of files, and more
        sections.append(Section(problems=store.problems))
    samples: list[Sample] = []
    if arguments.key is not None:
        try:
            samples = find_samples(store, arguments.key)
        except StoreError as error:
            sections.append(Section(problems=[str(error)]))
        sections.append(show_samples(samples))
    if compared is not None:
        sections.append(show_comparisons(compared, _build_command(store, arguments)))
    if config is not None:
        sections.append(compare_encoder(store, config))
    if config is not None and arguments.recheck is not None:
        source, device = config.encoder_source(), choose_device(arguments.device)
        sections.append(recheck(store, manifests, source, device, arguments.recheck))
    if arguments.verify:
        sections.append(verify(store))
    if arguments.export_embeddings is not None:
        sections.append(export_embeddings(store, Path(arguments.export_embeddings)))
    if arguments.plot is not None:
        sections.append(_plot(store, arguments, samples, _data_root(store, config, arguments)))
    return sections


def _build_command(store: InspectedStore, arguments: argparse.Namespace) -> str:
    """How to build what is missing, with the flags that were given here."""
    flags = ["--data_root", arguments.data_root] if arguments.data_root else []
    for group in arguments.overrides:
        flags += ["--set", *group]
    return build_command(store, arguments.against, flags)


def _data_root(store: InspectedStore, config: Config | None, arguments: argparse.Namespace) -> Path | None:
    given = config.datamodule.data_config.data_root if config is not None else _own_root(arguments)
    return Path(given) if given is not None else store.snapshot.data_root


def _own_root(arguments: argparse.Namespace) -> str | None:
    """The folder that --data_root means where no config reads the flag."""
    return None if arguments.data_root is None else expand_word(arguments.data_root)


def _plot(
    store: InspectedStore, arguments: argparse.Namespace, samples: list[Sample], data_root: Path | None
) -> Section:
    """Draw the samples of --key, else some utterances; views are drawn by their key alone."""
    if arguments.key is None:
        splits = [split for split in store.splits if not parse_view_split(split)[1]]
        stored = [(split, key) for split in splits for key in store.stored(split)]
        if not stored:
            return Section(problems=[f"--plot: {store.name} holds no utterance to draw"])
        try:
            samples = [read_sample(store, store.entry(*item)) for item in choose_evenly(stored, PLOTTED)]
        except StoreError as error:
            return Section(problems=[str(error)])
    chosen = [sample for sample in samples if sample.embedding is not None]
    if not chosen:
        return Section()
    path = Path(arguments.plot)
    draw([drawing_of(sample, store.identity.fps, data_root) for sample in chosen], path)
    return Section(text=f"picture: {path}")


main = command(_run, "inspect-shards")
"""Start the command."""
