"""The command separate.py: mixtures and mouths of any length in, a wav for each mouth out, and reasons where not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.commands import Outcome, run_main
from helpers.corpus import SAMPLES_PER_FRAME, Corpus, make_corpus, write_mouth
from helpers.runs import build_store

from iianet.checkpoint import export_published, save_best_model
from iianet.config.schema import dump_config
from iianet.separator.model import IIANet
from iianet.training.resume import settings_of
from iianet_cli import separate_cli
from shardwriter.corpus.embedding_npz import write_embedding_npz
from shardwriter.store.stored_split import open_store

FRAMES = 30
NUM_SAMPLES = FRAMES * SAMPLES_PER_FRAME
Run = Callable[..., Outcome]


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Mouths tr_000 to tr_002 of 30 frames, in a store too, and a checkpoint beside its config."""
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 3, "val": 2, "test": 2}, frames=FRAMES)
    config = corpus.config()
    torch.manual_seed(0)
    model = IIANet(**config.audionet.audionet_config.model_dump()).eval()
    save_best_model(corpus.root / "best_model.pth", model, {}, settings_of(config))
    (corpus.root / "conf.yml").write_text(dump_config(config))
    return corpus


@pytest.fixture(scope="module")
def store(corpus: Corpus) -> Path:
    return build_store(corpus, "store")


@pytest.fixture
def run(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object, checkpoint: Path | None = None) -> Outcome:
        own = ["--checkpoint", checkpoint or corpus.root / "best_model.pth", "--overwrite"]
        return run_main(separate_cli.main, [*own, *words], capsys)

    return run


def noise(num_samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.4, 0.4, (num_samples, channels))


def mixture(
    path: Path, num_samples: int = NUM_SAMPLES, rate: int = 16_000, subtype: str = "PCM_16", channels: int = 1
) -> Path:
    soundfile.write(path, noise(num_samples, channels), rate, subtype=subtype)
    return path


def heard(path: Path) -> np.ndarray:
    found, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    return found


def network(corpus: Corpus, mixture: Path, mouth: str) -> np.ndarray:
    """What the network itself gives for a whole clip."""
    config = corpus.config()
    with np.load(corpus.mouth(mouth)) as npz:
        (seen,) = (
            config.encoder_source().load(torch.device("cpu")).encode([torch.from_numpy(npz["data"][:, 4:92, 4:92])])
        )
    torch.manual_seed(0)
    model = IIANet(**config.audionet.audionet_config.model_dump()).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(heard(mixture))[None], seen[None])[0, 0].numpy()


def test_each_mouth_gets_the_networks_estimate_in_its_own_wav(run: Run, corpus: Corpus, here: Path) -> None:
    mix = mixture(here / "talk.wav", subtype="FLOAT")
    ended = run("--mixture", mix, "--mouth", corpus.mouth("tr_000"), "--mouth", corpus.mouth("tr_001"), "--out", "out")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (here / "out").iterdir()) == ["tr_000.wav", "tr_001.wav"]
    for mouth in ("tr_000", "tr_001"):
        assert np.abs(heard(here / f"out/{mouth}.wav") - network(corpus, mix, mouth)).max() < 1e-6
        assert f"out/{mouth}.wav" in ended.out
    assert "config: " in ended.err and "1.20 s" in ended.out and "FLOAT" in ended.out


def test_embeddings_and_keys_give_what_their_mouths_give_in_the_order_given(
    run: Run, corpus: Corpus, store: Path, here: Path
) -> None:
    mix = mixture(here / "talk.wav", subtype="FLOAT")
    write_embedding_npz(here / "tr_000_embedding.npz", open_store(store)["tr_000"].embedding)
    mouths = [word for name in ("tr_000", "tr_001", "tr_002") for word in ("--mouth", corpus.mouth(name))]
    assert run("--mixture", mix, *mouths, "--out", "a").code == 0
    others = ["--embedding", "tr_000_embedding.npz", "--shards", store, "--key", "tr_001", "tr_002"]
    ended = run("--mixture", mix, *others, "--out", "b")
    assert ended.code == 0, ended.err
    assert "RANDOM weights" not in ended.err, "with embeddings alone, no encoder is loaded"
    for name in ("tr_000", "tr_001", "tr_002"):
        assert np.abs(heard(here / f"a/{name}.wav") - heard(here / f"b/{name}.wav")).max() < 1e-6
    mixed = run("--mixture", mix, *others[2:6], "--mouth", corpus.mouth("tr_000"), "--key", "tr_002", "--out", "c")
    rows = [line.split("  ")[0] for line in mixed.out.splitlines()[2:]]
    assert rows == [f"{store}: tr_001", str(corpus.mouth("tr_000")), f"{store}: tr_002"]


def test_a_long_recording_of_another_rate_and_two_channels_is_separated_in_windows(
    run: Run, corpus: Corpus, here: Path
) -> None:
    frames, rate = 100, 44_100
    write_mouth(here / "long.npz", np.random.default_rng(0).integers(0, 256, (frames, 96, 96), dtype=np.uint8))
    mix = mixture(here / "talk.flac", frames * rate // 25, rate, channels=2)
    words = ["--mixture", mix, "--mouth", "long.npz", "--window", 1]
    ended = run(*words)
    assert ended.code == 0, ended.err
    notice = "talk.flac: its 2 channels are averaged and it is resampled from 44100 to 16000 Hz"
    assert f"{notice}. The estimates have one channel of 64,000 samples at 16000 Hz; --own_rate" in ended.err
    assert len(heard(here / "separated/talk/long.wav")) == 64_000
    own = run(*words, "--own_rate", "--batch_size", 3, "--out", "own")
    assert own.code == 0, own.err
    info = soundfile.info(here / "own/long.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (frames * rate // 25, rate, 1, "PCM_16")


def test_windows_go_through_the_network_together_as_many_as_asked_for(
    run: Run, corpus: Corpus, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = IIANet.forward

    def counted(self: IIANet, mixture: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        sizes.append(len(mixture))
        return forward(self, mixture, embedding)

    monkeypatch.setattr(IIANet, "forward", counted)
    words = ["--mixture", mixture(here / "talk.wav"), "--mouth", *(3 * [corpus.mouth("tr_000")]), "--device", "cpu"]
    for more, expected in (([], [1, 1, 1]), (["--batch_size", 2], [2, 1]), (["--batch_size", 8], [3])):
        sizes.clear()
        assert run(*words, *more).code == 0
        assert sizes == expected


def test_names_of_estimates_are_each_another_one(run: Run, corpus: Corpus, store: Path, here: Path) -> None:
    mix = mixture(here / "talk.wav")
    words = ["--mouth", corpus.mouth("tr_000"), corpus.mouth("tr_000"), "--shards", store, "--key", "tr_000"]
    assert run("--mixture", mix, *words).code == 0
    found = sorted(path.name for path in (here / "separated/talk").iterdir())
    assert found == ["tr_000-2.wav", "tr_000-3.wav", "tr_000.wav"]


def test_silence_is_told_and_separated(run: Run, corpus: Corpus, here: Path) -> None:
    soundfile.write(here / "talk.wav", np.zeros(NUM_SAMPLES), 16_000)
    ended = run("--mixture", "talk.wav", "--mouth", corpus.mouth("tr_000"))
    assert ended.code == 0 and "talk.wav: is silent from its start to its end" in ended.err
    assert not heard(here / "separated/talk/tr_000.wav").any() and "-inf dB" in ended.out


def test_a_very_quiet_mixture_is_told(run: Run, corpus: Corpus, here: Path) -> None:
    for level, is_told in ((1e-3, True), (1e-2, False)):
        soundfile.write(here / "talk.wav", level * noise(NUM_SAMPLES), 16_000, subtype="FLOAT")
        ended = run("--mixture", "talk.wav", "--mouth", corpus.mouth("tr_000"))
        assert ended.code == 0 and ("talk.wav: is very quiet, -68 dB at its peak" in ended.err) == is_told


def test_mouths_a_frame_short_pass_and_others_do_not(run: Run, corpus: Corpus, here: Path) -> None:
    mix = mixture(here / "talk.wav", NUM_SAMPLES + SAMPLES_PER_FRAME)
    mouth = corpus.mouth("tr_000")
    assert run("--mixture", mix, "--mouth", mouth).code == 0
    mix = mixture(here / "talk.wav", NUM_SAMPLES + 10 * SAMPLES_PER_FRAME)
    refused = run("--mixture", mix, "--mouth", mouth)
    assert refused.code == 2
    assert "tr_000.npz: has 30 frames, 1.20 s at 25 a second, and the mixture has 1.60 s" in refused.err
    assert run("--mixture", mix, "--mouth", mouth, "--frame_tolerance", 10).code == 0
    assert run("--mixture", mix, "--mouth", mouth, "--set", "datamodule.data_config.frame_tolerance=10").code == 0
    assert len(heard(here / "separated/talk/tr_000.wav")) == NUM_SAMPLES + 10 * SAMPLES_PER_FRAME


@pytest.mark.parametrize("normalises", [False, True])
def test_a_mixture_is_normalised_where_the_separator_was_trained_so(
    run: Run, corpus: Corpus, here: Path, normalises: bool
) -> None:
    """Then a mean is taken away of what is heard; where there is no config, the file says whether it was."""
    config = corpus.config(f"datamodule.data_config.normalize_audio={str(normalises).lower()}")
    torch.manual_seed(0)
    model = IIANet(**config.audionet.audionet_config.model_dump()).eval()
    save_best_model(here / "best_model.pth", model, {}, settings_of(config))
    write_embedding_npz(here / "one.npz", np.random.default_rng(0).standard_normal((512, FRAMES)).astype(np.float32))
    soundfile.write(here / "low.wav", noise(NUM_SAMPLES) + 5, 16_000, subtype="FLOAT")
    soundfile.write(here / "middle.wav", noise(NUM_SAMPLES) - noise(NUM_SAMPLES).mean(), 16_000, subtype="FLOAT")
    for name in ("low", "middle"):
        ended = run("--mixture", f"{name}.wav", "--embedding", "one.npz", checkpoint=here / "best_model.pth")
        assert ended.code == 0, ended.err
    found = [heard(here / f"separated/{name}/one.wav") for name in ("low", "middle")]
    assert (np.abs(found[0] - found[1]).max() < 1e-4 * np.abs(found[1]).max()) == normalises


def test_a_published_checkpoint_warns_that_it_knows_other_rows(run: Run, corpus: Corpus, here: Path) -> None:
    torch.manual_seed(0)
    model = IIANet(**corpus.config().audionet.audionet_config.model_dump())
    torch.save({"model_name": "IIANet", "state_dict": export_published(model)}, here / "published.pth")
    words = [
        "--mixture",
        mixture(here / "talk.wav"),
        "--mouth",
        corpus.mouth("tr_000"),
        "--conf_dir",
        corpus.config_file,
    ]
    ended = run(*words, checkpoint=here / "published.pth")
    assert ended.code == 0
    assert "published separators were trained on rows 0 to 49 of the mouths' 88" in ended.err
    assert "rows 0 to 49" not in run(*words).err


def test_a_separator_without_a_level_is_told(run: Run, corpus: Corpus, here: Path) -> None:
    config = corpus.config("loss.train.sdr_type=pairwise_neg_sisdr")
    model = IIANet(**config.audionet.audionet_config.model_dump())
    save_best_model(here / "best_model.pth", model, {}, settings_of(config))
    words = [
        "--mixture",
        mixture(here / "talk.wav"),
        "--mouth",
        corpus.mouth("tr_000"),
        "--conf_dir",
        corpus.config_file,
    ]
    assert "leaves the level of estimates open" in run(*words, checkpoint=here / "best_model.pth").err


def test_a_store_of_another_encoder_is_refused_and_one_that_cannot_be_compared_told(
    run: Run, corpus: Corpus, store: Path, here: Path
) -> None:
    words = ["--mixture", mixture(here / "talk.wav"), "--shards", store, "--key", "tr_000"]
    refused = run(*words, "--set", "videonet.videonet_config.seed=1")
    assert refused.code == 2 and "fingerprint" in refused.err
    missing = run(*words, "--set", "videonet.videonet_config.pretrain=none.pth")
    assert missing.code == 2 and "none.pth, which are not there" in missing.err, "nor needs the file to be there"
    alone = here / "alone.pth"
    alone.write_bytes((corpus.root / "best_model.pth").read_bytes())
    unknown = run(*words, checkpoint=alone)
    assert unknown.code == 0 and "there is no config to compare its encoder with" in unknown.err


def _two_sources(corpus: Corpus, here: Path) -> None:
    sizes = corpus.config().audionet.audionet_config.model_dump()
    model = IIANet(**{**sizes, "num_sources": 2, "num_blocks": 16})
    torch.save({"state_dict": export_published(model)}, here / "two.pth")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no speaker: give --mouth NPZ, --embedding NPZ, or --shards STORE --key KEY"),
        (["--key", "tr_000"], "--key tr_000: of which store? Give --shards STORE before it"),
        (["--shards", "nowhere", "--key", "x"], "not a store"),
        (["--mixture", "text.wav", "--mouth", "m.npz"], "text.wav: is no recording that can be read"),
        (["--mixture", "none.wav", "--mouth", "m.npz"], "none.wav: cannot be read"),
        (["--mixture", "empty.wav", "--mouth", "m.npz"], "empty.wav: holds 0 samples"),
        (["--mixture", "nan.wav", "--mouth", "m.npz"], "nan.wav: has 1 samples such as nan"),
        (["--mouth", "none.npz"], "none.npz: cannot be read"),
        (["--mouth", "other.npz"], "other.npz: has the keys ['mouths']; expected 'data'"),
        (["--mouth", "flat.npz"], "flat.npz: 'data' is (30, 96) uint8; expected (frames, 96, 96) uint8"),
        (["--embedding", "m.npz"], "m.npz: has the keys ['data']; expected 'embedding'"),
        (["--embedding", "few.npz"], "few.npz: 'embedding' is (8, 30) float32; expected (512, frames)"),
        (["--embedding", "line.npz"], "line.npz: 'embedding' is (30,) float32; expected (512, frames)"),
        (["--checkpoint", "none.pth", "--mouth", "m.npz"], "none.pth: no such weights file"),
        (["--checkpoint", "text.wav", "--embedding", "m.npz"], "text.wav: not a weights file"),
        (["--checkpoint", "other.pth", "--embedding", "m.npz"], "other.pth: does not fit IIANet"),
        (["--checkpoint", "two.pth", "--embedding", "m.npz"], "two.pth: gives 2 sources at once; expected 1"),
        (["--checkpoint", "alone.pth", "--mouth", "m.npz"], "no config says which encoder is to see it"),
        (["--checkpoint", "alone.pth", "--mouth", "m.npz", "--set", "exp.exp_name=x"], "no config to override"),
        (["--mouth", "m.npz", "--window", "0.5"], "--window 0.5: expected 0.64 seconds or more"),
        (["--mouth", "m.npz", "--window", "nan"], "--window nan: expected 0.64 seconds or more"),
        (["--mouth", "talk.npz", "--out", "."], "talk.wav is the mixture itself; choose another folder"),
        (["--mouth", "m.npz", "--out", "text.wav"], "text.wav: cannot be written"),
        (["--mouth", "m.npz", "--device", "mps"], "--device mps"),
        (["--mouth", "m.npz", "--set", "videonet.videonet_config.pretrain=no.pth"], "no.pth: no such weights file"),
        (["--mouth", "m.npz", "--set", "datamodule.data_config.normalize_audio=true"], "was trained with"),
        (["--mouth", "m.npz", "--batch_size", "0"], "expected a whole number above 0"),
        (["--mouths", "m.npz"], "unknown flag; did you mean --mouth?"),
    ],
)
def test_what_cannot_be_separated_says_why_and_leaves_nothing(
    run: Run, corpus: Corpus, here: Path, words: list[str], said: str
) -> None:
    mixture(here / "talk.wav")
    (here / "text.wav").write_text("not a wav")
    soundfile.write(here / "empty.wav", np.empty(0), 16_000)
    soundfile.write(here / "nan.wav", np.array([0, np.nan, 0]), 16_000, subtype="FLOAT")
    frames = np.zeros((FRAMES, 96, 96), np.uint8)
    for name, key, values in (
        *(("m", "data", frames), ("talk", "data", frames), ("other", "mouths", frames), ("flat", "data", frames[:, 0])),
        *(("few", "embedding", np.zeros((8, FRAMES), np.float32)), ("line", "embedding", np.zeros(FRAMES, np.float32))),
    ):
        np.savez(here / f"{name}.npz", **{key: values})
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, here / "other.pth")
    (here / "alone.pth").write_bytes((corpus.root / "best_model.pth").read_bytes())
    _two_sources(corpus, here)
    before = sorted(here.rglob("*"))
    ended = run("--mixture", "talk.wav", *words)
    assert ended.code == 2, ended.err
    assert said in ended.err and "Traceback" not in ended.err and not ended.out
    assert sorted(path for path in here.rglob("*") if path.is_file()) == [path for path in before if path.is_file()]


def test_a_key_that_no_split_holds_names_the_nearest(run: Run, store: Path, here: Path) -> None:
    ended = run("--mixture", mixture(here / "talk.wav"), "--shards", store, "--key", "tr_00")
    assert ended.code == 2 and "holds no utterance 'tr_00'; did you mean tr_00" in ended.err
    assert run("--mixture", "talk.wav", "--shards", store, "--key", "tt_000").code == 0, "any split will do"


def test_a_store_for_another_network_is_refused(run: Run, corpus: Corpus, store: Path, here: Path) -> None:
    sizes = {**corpus.config().audionet.audionet_config.model_dump(), "vpre_channels": 8}
    settings = {f"audionet.audionet_config.{name}": str(value) for name, value in sizes.items()}
    save_best_model(here / "narrow.pth", IIANet(**sizes), {}, settings)
    words = ["--mixture", mixture(here / "talk.wav"), "--shards", store, "--key", "tr_000"]
    ended = run(*words, checkpoint=here / "narrow.pth")
    assert ended.code == 2 and "its embeddings have 512 rows, and the separator takes 8" in ended.err


def test_what_is_there_is_replaced_only_where_that_is_asked_for(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", corpus.root / "best_model.pth", "--mixture", mixture(here / "talk.wav")]
    words += ["--mouth", corpus.mouth("tr_000"), "--out", here]
    (here / "tr_000.wav").write_bytes(b"her own voice")
    refused = run_main(separate_cli.main, words, capsys)
    assert refused.code == 2 and "tr_000.wav: exists; give another folder, --out DIR, or --overwrite" in refused.err
    assert (here / "tr_000.wav").read_bytes() == b"her own voice"


def test_flags_without_effect_are_refused(run: Run, corpus: Corpus, store: Path, here: Path) -> None:
    words = ["--mixture", mixture(here / "talk.wav"), "--mouth", corpus.mouth("tr_000"), "--shards", store]
    ended = run(*words)
    assert ended.code == 2 and "no --key follows it; give --key KEY" in ended.err


def test_an_earlier_tools_embedding_is_not_for_a_separator_that_knows_fewer_rows(
    run: Run, corpus: Corpus, here: Path
) -> None:
    write_embedding_npz(here / "a_embedding.npz", np.zeros((512, NUM_SAMPLES // 640), np.float32))
    words = ["--mixture", mixture(here / "talk.wav"), "--embedding", here / "a_embedding.npz"]
    config = ["--conf_dir", corpus.config_file]
    assert run(*words, *config).code == 0
    model = IIANet(**corpus.config().audionet.audionet_config.model_dump())
    fifty = corpus.config("videonet.videonet_config.crop_rows=50")
    save_best_model(here / "fifty.pth", model, {}, settings_of(fifty))
    rows = ["--set", "videonet.videonet_config.crop_rows=50"]
    ended = run(*words, *config, *rows, checkpoint=here / "fifty.pth")
    assert ended.code == 2 and "of all 88 rows of the mouths, and videonet.videonet_config.crop_rows is 50" in ended.err


def test_estimates_of_24_bits_are_floats(run: Run, corpus: Corpus, here: Path) -> None:
    words = ["--mixture", mixture(here / "talk.wav", subtype="PCM_24"), "--mouth", corpus.mouth("tr_000")]
    assert run(*words, "--out", "out").code == 0
    assert soundfile.info("out/tr_000.wav").subtype == "FLOAT"


def test_too_little_memory_of_a_gpu_is_told_with_the_cure(
    run: Run, corpus: Corpus, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(separate_cli.WindowSeparator, "separate", full)
    ended = run("--mixture", mixture(here / "talk.wav"), "--mouth", corpus.mouth("tr_000"))
    assert ended.code == 2 and "do not fit into the memory of the GPU; give a smaller --batch_size" in ended.err
