"""The configuration: what loads, with which values, and what each error says."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from iianet.config.schema import Config, dump_config, load_config
from iianet.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"

PUBLISHED = """
audionet:
  audionet_name: IIANet
  audionet_config: {out_channels: 128, in_channels: 512, vpre_channels: 512, vin_channels: 64, vout_channels: 64,
    num_blocks: 16, upsampling_depth: 5, enc_kernel_size: 1, num_sources: 1}
videonet:
  videonet_name: ResNetVideoModel
  videonet_config: {pretrain: pretrain_zoo/lrw_resnet18_mstcn_adamw_s3.pth.tar}
loss:
  train: {loss_func: PITLossWrapper, sdr_type: pairwise_neg_snr,
    config: {pit_from: pw_mtx, threshold_byloss: false}}
  val: {loss_func: PITLossWrapper, sdr_type: pairwise_neg_sisdr,
    config: {pit_from: pw_mtx, threshold_byloss: false}}
training:
  system: AudioVisualLightningModule
  gpus: [0,1,2,3,4,5,6,7]
  parallel: ddp
  epochs: 500
  early_stop: {monitor: val_loss/dataloader_idx_0, mode: min, patience: 20, verbose: true}
optimizer: {optim_name: adam, lr: 0.001, weight_decay: 0.}
scheduler: {sche_name: ReduceLROnPlateau, sche_config: {patience: 10, factor: 0.5}}
datamodule:
  data_name: AVSpeechDyanmicDataModule
  data_config: {train_dir: DataPreProcess/LRS2/tr, valid_dir: DataPreProcess/LRS2/cv,
    test_dir: DataPreProcess/LRS2/tt, n_src: 1, sample_rate: 16000, segment: 2.0, normalize_audio: false,
    batch_size: 3, num_workers: 24, pin_memory: true, persistent_workers: false}
exp: {exp_name: LRS2-IIANet}
"""
"""The values of the published LRS2 config."""

SHORT = """\
datamodule:
  data_config:
    train_dir: tr
    valid_dir: cv
    test_dir: tt
exp:
  exp_name: short
"""
"""The least that a config needs."""


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Config:
    return load_config(write(folder, text), overrides)


def error_of(folder: Path, text: str, *overrides: str) -> str:
    """The error's message, with the file named as `x.yml`."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(str(folder / "x.yml"), "x.yml")


def assert_holds(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            assert_holds(whole[key], value)
        else:
            assert (whole[key], type(whole[key])) == (value, type(value)), key


def test_published_config_loads_with_its_values(tmp_path: Path) -> None:
    config = load(tmp_path, PUBLISHED)
    assert_holds(config.model_dump(), yaml.safe_load(PUBLISHED))
    assert config.datamodule.dynamic_mixing


@pytest.mark.parametrize("corpus", ["LRS2", "LRS3", "Vox2"])
def test_our_configs_hold_the_published_values(corpus: str) -> None:
    ours = yaml.safe_load((CONFIGS / f"{corpus}-IIANet.yml").read_text(encoding="utf-8"))
    assert_holds(ours, yaml.safe_load(PUBLISHED.replace("LRS2", corpus)))
    assert ours["datamodule"]["data_config"]["use_precomputed_embeddings"] is False
    load_config(CONFIGS / f"{corpus}-IIANet.yml")


def test_toy_config_is_small_and_needs_no_downloads() -> None:
    config = load_config(CONFIGS / "toy.yml")
    assert config.videonet.videonet_config.pretrain is None
    assert config.training.gpus is None
    assert config.audionet.audionet_config.num_blocks < 16
    assert config.scheduler.sche_config == {"patience": 10, "factor": 0.5}


def test_defaults_are_the_published_values(tmp_path: Path) -> None:
    short, published = load(tmp_path, SHORT), load(tmp_path, PUBLISHED)
    for section in ("audionet", "loss", "optimizer", "scheduler"):
        assert getattr(short, section) == getattr(published, section)
    assert short.training.model_copy(update={"gpus": published.training.gpus}) == published.training


def test_config_of_the_earlier_precompute_tool_loads(tmp_path: Path) -> None:
    text = PUBLISHED.replace("batch_size: 3", "batch_size: 5, use_precomputed_embeddings: true")
    config = load(tmp_path, text.replace("exp_name: LRS2-IIANet", "exp_name: LRS2-IIANet-qzh-L20-test"))
    assert config.datamodule.data_config.use_precomputed_embeddings
    assert config.datamodule.data_config.shards is None
    assert config.datamodule.data_config.batch_size == 5


def test_config_saved_by_the_reference_loads_and_keeps_main_args_alone(tmp_path: Path) -> None:
    groups = {"positional arguments": {}, "optional arguments": {}, "options": {"help": None, "conf_dir": "c.yml"}}
    main_args = {"conf_dir": "c.yml", "exp_dir": "Experiments/checkpoint/a", "help": None}
    saved = {**yaml.safe_load(PUBLISHED), **groups, "main_args": main_args}
    config = load(tmp_path, yaml.safe_dump(saved))
    assert config.main_args == main_args
    assert config.model_copy(update={"main_args": {}}) == load(tmp_path, PUBLISHED)


@pytest.mark.parametrize("name", ["LRS2-IIANet.yml", "toy.yml"])
def test_dumped_config_reads_back_equal(tmp_path: Path, name: str) -> None:
    overrides = [
        "optimizer.eps=1e-9",
        "optimizer.betas=[0.9, 0.99]",
        "training.early_stop=null",
        "exp.exp_name='1e5'",
        "main_args={1: 2024-01-01, help: null}",
    ]
    config = load_config(CONFIGS / name, overrides)
    assert load(tmp_path, dump_config(config)) == config


@pytest.mark.parametrize(
    ("data_name", "train_mixing", "dynamic"),
    [
        ("AVSpeechDyanmicDataModule", "null", True),
        ("AVSpeechDynamicDataModule", "null", True),
        ("AVSpeechDataModule", "null", False),
        ("AVSpeechDyanmicDataModule", "static", False),
        ("AVSpeechDataModule", "dynamic", True),
    ],
)
def test_mixing_goes_by_train_mixing_then_by_data_name(
    tmp_path: Path, data_name: str, train_mixing: str, dynamic: bool
) -> None:
    names = (f"datamodule.data_name={data_name}", f"datamodule.data_config.train_mixing={train_mixing}")
    assert load(tmp_path, SHORT, *names).datamodule.dynamic_mixing is dynamic


def test_unknown_keys_name_file_line_and_nearest_key(tmp_path: Path) -> None:
    text = PUBLISHED.replace("batch_size", "batch_sise").replace("epochs", "epoch")
    assert error_of(tmp_path, text).splitlines() == [
        "x.yml: training.epoch: unknown key; did you mean epochs? (line 18)",
        "x.yml: datamodule.data_config.batch_sise: unknown key; did you mean batch_size? (line 26)",
    ]


def test_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    assert error_of(tmp_path, SHORT + "  segment: 2.0\n") == (
        "x.yml: exp.segment: unknown key; did you mean datamodule.data_config.segment? (line 8)"
    )


def test_missing_keys_and_sections_say_what_belongs_there(tmp_path: Path) -> None:
    message = error_of(tmp_path, "datamodule: {data_config: {train_dir: tr, valid_dir: cv}}")
    assert "x.yml: datamodule.data_config.test_dir: missing; Folder of the test split" in message
    assert "x.yml: exp: missing; " in message


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.epochs='3'", "training.epochs: found '3' (str), expected an integer"),
        ("training.epochs=true", "training.epochs: found true (bool), expected an integer"),
        ("training.epochs=3.0", "training.epochs: found 3.0 (float), expected an integer"),
        ("training.epochs=0", "training.epochs: found 0 (int), expected a number above 0"),
        ("training.seed=-1", "training.seed: found -1 (int), expected a number not below 0"),
        ("training.early_stop=false", "training.early_stop: found false (bool), expected a mapping or null"),
        ("training.early_stop.mode=mim", "found 'mim' (str), expected min or max; did you mean min?"),
        ("training.loggers=[csv, wandbb]", "training.loggers[1]: found 'wandbb' (str), expected tensorboard, csv or"),
        ("training.gpus=[0, true]", "training.gpus: found [0, True] (list), expected a list of device numbers"),
        ("training.gpus='0'", "training.gpus: found '0' (str), expected a list of device numbers"),
        (
            "training.gpus=-1",
            "training.gpus: found -1 (int), expected a list of device numbers such as [0, 1], a count",
        ),
        ("training.gpus=[-1]", "training.gpus: found [-1] (list), expected a list of device numbers"),
        ("training.gpus=all", "a count, or null for one GPU if there is any; for all GPUs give their count"),
        ("training.seed=4294967296", "training.seed: found 4294967296 (int), expected a number not above 4294967295"),
        ("training.epochs=99999999999", "found 99999999999 (int), expected a number not above 1000000000"),
        ("shardwriter.views=1000000000", "shardwriter.views: found 1000000000 (int), expected a number not above 1000"),
        ("shardwriter.num_workers=1000000", "found 1000000 (int), expected a number not above 1000"),
        ("datamodule.data_config.num_workers=1000000", "found 1000000 (int), expected a number not above 1000"),
        ("datamodule.data_config.segment_start=middle", "found 'middle' (str), expected 0 or random"),
        ("datamodule.data_config.shards=3", "found 3 (int), expected text that is not empty, or a list of such"),
        ("datamodule.data_config.train_dir=[]", "found [] (list), expected text that is not empty, or a list of such"),
        ("datamodule.data_config.cache_dir=$NO_SUCH/x", "the environment variable NO_SUCH is not set; set it, or"),
        ("datamodule.data_config.embedding_augmentation.channel_dropout=1", "found 1 (int), expected a number below 1"),
        ("datamodule.data_config.pin_memory=1", "found 1 (int), expected true or false"),
        ("optimizer.lr=true", "optimizer.lr: found true (bool), expected a number"),
        ("optimizer.lr='0.1'", "optimizer.lr: found '0.1' (str), expected a number"),
        ("optimizer.lr=.inf", "optimizer.lr: found inf (float), expected a finite number"),
        ("audionet.audionet_name=IIAnet", "found 'IIAnet' (str), expected IIANet; did you mean IIANet?"),
        ("videonet.videonet_name=VGG", "videonet.videonet_name: found 'VGG' (str), expected ResNetVideoModel"),
        ("videonet.videonet_name=ResnetVidoeModel", "; did you mean ResNetVideoModel?"),
        ("videonet.videonet_name=3", "videonet.videonet_name: found 3 (int), expected text; quote it"),
        (
            "videonet.videonet_config.memory_format=channel_last",
            "found 'channel_last' (str), expected contiguous or channels_last or null; did you mean channels_last?",
        ),
        ("videonet.videonet_config.max_frames=0", "found 0 (int), expected a number above 0"),
        ("loss.val.sdr_type=sisdr", "expected pairwise_neg_snr, pairwise_neg_sisdr or pairwise_neg_sdsdr"),
        ("loss.val.config.perm_reduce=mean", "found 'mean' (str), expected null"),
        ("exp.exp_name=3", "exp.exp_name: found 3 (int), expected text; quote it"),
        ("exp.exp_name=a/b", "found 'a/b' (str), expected the name of one folder"),
        ("exp.exp_name=..", "found '..' (str), expected the name of one folder"),
        ("scheduler=null", "scheduler: found null, expected a mapping"),
    ],
)
def test_wrong_values_name_key_found_and_expected(tmp_path: Path, override: str, problem: str) -> None:
    message = error_of(tmp_path, SHORT, override)
    assert message.startswith("x.yml: ")
    assert problem in message
    assert message.endswith(f"(override {override})")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("datamodule.data_config.n_src=2", "found 2, expected 1: each mixture has one target speaker"),
        ("audionet.audionet_config.num_sources=2", "found 2, expected 1: each mixture has one target speaker"),
        ("audionet.audionet_config.vpre_channels=256", "found 256, expected 512: the encoder ResNetVideoModel gives"),
        ("datamodule.data_config.sample_rate=8000", "found 8000, expected 16000: mouths have 25 frames a second"),
        ("datamodule.data_config.segment=null", "found null, which is for full-length items, and those come with"),
    ],
)
def test_values_unsupported_for_now_give_the_reason(tmp_path: Path, override: str, reason: str) -> None:
    assert reason in error_of(tmp_path, SHORT, override)


@pytest.mark.parametrize("segment", [2, 2.0, 0.04, 1.16, 0.28, 3.4])
def test_segment_of_whole_frames_is_accepted(tmp_path: Path, segment: float) -> None:
    config = load(tmp_path, SHORT, f"datamodule.data_config.segment={segment}")
    assert config.datamodule.data_config.segment == segment
    assert isinstance(config.datamodule.data_config.segment, float)


@pytest.mark.parametrize(("segment", "near"), [(2.03, "2 or 2.04"), (0.01, "0.04 or 0.08"), (1.999, "1.96 or 2")])
def test_segment_of_broken_frames_names_the_nearest_two(tmp_path: Path, segment: float, near: str) -> None:
    assert f"set segment to {near} (" in error_of(tmp_path, SHORT, f"datamodule.data_config.segment={segment}")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.5E3", 1.5e3), (".5e0", 0.5), ("1", 1.0)])
def test_numbers_that_yaml_reads_as_text_or_integer_serve_as_floats(tmp_path: Path, text: str, value: float) -> None:
    config = load(tmp_path, SHORT, f"optimizer.lr={text}", f"optimizer.eps={text}", f"optimizer.betas=[{text}, 0.9]")
    assert config.optimizer.lr == value
    assert config.optimizer.arguments["eps"] == value
    assert config.optimizer.arguments["betas"] == [value, 0.9]


def test_optimizer_takes_the_arguments_of_its_class_in_any_case(tmp_path: Path) -> None:
    optimizer = load(tmp_path, SHORT + "optimizer: {optim_name: Sgd, momentum: 0.9, nesterov: true}").optimizer
    assert optimizer.optimizer_class.__name__ == "SGD"
    assert optimizer.arguments == {"lr": 0.001, "weight_decay": 0.0, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{optim_name: adamm}", "optimizer.optim_name: found 'adamm' (str), expected an optimizer; did you mean adam?"),
        (
            "{optim_nam: adam}",
            "optimizer.optim_nam: unknown key: Adam takes no such argument; did you mean optim_",
        ),
        ("{beta: [0.9, 0.9]}", "optimizer.beta: unknown key: Adam takes no such argument; did you mean betas?"),
        ("{momentum: 0.9}", "optimizer.momentum: unknown key: Adam takes no such argument; known: amsgrad, betas"),
        ("{betas: [0.9]}", "optimizer.betas: found [0.9] (list), expected what Adam takes: tuple[float"),
        ("{betas: 0.9}", "optimizer.betas: found 0.9 (float), expected what Adam takes: tuple[float"),
        ("{amsgrad: 1}", "optimizer.amsgrad: found 1 (int), expected what Adam takes: bool"),
        ("{eps: true}", "optimizer.eps: found true (bool), expected what Adam takes: float"),
        ("{eps: [1.0]}", "optimizer.eps: found [1.0] (list), expected what Adam takes: float"),
        ("{fused: no way}", "optimizer.fused: found 'no way' (str), expected what Adam takes: bool | None"),
        ("{params: []}", "optimizer.params: unknown key"),
    ],
)
def test_wrong_optimizer_names_the_nearest_right_one(tmp_path: Path, section: str, problem: str) -> None:
    assert error_of(tmp_path, f"{SHORT}optimizer: {section}").startswith(f"x.yml: {problem}")


@pytest.mark.parametrize(
    "section",
    [
        "{sche_name: null, sche_config: null}",
        "{sche_name: null, sche_config: {patience: 3}}",
        "{sche_name: ReduceLROnPlateau, sche_config: {min_lr: [1e-6], mode: max}}",
        "{sche_name: StepLR, sche_config: {step_size: 2, gamma: 0.98}}",
        "{sche_name: MultiStepLR, sche_config: {milestones: [10, 20]}}",
        "{sche_name: CyclicLR, sche_config: {base_lr: 1e-4, max_lr: 1e-3, step_size_down: null}}",
    ],
)
def test_scheduler_takes_the_arguments_of_its_class(tmp_path: Path, section: str) -> None:
    scheduler = load(tmp_path, f"{SHORT}scheduler: {section}").scheduler
    name = yaml.safe_load(section)["sche_name"]
    assert (scheduler.scheduler_class and scheduler.scheduler_class.__name__) == name


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (
            "{sche_name: StepLr}",
            "scheduler.sche_name: found 'StepLr' (str), expected a scheduler or null; did you",
        ),
        ("{sche_name: LambdaLR}", "scheduler.sche_name: found 'LambdaLR' (str), expected a scheduler or null; "),
        ("{sche_name: StepLR}", "scheduler.sche_config.step_size: missing; StepLR needs it"),
        (
            "{sche_config: {patiense: 3}}",
            "scheduler.sche_config.patiense: unknown key: ReduceLROnPlateau takes no",
        ),
        (
            "{sche_config: {mode: 3}}",
            "scheduler.sche_config.mode: found 3 (int), expected what ReduceLROnPlateau",
        ),
        ("{sche_name: StepLR, sche_config: {step_size: '9'}}", "scheduler.sche_config.step_size: found '9' (str), exp"),
    ],
)
def test_wrong_scheduler_names_the_problem(tmp_path: Path, section: str, problem: str) -> None:
    assert error_of(tmp_path, f"{SHORT}scheduler: {section}").startswith(f"x.yml: {problem}")


def test_scheduler_section_that_is_given_has_torch_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, SHORT + "scheduler: {sche_name: ReduceLROnPlateau}").scheduler.sche_config == {}


def test_override_of_an_absent_scheduler_keeps_the_published_rest(tmp_path: Path) -> None:
    config = load(tmp_path, SHORT, "scheduler.sche_config.patience=3")
    assert config.scheduler.sche_config == {"patience": 3, "factor": 0.5}


def test_overrides_set_values_and_the_last_wins(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        PUBLISHED,
        "datamodule.data_config.batch_size=9",
        "datamodule.data_config.batch_size=4",
        "training.gpus=[0]",
        "training.early_stop=null",
        "training.early_stop.patience=7",
        "videonet.videonet_config.pretrain=null",
        "optimizer.amsgrad=true",
    )
    assert config.datamodule.data_config.batch_size == 4
    assert config.training.gpus == [0]
    assert config.training.early_stop is not None
    assert config.training.early_stop.patience == 7
    assert config.videonet.videonet_config.pretrain is None
    assert config.optimizer.arguments["amsgrad"] is True


def test_override_leaves_an_aliased_mapping_alone(tmp_path: Path) -> None:
    text = SHORT + "loss: {train: &same {sdr_type: pairwise_neg_snr}, val: *same}"
    config = load(tmp_path, text, "loss.val.sdr_type=pairwise_neg_sdsdr")
    assert (config.loss.train.sdr_type, config.loss.val.sdr_type) == ("pairwise_neg_snr", "pairwise_neg_sdsdr")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("training..epochs=3", "expected key=value"),
        ("training.epochs=", "write null for no value"),
        ("training.epochs=[", "line 1, column 2: while parsing a flow node"),
        ("training.epoch=3", "there is no key training.epoch; did you mean training.epochs?"),
        ("trainig.epochs=3", "there is no key trainig.epochs; did you mean training.epochs?"),
        ("exp.exp_name.x=3", "there is no key exp.exp_name.x; did you mean exp.exp_name?"),
        ("batch_size=4", "did you mean datamodule.data_config.batch_size or shardwriter.batch_size?"),
        ("zzz=3", "there is no key zzz; known: audionet, datamodule, exp"),
    ],
)
def test_wrong_override_is_named_with_the_cure(tmp_path: Path, override: str, problem: str) -> None:
    message = error_of(tmp_path, SHORT, override)
    assert message.startswith(f"override {override!r}: ")
    assert problem in message


def test_override_does_not_hide_a_broken_section(tmp_path: Path) -> None:
    message = error_of(tmp_path, SHORT + "training: 3\n", "training.epochs=3")
    assert message == "override 'training.epochs=3': the file has training 3 (int), expected a mapping"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("null", "is empty"),
        ("- 1", "found [1] (list), expected a mapping"),
        ("a: [", "line 1, column 5: "),
        ("exp:\n\texp_name: a", "line 2, column 1: "),
        ("exp: {exp_name: a,\n exp_name: b}", "line 2, column 2: exp_name appears twice, first on line 1"),
        ("exp: {a: 1}\n'exp': {a: 1}", "line 2, column 1: exp appears twice, first on line 1"),
        (
            "exp: !!python/name:os.system x",
            "line 1, column 6: found the tag !!python/name:os.system; a config has plain",
        ),
        (r'exp: {exp_name: "\ud800"}', "line 1, column 17: half of a character of UTF-16, which stands for none"),
        (r'exp: "\UFFFFFFFF"', "a value cannot be read"),
        ("exp: !!bool maybe", "line 1, column 6: found the tag !!bool; a config has plain values, so leave it out"),
        ("exp: !!int ''", "line 1, column 6: found the tag !!int"),
        ("exp: !!timestamp x", "line 1, column 6: found the tag !!timestamp"),
        ("exp: !!set {a}", "line 1, column 6: found the tag !!set"),
        ("exp: \x01", "line 1, column 6: a character that YAML does not allow"),
        ("exp: {exp_name: 0x_}", "a value cannot be read"),
    ],
)
def test_text_that_is_no_yaml_mapping_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    message = error_of(tmp_path, text)
    assert message.startswith("x.yml: ")
    assert problem in message


@pytest.mark.parametrize(
    ("written", "read"),
    [("1:30", "90"), ("1:30.5", "90.5"), ("1_0", "10"), ("1_000.5", "1000.5"), ("010", "8"), ("-017", "-15")],
)
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path: Path, written: str, read: str) -> None:
    message = error_of(tmp_path, SHORT.replace("test_dir: tt", f"test_dir: tt\n    segment: {written}"))
    assert message == (
        f"x.yml: line 6, column 14: found {written}, which YAML 1.1 reads as the number {read}; write {read}, or quote "
        "it if it is meant as text"
    )
    override = error_of(tmp_path, SHORT, f"datamodule.data_config.segment={written}")
    assert override.startswith(
        f"override 'datamodule.data_config.segment={written}': line 1, column 1: found {written}"
    )


@pytest.mark.parametrize(("written", "read"), [("yes", "true"), ("Off", "false"), ("NO", "false"), ("on", "true")])
def test_words_that_yaml_reads_as_true_or_false_are_refused(tmp_path: Path, written: str, read: str) -> None:
    message = error_of(tmp_path, SHORT.replace("short", written))
    assert message == (
        f"x.yml: line 7, column 13: found {written}, which YAML 1.1 reads as {read}; write {read}, or quote it if it "
        "is meant as text"
    )


@pytest.mark.parametrize("text", ["'1:30'", "'yes'", '"010"', "2024-01-01", "12:30 is noon", "1.2.3", "0_x"])
def test_text_that_is_quoted_or_looks_like_no_number_stays_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, SHORT.replace("short", text)).exp.exp_name == text.strip("'\"")


@pytest.mark.parametrize("text", ["90", "0", "-3", "0.5", "+1.5", "1e-3", "0x1F", ".5", "1."])
def test_plain_numbers_are_no_surprise(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, SHORT, f"main_args={{a: {text}}}").main_args["a"] == yaml.safe_load(text)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    """Nine levels of nine are 387 million values."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    message = error_of(tmp_path, SHORT + "main_args:\n  " + "\n  ".join(levels))
    assert "x.yml: line 14, column 12: " in message
    assert "more than 100,000 values, with its aliases written out; a config has some hundred" in message


def test_an_alias_that_holds_itself_is_refused(tmp_path: Path) -> None:
    message = error_of(tmp_path, SHORT + "main_args: &a {b: *a}")
    assert message == "x.yml: line 8, column 19: the alias a stands for a value that holds it; write the value out"


@pytest.mark.parametrize("nested", ["{a: " * 500 + "1" + "}" * 500, "[" * 100_000, "- " * 5_000 + "1"])
def test_deep_nesting_is_refused(tmp_path: Path, nested: str) -> None:
    assert "nested more than 32 deep" in error_of(tmp_path, SHORT + "main_args:\n  a:\n    " + nested)
    assert "nested more than 32 deep" in error_of(tmp_path, SHORT, f"main_args={nested}")


def test_a_file_that_is_no_config_by_its_size_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, SHORT)
    with path.open("r+b") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(
        ConfigError, match=r"x\.yml: cannot be read as a config: 100,000,000 bytes; expected at most 262,144"
    ):
        load_config(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_config(path: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{path}: cannot be read as a config: a folder, a FIFO or a device; expected a regular"
    ):
        load_config(path)


def test_a_pipe_nobody_writes_to_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(ConfigError, match=r"pipe\.yml: cannot be read as a config: a folder, a FIFO or a device"):
        load_config(tmp_path / "pipe.yml")


def test_keys_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path, SHORT + "1: 2") == "x.yml: top level: found the key 1 (int), expected text as keys"


def test_merged_mappings_are_no_duplicates(tmp_path: Path) -> None:
    text = SHORT + "loss: {train: &same {sdr_type: pairwise_neg_snr}, val: {<<: *same, sdr_type: pairwise_neg_sisdr}}"
    assert load(tmp_path, text).loss.val.sdr_type == "pairwise_neg_sisdr"


def test_text_like_a_date_stays_text(tmp_path: Path) -> None:
    assert load(tmp_path, SHORT, "exp.exp_name=2024-13-01").exp.exp_name == "2024-13-01"


def test_missing_file_names_the_nearest_or_lists_the_configs_beside_it(tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file; did you mean .*x\.yml\?"):
        load_config(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match=r"nothing\.conf: no such file; .* holds x\.yml"):
        load_config(tmp_path / "nothing.conf")
    with pytest.raises(ConfigError, match=r"no such file, nor is there a folder .*nowhere"):
        load_config(tmp_path / "nowhere" / "x.yml")


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a config"):
        load_config(tmp_path)
    (tmp_path / "x.yml").write_bytes(b"exp: \xff")
    with pytest.raises(ConfigError, match="cannot be read as a config"):
        load_config(tmp_path / "x.yml")


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, SHORT)
    with pytest.raises(ValueError, match="frozen"):
        config.exp.exp_name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("apart", "names", "expected"),
    [
        ("video", "null", "missing; mix_apart: video needs the names of utterances to tell the video: expected lrs2,"),
        ("speaker", "lrs3", "found lrs3, whose names tell the video and no speaker; set mix_apart: video"),
        ("video", "'(a'", "found '(a', which is no regular expression"),
        ("speaker", "'(?P<video>a)'", "found '(?P<video>a)', which has no group named speaker; expected lrs2, lrs3,"),
    ],
)
def test_names_that_cannot_tell_what_is_mixed_apart_are_refused(
    tmp_path: Path, apart: str, names: str, expected: str
) -> None:
    key = "datamodule.data_config"
    message = error_of(tmp_path, SHORT, f"{key}.mix_apart={apart}", f"{key}.utterance_names={names}")
    assert message.startswith(f"x.yml: {key}.utterance_names: {expected}")


@pytest.mark.parametrize(
    ("apart", "names"), [("speaker", "vox2"), ("video", "vox2"), ("video", "lrs2"), ("speaker", "'(?P<speaker>a)'")]
)
def test_names_that_tell_what_is_mixed_apart_load(tmp_path: Path, apart: str, names: str) -> None:
    key = "datamodule.data_config"
    config = load(tmp_path, SHORT, f"{key}.mix_apart={apart}", f"{key}.utterance_names={names}")
    assert config.datamodule.data_config.mix_apart == apart
    assert load(tmp_path, SHORT).datamodule.data_config.mix_apart is None
