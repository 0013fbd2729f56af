"""What --check expects a build to take, against what it took."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.builds import CPU, build_store, opened
from helpers.corpus import Corpus, make_corpus
from helpers.tiny_encoder import TinyEncoder

from iianet.encoder.registry import ENCODERS
from shardwriter.build.build import prepare
from shardwriter.build.check import count_frames, stored_bytes
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 12, "val": 4}, frames=50)


@dataclass
class Estimate:
    """What a build of a corpus into a store is expected to take."""

    corpus: Corpus
    store: Path
    options: BuildOptions
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        made = prepare(self.corpus.config(*self.overrides), Folder(self.store), self.options)
        found, self.identity = made.survey(), made.identity
        self.count = sum(difference.count for difference in found.values())
        self.frames = sum(count_frames(difference, self.identity.fps) for difference in found.values())
        self.size = sum(stored_bytes(split, difference, self.identity) for split, difference in found.items())


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("audio", ["path", "embed"])
@pytest.mark.parametrize("views", [0, 2])
def test_bytes_are_near_those_of_the_store(corpus: Corpus, tmp_path: Path, dtype: str, audio: str, views: int) -> None:
    options = BuildOptions(splits=SPLITS, device=CPU, dtype=dtype, audio=audio)
    found = Estimate(corpus, tmp_path, options, (f"shardwriter.views={views}",))
    report = build_store(corpus, tmp_path, f"shardwriter.views={views}", splits=SPLITS, dtype=dtype, audio=audio)
    assert found.count == sum(report.stored.values()) == 16 + 12 * views
    assert found.frames == 50 * found.count
    held = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert held == pytest.approx(found.size, rel=0.2)


def test_complete_store_takes_nothing_more(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path, splits=SPLITS, audio="embed")
    found = Estimate(corpus, tmp_path, BuildOptions(splits=SPLITS, device=CPU))
    assert found.identity == opened(tmp_path).identity and found.identity.audio == "embed"
    assert found.count == found.frames == found.size == 0
    assert Estimate(corpus, tmp_path, BuildOptions(splits=SPLITS, device=CPU, overwrite=True)).count == 16


def test_frames_are_counted_by_the_frame_rate_of_the_encoder(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyEncoder, "fps", 50)
    monkeypatch.setitem(ENCODERS, TinyEncoder.name, TinyEncoder)
    tiny = ("videonet.videonet_name=TinyEncoder", "audionet.audionet_config.vpre_channels=8")
    found = Estimate(corpus, tmp_path, BuildOptions(splits=SPLITS, device=CPU), tiny)
    assert found.frames == 2 * 50 * found.count > 0
