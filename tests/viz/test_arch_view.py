"""The Python side of the live views."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nas_core.viz
from nas_core.costs import AdditiveCost
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler
from nas_core.viz import ArchView, ParetoPanel
from nas_core.viz.page import unpacked
from nas_core.viz.stream_panel import StreamPanel
from tests.supernet.graphs import small_net
from tests.viz.spaces import annealed, build, fabric, module_grid, residual_chain, task_paths


def macs(graph):
    return AdditiveCost(graph.macs, "computation", "macs")


def test_toggled_mask_reaches_observers_and_the_real_cost():
    graph = residual_chain(2)
    calls = []

    def cost(mask):  # not additive: nobody but Python can know it
        calls.append(mask.clone())
        return mask.sum(1).double() ** 2

    view = ArchView(graph, cost=cost, budget=5.0)
    assert view.cost_value == 16.0
    seen = []
    view.observe(lambda change: seen.append(change.new), "mask")
    calls.clear()
    view.set_state({"mask": "1100"})  # as the page sends it: both edges now lead nowhere
    assert [m.tolist() for m in seen] == [[True, True, False, False]]
    assert view.architecture.is_empty and view.cost_value == 0.0
    assert calls[-1].tolist() == [[False] * 4]  # costs see pruned masks only
    view.set_state({"mask": "1110"})
    assert view.architecture == Architecture.from_mask(graph, view.mask)
    assert view.cost_value == 9.0 and view.get_state()["_priced"] == ["1110", 9.0]
    view.mask = view.mask.clone()
    assert len(seen) == 2  # the same mask is no news


def test_frames_move_the_mask():
    graph = fabric(3, 3)
    frames = annealed(graph, 7)
    view = ArchView(graph, frames=frames, cost=macs(graph), budget=1e4)
    assert view.frame == 6 and torch.equal(view.mask, graph.reachable(frames[6] > 0.5))
    view.frame = 0
    assert view.mask.all() and view.cost_value == float(graph.macs.sum())
    assert torch.equal(view.frame_probabilities, frames[0])
    assert view._spec["costs"] == [
        float(graph.macs[graph.reachable(p > 0.5)].sum()) for p in frames
    ]
    kept = ArchView(graph, frames=frames, mask=torch.ones(len(graph), dtype=torch.bool))
    assert kept.mask.all()  # an explicit mask is not overwritten by the last frame


def test_sampler_supplies_probabilities_and_draws():
    net = small_net()
    sampler = BernoulliSampler(net.graph, logit=0.5)
    view = ArchView(net, sampler=sampler)
    assert torch.allclose(view.frame_probabilities, sampler.probabilities())
    drawn = {view.sample() for _ in range(30)}
    assert len(drawn) > 5
    again = ArchView(net, sampler=sampler)
    assert {again.sample() for _ in range(30)} == drawn  # its own seed, not the global one
    assert view.most_probable() == Architecture.from_mask(net.graph, sampler.mode())


def test_choice_sampler_shows_the_best_of_every_group():
    graph = module_grid(3, 3)
    sampler = ChoiceSampler.paths(graph)
    with torch.no_grad():
        sampler.logits.normal_(generator=torch.Generator().manual_seed(3))
    view = ArchView(graph, sampler=sampler)
    assert torch.equal(view.mask, sampler.mode())
    assert view.sample().mask.sum() == 4  # a path of three modules and a head


def test_boolean_frames_are_shown_as_they_are():
    graph = module_grid(3, 4)
    paths = task_paths(graph, 3, 4)
    view = ArchView(graph, frames=paths, frame_names=["cars", "cats", "digits"], frame=0)
    assert view.frame_probabilities is None and torch.equal(view.mask, paths[0])
    view.frame = 2
    assert torch.equal(view.mask, paths[2])


def test_pareto_panel_shows_the_chosen_run():
    graph = fabric(3, 3)
    masks = [p > 0.5 for p in annealed(graph, 4)]
    runs = [Architecture.from_mask(graph, m) for m in masks]
    panel = ParetoPanel(graph, runs, [4, 3, 2, 5], [0.9, 0.8, 0.7, 0.85], cost=macs(graph))
    assert panel.frame == 0 and panel.points["front"] == [True, True, True, False]
    panel.set_state({"frame": 2})
    assert panel.architecture == runs[2]
    assert panel.cost_value == float(runs[2].macs)
    with pytest.raises(ValueError, match="4 runs, 2 costs"):
        ParetoPanel(graph, runs, [1, 2], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="finite"):
        ParetoPanel(graph, runs, [1, 2, 3, np.nan], [1, 2, 3, 4])


def test_a_search_can_be_shown_as_it_is():
    graph = fabric(3, 3)
    frames = annealed(graph, 5)
    found = Architecture.from_mask(graph, frames[-1] > 0.5)
    run = SimpleNamespace(graph=graph, probabilities=frames, architecture=found, budget=7e4)
    view = ArchView.from_run(run, macs(graph), title="found")
    assert view.architecture == found and view.budget == 7e4 and len(view.frames) == 5
    assert ArchView.from_run(run).budget is None


def test_repr_and_mimebundle_are_stable():
    graph = fabric(3, 3)

    def make():
        return ArchView(graph, frames=annealed(graph, 5), cost=macs(graph))

    first, second = make(), make()
    text = "ArchView(fabric 3×3: 11 nodes, 20 edges, 5 frames, computation)"
    assert repr(first) == repr(second) == text
    data, _ = first._repr_mimebundle_()
    assert data["text/plain"] == text and data["image/png"].startswith("iVBOR")
    assert data["image/png"] == second._repr_mimebundle_()[0]["image/png"]
    assert first.model_id != second.model_id and first.model_id[:24] == second.model_id[:24]


def test_model_ids_repeat_in_a_new_kernel():
    code = (
        "from tests.viz.spaces import *\nfrom nas_core.viz import ArchView\n"
        "g = fabric(2, 3)\na, b = ArchView(g), ArchView(g)\n"
        "print(a.model_id, b.model_id, a.layout.model_id)"
    )
    environment = {**os.environ, "PYTHONPATH": "."}
    runs = [
        subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                       env=environment).stdout.split() for _ in range(2)
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(set(runs[0])) == 3


def test_a_long_search_stays_small():
    """CNF W=8, H=6 over 300 epochs; a notebook with all its views has a megabyte."""
    graph = fabric(8, 6)
    view = ArchView(graph, frames=annealed(graph, 300), cost=macs(graph), budget=2e5)
    state = {k: v for k, v in view.get_state().items() if isinstance(v, (str, int, list, dict))}
    assert len(json.dumps(state)) < 150_000
    assert len(view._repr_mimebundle_()[0]["image/png"]) < 80_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": torch.rand(3, 5)}, ValueError, r"frames are \[T, 4\], got \[3, 5\]"),
        ({"frames": torch.rand(0, 4)}, ValueError, "frames are"),
        ({"frames": 2 * torch.ones(3, 4)}, ValueError, r"lie in \[0, 1\]"),
        ({"probabilities": [0.5]}, ValueError, "do not fit"),
        ({"mask": [1, 0, 1, 0]}, TypeError, "bool"),
        ({"mask": [[True] * 4] * 2}, ValueError, "one mask"),
        ({"frame": 1}, ValueError, "frame 1 does not exist"),
        ({"frame_names": ["a", "b"]}, ValueError, "2 frame_names for 1 frames"),
        ({"cost": lambda m: m.sum().double()}, ValueError, "shape"),
        ({"cost": lambda m: torch.full((len(m),), torch.nan)}, ValueError, "finite"),
    ],
)
def test_wrong_input_is_refused_at_the_door(options, error, message):
    with pytest.raises(error, match=message):
        ArchView(residual_chain(2), **options)
    view = ArchView(residual_chain(2))
    with pytest.raises(ValueError, match="frame 7"):
        view.frame = 7


FALLBACK = """
import sys
sys.modules["anywidget"] = None
import torch
from nas_core.viz import ArchView, ParetoPanel
from tests.viz.spaces import annealed, fabric
import ipywidgets
graph = fabric(3, 3)
view = ArchView(graph, frames=annealed(graph, 4), cost=lambda m: m.sum(1).double(), budget=9.0)
assert isinstance(view, ipywidgets.VBox)
seen = []
view.observe(lambda change: seen.append(change.new), "mask")
before = view.children[0].value
view.children[1].value = 1                      # the slider
assert view.frame == 1 and view.mask.all() and view.children[0].value != before
drawn = view.children[0].value
view.mask = graph.reachable(torch.arange(len(graph)) != 3)
assert view.children[0].value != drawn and len(seen) == 2
view.sample()
assert view.most_probable().mask.all()
assert "HTML" not in [type(child).__name__ for child in view.children]  # nothing to escape
data = view._repr_mimebundle_()
data = data[0] if isinstance(data, tuple) else data
assert data["text/plain"] == repr(view) and "image/png" in data
assert ParetoPanel(graph, [view.mask], [1.0], [2.0]).frame == 0
from nas_core.viz.stream_panel import StreamPanel
sound = StreamPanel(torch.randn(32000), torch.eye(4).numpy(), [0, 200, 400, 600], range(4), "abcd",
                    view=view)
picture, slider = sound.children
before, slider.value = picture.value, 3
assert sound.frame == view.frame == 3 and picture.value != before
print("same interface")
"""


def test_what_is_saved_for_readers_without_a_kernel(monkeypatch):
    """Two outputs: the widget with its still picture, and a page of its own with the same state."""
    graph = fabric(3, 3)
    view = ArchView(graph, frames=annealed(graph, 5), frame=2, cost=macs(graph))
    shown = []
    monkeypatch.setattr("nas_core.viz.page.display", lambda data, **_: shown.append(data))
    view._ipython_display_()
    widget, twin = shown
    assert set(widget) >= {"image/png", "text/plain"} and widget["text/plain"] == repr(view)
    assert list(twin) == ["text/html"]
    found = re.fullmatch(
        r'<div class="nas-twin"><!--(eN[\w+/=]+)--><script>(.+)</script></div>', twin["text/html"]
    )
    page = unpacked(found[1])
    assert page["traits"] == {k: view.get_state()[k] for k in ("_spec", "frame", "mask", "_priced")}
    assert page["esm"] == view._esm and page["css"] == view._css
    assert "http" not in (page["twin"] + page["esm"] + found[2]).replace("http://www.w3.org", "")


def test_a_page_without_scripts_prints_no_program():
    """`nbconvert --sanitize-html` prints what it removes: a short line, not seventy kilobytes."""
    from nbconvert.preprocessors.sanitize import SanitizeHTML

    text = SanitizeHTML().sanitize_html_tags(ArchView(fabric(3, 3)).without_kernel())
    assert len(text) < 500 and "esm" not in text


def test_a_name_that_looks_like_a_formula_breaks_no_view():
    """The still picture could not be drawn, and without it the view was not shown."""
    name = r"$\frac$"
    graph = build([("0", name, name), (name, "2", "conv")], "0", "2", name)
    view = ArchView(graph, frames=[[1, 1]] * 2, frame_names=[name, "b"], title=name)
    panel = ParetoPanel(graph, [[1, 1]], [1.0], [2.0], names=[name], xlabel=name, ylabel=name)
    sound = StreamPanel(
        torch.zeros(48_000), np.ones((9, 1)), range(0, 1800, 200), [1] * 9, [name],
        truth=[(name, 0)], found=[(name, 0)], title=name,
    )  # fmt: skip
    for shown in (view, panel, sound):
        data, _ = shown._repr_mimebundle_()
        assert data["image/png"].startswith("iVBOR")


def test_matplotlib_and_widgets_are_imported_when_they_are_needed():
    code = (
        "import sys\nimport nas_core.viz as viz\n"
        "assert not {'matplotlib', 'ipywidgets', 'anywidget'} & set(sys.modules)\n"
        "viz.ArchView\nassert 'matplotlib' not in sys.modules and 'soundfile' not in sys.modules\n"
        "viz.plot_pareto\nassert 'matplotlib' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'to_svg'"):
        nas_core.viz.to_svg  # noqa: B018


def test_fallback_without_anywidget_has_the_same_interface():
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.stdout.strip() == "same interface", done.stderr


def test_modes_say_what_is_on_where_frames_are_shares():
    """Shares of kept weights are no probabilities: an edge with a tenth of them is there."""
    graph = residual_chain(2)
    shares = torch.tensor([[0.1, 0.0, 0.3, 0.2], [0.4, 0.2, 0.1, 0.3]])
    assert not ArchView(graph, frames=shares).mask.any()
    view = ArchView(graph, frames=shares, modes=shares > 0, frame=0)
    assert view.mask.tolist() == [True, False, True, True]
    view.frame = 1
    assert view.mask.all()
    with pytest.raises(ValueError, match=r"modes are \[1, 4\], frames \[2, 4\]"):
        ArchView(graph, frames=shares, modes=shares[:1] > 0)
