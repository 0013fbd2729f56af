"""Report of --compare_modes: a table, a bar chart, and the same as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate

from iianet.comparison.mode_comparison import ROUNDS, Figures
from iianet.config.schema import Config
from iianet.drawing import drawing
from iianet.run_folder import replacing
from iianet.training.step_times import WARM_UP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"raw": "#b9b9b9", "store": "#33567a"}
BAR = 0.38
DPI = 150
PANELS: Sequence[tuple[str, Callable[[Figures], float]]] = (
    ("examples/s", lambda row: row.examples_per_second),
    ("step, median (ms)", lambda row: 1e3 * row.median_seconds),
    ("waits for data (%)", lambda row: 100 * row.wait_share),
    ("peak memory (GB)", lambda row: row.peak_bytes / 1e9),
    ("read per epoch (GB)", lambda row: row.epoch_bytes / 1e9),
)
"""Name of each panel, and what it shows."""


def save_comparison(figures: Sequence[Figures], config: Config, steps: int, folder: Path) -> str:
    """Write the chart and the JSON file, named by experiment and time, so that none replaces another.

    Args:
        figures: Figures of all ways.
        config: Config of the runs.
        steps: Measured steps of each way in a round.
        folder: Folder to write to; made if missing.

    Returns:
        Text to print.
    """
    name = f"{config.exp.exp_name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    chart, record = folder / f"{name}.png", folder / f"{name}.json"
    batch_size = config.datamodule.data_config.batch_size
    conditions = {
        "device": figures[0].device,
        "torch": torch.__version__,
        "date": f"{datetime.now():%Y-%m-%d}",
        "experiment": config.exp.exp_name,
        "batch_size": batch_size,
        "num_workers": config.datamodule.data_config.num_workers,
        "steps": steps,
        "rounds": ROUNDS,
        "warm_up": WARM_UP,
    }
    with replacing(record) as stream:
        stream.write((json.dumps({**conditions, "ways": _facts(figures)}, indent=1) + "\n").encode())
    title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in list(conditions.items())[:6])
    draw_comparison(figures, title, chart)
    rules = (
        f"{title}. {ROUNDS} rounds in turns, each way in a process of its own, {WARM_UP} steps of warm-up and {steps} "
        "measured ones in each; p90: nine of ten steps take at most this; peak memory: what torch allocated on the "
        "GPU, on the CPU what was resident of the training process, without its loader workers; read per epoch: as the "
        "measured steps tell."
    )
    return f"{table(figures)}\n\n{rules}\n{chart}\n{record}"


def table(figures: Sequence[Figures]) -> str:
    """Table with a row for each way, and below it what the store changes in each setting."""
    headers = [
        "mode",
        "setting",
        "examples/s",
        "of each round",
        "step median",
        "p90",
        "waits for data",
        "peak memory",
        "read per epoch",
    ]
    rows = [
        [
            row.way.mode,
            row.way.setting,
            f"{row.examples_per_second:.2f}",
            " ".join(f"{one:.2f}" for one in row.rounds),
            f"{1e3 * row.median_seconds:.0f} ms",
            f"{1e3 * row.p90_seconds:.0f} ms",
            f"{100 * row.wait_share:.1f} %",
            _size(row.peak_bytes),
            _size(row.epoch_bytes),
        ]
        for row in figures
    ]
    lines = [_change(raw, store) for raw, store in _pairs(figures).values()]
    return "\n".join([tabulate(rows, headers=headers, disable_numparse=True), "", *lines])


def _facts(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """Rows of the table, for a JSON file."""
    return [
        {
            **{name: value for name, value in vars(row).items() if name != "way"},
            "mode": row.way.mode,
            "precision": row.way.precision,
            "compile": row.way.compile,
        }
        for row in figures
    ]


def _change(raw: Figures, store: Figures) -> str:
    speed = store.examples_per_second / raw.examples_per_second
    saved = raw.peak_bytes - store.peak_bytes
    memory = f"{_size(abs(saved))} {'less' if saved >= 0 else 'more'} memory"
    return f"{raw.way.setting}: from the store {speed:.2f} x the examples/s of raw mode, with {memory}"


def _size(num_bytes: float) -> str:
    """Gigabytes, or megabytes below one."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _pairs(figures: Sequence[Figures]) -> Mapping[str, tuple[Figures, Figures]]:
    """Setting -> raw and store."""
    by_way = {(row.way.setting, row.way.mode): row for row in figures}
    return {setting: (by_way[setting, "raw"], by_way[setting, "store"]) for setting, _ in by_way}


def draw_comparison(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Draw each figure as bars: a pair of raw mode and store for each setting. The picture's suffix says its format."""
    settings = list(dict.fromkeys(row.way.setting for row in figures))
    with drawing({"font.size": 9}, figsize=(2.2 * len(PANELS) * max(1, len(settings) / 2), 3.4)) as canvas:
        canvas.suptitle(title, fontsize=9, color="0.3")
        axes = canvas.subplots(1, len(PANELS))
        for axis, (name, value) in zip(axes, PANELS, strict=True):
            _draw_panel(axis, figures, settings, value)
            axis.set_title(name, fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, frameon=False, ncols=len(COLOURS), loc="outside lower center")
        with replacing(path) as stream:
            canvas.savefig(stream, dpi=DPI, format=path.suffix.removeprefix("."))


def _draw_panel(
    axis: "Axes", figures: Sequence[Figures], settings: Sequence[str], value: Callable[[Figures], float]
) -> None:
    for side, (mode, colour) in zip((-0.5, 0.5), COLOURS.items(), strict=True):
        rows = [row for row in figures if row.way.mode == mode]
        places = [settings.index(row.way.setting) + side * BAR for row in rows]
        bars = axis.bar(places, [value(row) for row in rows], BAR, color=colour, label=mode)
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    axis.set_xticks(range(len(settings)), [setting.replace(", ", "\n") for setting in settings], fontsize=8)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.12)
