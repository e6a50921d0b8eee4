"""Pictures: the live graph of architectures, its still twins, and the plots of the book."""

from importlib import import_module
from typing import Any

_HOMES = {  # matplotlib and the widgets are imported with the first name that needs them
    "ArchView": "arch_view", "ParetoPanel": "arch_view", "StreamPanel": "stream_panel",
    "architecture_figure": "static", "draw_architecture": "static", "to_png": "static",
    "plot_history": "plots", "plot_pareto": "plots", "plot_radar": "plots",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
