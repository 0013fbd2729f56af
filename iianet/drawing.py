"""Pictures, drawn without a display: matplotlib is imported when one is drawn, and not asked for a window."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def drawing(style: Any = None, **options: Any) -> Iterator["Figure"]:
    """Give an empty figure to draw on, with constrained layout, in our style.

    MPLBACKEND is not looked at, which a notebook sets to a backend that may not be installed here: matplotlib would
    refuse it at its import, and pictures that go to files need none.

    Args:
        style: matplotlib's parameters for this picture, over our own.
        options: Arguments of the figure.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with mpl.rc_context({**STYLE, **(style or {})}):
        yield Figure(**options, layout="constrained")
