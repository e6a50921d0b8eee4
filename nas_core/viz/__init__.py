"""Pictures: the live graph of architectures, its still twins, and the plots of the book."""

from nas_core.viz.arch_view import ArchView, ParetoPanel
from nas_core.viz.plots import plot_history, plot_pareto, plot_radar
from nas_core.viz.static import architecture_figure, draw_architecture, to_png, to_svg

__all__ = [
    "ArchView",
    "ParetoPanel",
    "architecture_figure",
    "draw_architecture",
    "plot_history",
    "plot_pareto",
    "plot_radar",
    "to_png",
    "to_svg",
]
