"""The still pictures: deterministic, complete, nothing hidden behind anything else."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from PIL import Image, ImageColor

from nas_core.continual import Library, resnet
from nas_core.spaces import resnet_fabric
from nas_core.spaces.cells import CellSpace
from nas_core.supernet import Architecture
from nas_core.viz import architecture_figure, draw_architecture, to_png
from nas_core.viz.geometry import DARK_PALETTE, PALETTE, kind_colours, scene
from nas_core.viz.static import fewer_colours
from tests.supernet.graphs import dags
from tests.viz.spaces import build, dense, fabric, keyword_chain, module_grid, residual_chain

SPACES = {
    "fabric": fabric(), "chain": keyword_chain(), "residual": residual_chain(),
    "modules": module_grid(), "resnet": resnet_fabric(3).graph, "dense": dense(18),
}  # fmt: skip
every_space = pytest.mark.parametrize("graph", SPACES.values(), ids=SPACES.keys())


def bezier(curve, n: int = 33) -> np.ndarray:
    t = np.linspace(0, 1, n)[:, None]
    a, b, c, d = np.array(curve)
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


@every_space
def test_edges_run_through_no_other_node(graph):
    s = scene(graph)
    for shape, info in zip(s.edges, graph.edges, strict=True):
        points = bezier(shape.curve)
        for node in s.nodes:
            if node.name in (info.source, info.target):
                continue
            inside = (abs(points[:, 0] - node.x) < node.half_width) & (
                abs(points[:, 1] - node.y) < node.half_height
            )
            assert not inside.any(), f"{info.name} runs through {node.name}"


@every_space
def test_every_edge_is_visible_and_can_be_hit(graph):
    """The middles of any two edges are far enough apart for a pointer."""
    middles = [bezier(shape.curve, 21) for shape in scene(graph).edges]
    for (i, a), (j, b) in itertools.combinations(enumerate(middles), 2):
        distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min(1)
        assert distance.max() > 7, f"{graph.edges[i].name} and {graph.edges[j].name} coincide"


@every_space
def test_edges_start_and_end_at_their_nodes(graph):
    s = scene(graph)
    box = {n.name: n for n in s.nodes}
    for shape, info in zip(s.edges, graph.edges, strict=True):
        for (x, y), node in (shape.curve[0], info.source), (shape.head[0], info.target):
            n = box[node]
            core = n.half_width - n.half_height
            distance = np.hypot(max(abs(x - n.x) - core, 0), y - n.y) - n.half_height
            assert -0.5 < distance < 6
        for x, y in (*bezier(shape.curve), *shape.head):
            assert 0 <= x <= s.width and 0 <= y <= s.height


@settings(max_examples=30, deadline=None)
@given(graph=dags())
def test_random_graphs_can_be_drawn(graph):
    s = scene(graph)
    assert len(s.edges) == len(graph) and np.isfinite([e.curve for e in s.edges]).all()
    FigureCanvasAgg(architecture_figure(graph, torch.ones(len(graph), dtype=torch.bool))).draw()


LEGENDS = SPACES | {
    "cells": CellSpace().network().graph,
    "narrow": build([("a", "b", kind) for kind in ("conv", "up", "down", "pool", "skip", "x")],
                    "a", "b", "six kinds"),
    "wordy": build([("a", "b", "separable convolution"), ("a", "b", "pool")], "a", "b", "wordy"),
}  # fmt: skip


@pytest.mark.parametrize("graph", LEGENDS.values(), ids=LEGENDS.keys())
def test_the_legend_names_every_kind_inside_the_picture(graph):
    kinds = sorted(kind_colours(graph))
    figure = architecture_figure(graph, title=graph.name)
    legend = figure.axes[0].get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == kinds
    figure.set_dpi(80)  # as `to_png` draws: type is wider there
    FigureCanvasAgg(figure).draw()
    whole, box = figure.bbox, legend.get_tightbbox()
    assert whole.x0 <= box.x0 and whole.y0 <= box.y0
    assert box.x1 <= whole.x1 and box.y1 <= whole.y1


def test_a_picture_shows_state_and_probability():
    graph = residual_chain(2)
    mask = torch.tensor([True, False, False, False])  # the second block is cut: the first is dead
    ax = architecture_figure(graph, mask, [0.25, 0.5, 0.75, 1.0], title="a <b>").axes[0]
    texts = {text.get_text() for text in ax.texts} | {ax.get_title()}
    assert {"0.25", "0.50", "0.75", "1.00", "0", "2", "a <b>"} <= texts
    lines = [p for p in ax.patches if isinstance(p, PathPatch)]
    dashes = [line.get_linestyle() for line in lines]
    assert dashes == [(0, (1, 1.2))] + [(0, (3, 3))] * 3
    alive = draw_architecture(plt.figure().add_subplot(), graph, torch.tensor([1, 0, 0, 1]).bool())
    inks = [to_hex(p.get_edgecolor()) for p in alive.patches if isinstance(p, PathPatch)]
    assert inks.count(PALETTE[0].lower()) == inks.count(PALETTE[1].lower()) == 1


NAMES = (r"$\frac$", "a$b$c", r"$\undefined{", "<b>&amp;", "$$")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_and_no_formula(name):
    """An unfinished formula made the picture, and the view with it, impossible."""
    graph = build([("0", name, name), (name, "2", "conv"), ("0", "2", name + "2")], "0", "2", name)
    figure = architecture_figure(graph, title=name)
    to_png(figure)
    ax = plt.figure().add_subplot()  # axes that were there before
    draw_architecture(ax, graph, title=name)
    to_png(ax.figure)
    for axes in (figure.axes[0], ax):
        shown = [*axes.texts, axes.title, *axes.get_legend().get_texts()]
        assert name in {text.get_text() for text in shown}
        assert not any(text.get_parse_math() for text in shown)
    plt.close("all")


def test_partial_positions_are_refused_by_name():
    pairs = [("0", "a", "conv"), ("a", "1", "conv")]
    with pytest.raises(ValueError, match=r"they lack \['a'\]"):
        build(pairs, "0", "1", "g", {"0": (0, 0), "1": (1, 0)})
    at = {"0": (0, 0), "a": (float("nan"), 0), "1": (1, 0)}
    with pytest.raises(ValueError, match="finite"):
        scene(build(pairs, "0", "1", "g", at))


def test_a_large_library_is_compact_and_its_modules_are_named():
    """24 tasks of seven layers took 1300 pixels without a name on any module."""
    library = Library(resnet(2, 16))
    for t in range(24):
        library.grow((t // 2 * 2,) * (t % 2 * 3) + (t,) * (7 - t % 2 * 3), 5)
    graph, _ = library.graph()
    s = scene(graph)
    assert len(graph) > 150 and s.height < 1000
    assert all(node.label for node in s.nodes) and {"24", "t24", "out"} <= {
        node.label for node in s.nodes
    }
    boxes = sorted((n.x, n.y, n.half_height) for n in s.nodes)
    for (x, y, half), (x2, y2, half2) in itertools.pairwise(boxes):
        assert x != x2 or y2 - y > half + half2


def test_matplotlib_widths_follow_probabilities():
    graph = residual_chain(2)
    ax = draw_architecture(plt.figure().add_subplot(), graph, None, [0.1, 0.4, 0.7, 1.0])
    widths = [p.get_linewidth() for p in ax.patches if isinstance(p, PathPatch)]
    assert widths == sorted(widths) and widths[3] > 2 * widths[0]
    plt.close("all")


def test_architecture_brings_its_own_mask():
    graph = residual_chain(2)
    kept = Architecture.from_mask(graph, torch.tensor([True, False, True, False]))
    pictures = [to_png(architecture_figure(*a)) for a in ((kept,), (graph, kept.mask), (graph,))]
    assert pictures[0] == pictures[1] != pictures[2]


def test_same_bytes_in_another_process():
    code = (
        "import hashlib\nfrom nas_core.viz import *\nfrom tests.viz.spaces import fabric\n"
        "g = fabric(3, 3)\nb = to_png(architecture_figure(g))\n"
        "print(hashlib.sha256(b).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "PATH": "", "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(runs[0]) == 65


def test_png_with_few_colours_is_small():
    figure = architecture_figure(fabric())
    full, small = to_png(figure), to_png(figure, small=True)
    assert small[:8] == full[:8] == b"\x89PNG\r\n\x1a\n" and len(small) < 0.7 * len(full)


def test_png_with_few_colours_keeps_the_colour_of_every_kind():
    """The lines of the legend are drawn in full strength, each in the colour of its kind."""
    graph = fabric()
    image = Image.open(io.BytesIO(to_png(architecture_figure(graph), small=True))).convert("RGB")
    _, here = zip(*image.getcolors(image.width * image.height), strict=True)
    for kind, number in kind_colours(graph).items():
        wanted = ImageColor.getrgb(PALETTE[number])
        assert min(max(abs(a - b) for a, b in zip(wanted, c, strict=True)) for c in here) < 6, kind


def test_wrong_input_is_named():
    graph = residual_chain(2)
    with pytest.raises(TypeError, match="got str"):
        architecture_figure("graph")
    with pytest.raises(ValueError, match=r"\[3\].*expected \[4\]"):
        architecture_figure(graph, None, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        architecture_figure(graph, None, [0.1, 0.2, 0.3, 1.3])
    with pytest.raises(ValueError, match="does not fit"):
        architecture_figure(graph, torch.ones(5, dtype=torch.bool))


def test_familiar_kinds_keep_their_colour():
    graph = build([("0", "1", k) for k in ("weird", "conv", "shortcut", "odd")], "0", "1", "g")
    colours = kind_colours(graph)
    assert (colours["conv"], colours["shortcut"]) == (0, 1)
    assert len(set(colours.values())) == 4


def test_the_ends_of_a_network_have_colours_of_their_own_and_close_the_legend():
    kinds = ["task 1", "head", "select", "task 2", "stem"]
    graph = build([("0", "1", k) for k in kinds], "0", "1", "g")
    colours = kind_colours(graph)
    assert list(colours) == ["task 1", "task 2", "stem", "head", "select"]
    assert len(set(colours.values())) == 5


# ---------------------------------------------------------------- colour vision

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB
VISION = {
    "usual": np.eye(3).ravel(),
    "protan": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "deutan": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "tritan": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ rgb / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [PALETTE, DARK_PALETTE], ids=["light", "dark"])
def test_colours_differ_for_every_kind_of_eye(palette, vision):
    row = VISION[vision]
    matrix = np.array(row.split() if isinstance(row, str) else row, dtype=float).reshape(3, 3)
    seen = [lab(np.clip(matrix @ linear(c), 0, 1)) for c in palette]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 11


@pytest.mark.parametrize(("palette", "page"), [(PALETTE, "#ffffff"), (DARK_PALETTE, "#111111")])
def test_colours_stand_out_from_the_page(palette, page):
    """WCAG 2.1 asks for 3:1 for graphics."""
    light = [float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) + 0.05 for c in (*palette, page)]
    assert all(max(a, light[-1]) / min(a, light[-1]) >= 3 for a in light[:-1])


def test_a_picture_with_fewer_colours_looks_the_same_and_stays_as_it_is():
    rng = np.random.default_rng(0)
    chart = np.repeat(rng.integers(0, 256, (40, 1, 3), dtype=np.uint8), 60, axis=1)
    chart = np.kron(chart, np.ones((4, 1, 1), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(chart).save(buffer, "PNG", compress_level=0)
    small = fewer_colours(buffer.getvalue())
    assert len(small) < len(buffer.getvalue()) / 10 and fewer_colours(small) == small
    seen = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), dtype=int)
    assert np.abs(seen - chart).max() <= 2
