"""The page side of the views alone, in headless Chromium, with a model that has no kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nas_core.continual import Library, resnet
from nas_core.costs import AdditiveCost
from nas_core.supernet import ChoiceSampler, Graph
from nas_core.viz import ArchView, ParetoPanel
from nas_core.viz.stream_panel import StreamPanel
from tests.viz.browser import host, needs_chromium, new_page, screenshot
from tests.viz.spaces import (
    annealed,
    build,
    fabric,
    keyword_chain,
    module_grid,
    residual_chain,
    task_paths,
)

pytestmark = [needs_chromium, pytest.mark.browser]


@pytest.fixture
def page(browser):
    page = new_page(browser)
    yield page
    assert page.problems == []
    assert all(url.startswith(("about:", "blob:", "data:")) for url in page.requests)
    page.close()


def macs(graph):
    return AdditiveCost(graph.macs, "computation", "macs")


def edge(page, name):
    return page.locator(f'[data-edge="{name}"]')


def random_graph(rng: np.random.Generator) -> Graph:
    n = int(rng.integers(2, 12))
    pairs = [(int(rng.integers(0, j)), j) for j in range(1, n)]
    pairs += [(i, int(rng.integers(i + 1, n))) for i in range(n - 1)]
    pairs += [tuple(sorted(rng.choice(n, 2, replace=False))) for _ in range(2 * n)]
    order = rng.permutation(len(pairs))
    named = [(str(pairs[i][0]), str(pairs[i][1]), f"k{i}") for i in order]
    return build(named, "0", str(n - 1), "random")


def test_reachability_and_cost_agree_with_python(page):
    rng = np.random.default_rng(0)
    host(page, ArchView(residual_chain()))
    live_cases = 0
    for _ in range(60):
        graph = random_graph(rng)
        spec = ArchView(graph, cost=macs(graph))._spec
        masks = torch.from_numpy(rng.random((20, len(graph))) < rng.uniform(0.1, 0.7))
        expected = graph.reachable(masks)
        got = page.evaluate(
            """([spec, masks]) => masks.map((m) => {
              const live = esm.reachable(spec, Uint8Array.from(m));
              return [[...live], esm.additive(spec.table, live)];
            })""",
            [spec, masks.int().tolist()],
        )
        assert [g[0] for g in got] == expected.int().tolist()
        assert [g[1] for g in got] == macs(graph)(expected).tolist()
        live_cases += int(expected.any(1).sum())
    assert 200 < live_cases < 1100  # both kinds of architectures were compared


def test_draws_follow_the_probabilities(page):
    graph = module_grid(2, 3)
    sampler = ChoiceSampler.paths(graph)
    with torch.no_grad():
        sampler.logits.normal_(generator=torch.Generator().manual_seed(0))
    for view in (
        ArchView(graph, sampler=sampler),
        ArchView(graph, probabilities=torch.linspace(0.1, 0.9, len(graph))),
    ):
        p = view.frame_probabilities
        host(page, view)
        mean = page.evaluate(
            """([spec, p]) => {
              const sum = p.map(() => 0);
              for (let i = 0; i < 4000; i++) esm.draw(spec, p).forEach((on, e) => (sum[e] += on));
              return sum.map((s) => s / 4000);
            }""",
            [view._spec, p.tolist()],
        )
        assert np.allclose(mean, p, atol=0.05)  # six standard deviations


def test_click_and_keys_toggle_and_dead_ends_grey_out(page):
    graph = residual_chain(2)
    host(page, ArchView(graph, cost=macs(graph), budget=6e3))
    first, second = (edge(page, f"0→1 {k}") for k in ("conv", "shortcut"))
    assert "10 k macs" in page.locator(".price").inner_text()
    for k in ("conv", "shortcut"):
        edge(page, f"1→2 {k}").click()
    assert page.evaluate("model.state.mask") == "1100"
    assert page.evaluate("model.saved.map((s) => s.mask)") == ["1101", "1100"]
    assert "dead" in first.get_attribute("class") and "on no path" in first.get_attribute(
        "aria-label"
    )
    assert page.locator(".summary").inner_text() == "0 of 4 edges, 2 more on no path"
    assert page.locator(".price").inner_text() == "no path from source to sink"
    second.focus()
    page.keyboard.press("Enter")
    assert second.get_attribute("aria-checked") == "false"
    page.keyboard.press("ArrowRight")  # on to the convolution of the second block
    page.keyboard.press(" ")
    assert page.evaluate("model.state.mask") == "1010"
    assert page.locator(".summary").inner_text() == "2 of 4 edges"
    assert page.locator(".price").inner_text() == "4 k macs — ✓ within the budget of 6 k macs"
    edge(page, "1→2 conv").hover()
    assert "conv module · 3 k macs · 20 parameters" in page.locator(".detail").inner_text()


def test_details_stay_on_the_selected_edge_and_move_nothing(page):
    graph = residual_chain(2)
    host(page, ArchView(graph, cost=macs(graph), budget=6e3))
    detail, last = page.locator(".detail"), page.locator(".controls")
    before = last.bounding_box()["y"]
    edge(page, "0→1 conv").locator(".hit").click(force=True)
    edge(page, "1→2 conv").locator(".hit").hover(force=True)
    assert detail.inner_text().startswith("1→2 conv")
    page.locator(".summary").hover()
    assert detail.inner_text().startswith("0→1 conv") and "off" in detail.inner_text()
    assert "selected" in edge(page, "0→1 conv").get_attribute("class")
    page.locator(".node").first.hover()
    assert detail.inner_text() == "node 0"
    assert last.bounding_box()["y"] == before


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (900, 600)])
def test_a_large_library_leaves_its_slider_in_sight(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    library = Library(resnet(2, 16))
    for t in range(24):
        library.grow((t // 2 * 2,) * (t % 2 * 3) + (t,) * (7 - t % 2 * 3), 5)
    graph, masks = library.graph()
    host(page, ArchView(graph, frames=masks, frame_label="task", title="library"))
    box = page.locator("input[type=range]").bounding_box()
    assert box["y"] + box["height"] < height + (0 if height == 800 else 80)
    text = page.locator(".node text", has_text="t24").first
    scale = text.evaluate("n => n.getScreenCTM().a")
    assert scale * 10.5 > 8  # a label stays readable on a narrow page; the picture scrolls
    screenshot(page, f"library_{width}")
    page.get_by_label("whole graph").click()
    tall = page.locator("svg.graph").bounding_box()["height"]
    assert tall <= page.locator(".scroll").bounding_box()["height"] + 1
    page.get_by_label("whole graph").click()
    assert text.evaluate("n => n.getScreenCTM().a") == scale


def test_labels_have_a_smallest_size_and_narrow_pages_scroll(page):
    page.set_viewport_size({"width": 500, "height": 600})
    host(page, ArchView(fabric(8, 6)))
    assert page.locator(".node text").first.evaluate("n => n.getScreenCTM().a") * 10.5 > 8
    assert page.locator(".scroll").evaluate("n => n.scrollWidth > n.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 500  # the page itself does not


def test_small_shares_and_round_ticks(page):
    host(page, ArchView(residual_chain()))
    shares = page.evaluate("[0, 0.00378, 0.0096, 0.012, 0.5, 1].map(esm.percent)")
    assert shares == ["0 %", "0.38 %", "0.96 %", "1 %", "50 %", "100 %"]
    assert page.evaluate("esm.ticks(2.09, 7.82)") == [4, 6]
    assert page.evaluate("esm.ticks(0.31, 0.46)") == [0.35, 0.4, 0.45]
    assert page.evaluate("esm.ticks(0, 15, 8)") == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(page.evaluate("esm.ticks(3, 3)")) == 1


def test_a_converged_sampler_says_why_there_is_no_other_sample(page):
    graph = residual_chain(2)
    host(page, ArchView(graph, probabilities=[1.0, 0.0, 1.0, 0.0]))
    button = page.get_by_label("sample another")
    assert button.is_disabled() and "every sample is the same" in button.get_attribute("title")
    host(page, ArchView(graph, probabilities=[1.0, 0.5, 1.0, 0.0]))
    assert page.get_by_label("sample another").last.is_enabled()


def test_a_recorded_widget_says_so_in_one_quiet_line(page):
    """The widget manager marks every view without a kernel with a red broken link."""
    host(page, ArchView(residual_chain()))
    page.evaluate(
        """() => {
          const style = document.createElement('style');  // the manager's own rule
          style.textContent = '.jupyter-widgets-disconnected::before ' +
            '{ content: "\\f127"; color: #d9534f; font: 21px FontAwesome }';
          document.head.prepend(style);
          document.querySelector('.nas-view').parentElement.className =
            'jupyter-widgets-disconnected';
        }"""
    )
    said, colour, size = page.locator(".jupyter-widgets-disconnected").evaluate(
        """n => {
          const style = getComputedStyle(n, '::before');
          return [style.content, style.color, style.fontSize];
        }"""
    )
    assert said == '"recorded view; run the cell to connect"' and size == "12px"
    assert colour != "rgb(217, 83, 79)"


def test_readers_who_want_less_motion_see_few_slow_steps(page):
    page.emulate_media(reduced_motion="reduce")
    graph = residual_chain()
    host(page, ArchView(graph, frames=annealed(graph, 36), frame=0))
    page.evaluate(
        "window.frames = []; model.on('change:frame', () => frames.push(model.state.frame))"
    )
    page.get_by_label("play").click()
    page.wait_for_function("frames.length === 2", timeout=1_500_000)
    page.get_by_label("pause").click()
    assert page.evaluate("frames") == [3, 6]


@pytest.mark.parametrize(
    "graph", [fabric(4, 4), keyword_chain(), residual_chain(), module_grid()], ids=lambda g: g.name
)
def test_every_edge_can_be_clicked_with_a_pointer(page, graph):
    """Also parallel and crossing ones: somewhere on its line an edge is on top."""
    host(page, ArchView(graph))
    hidden = page.evaluate(
        """() => [...document.querySelectorAll('.edge')].filter((g) => {
          const line = g.querySelector('.line'), m = line.getScreenCTM();
          for (let i = 1; i < 20; i++) {
            const p = line.getPointAtLength((line.getTotalLength() * i) / 20).matrixTransform(m);
            if (g.contains(document.elementFromPoint(p.x, p.y))) return false;
          }
          return true;
        }).map((g) => g.dataset.edge)"""
    )
    assert hidden == []


def test_there_is_one_tab_stop_and_every_edge_is_named(page):
    graph = fabric(4, 4)
    host(page, ArchView(graph))
    stops = page.locator('.edge[tabindex="0"]')
    assert stops.count() == 1
    labels = page.locator(".edge").evaluate_all("all => all.map((g) => g.ariaLabel)")
    assert len(set(labels)) == len(graph) and all("macs" in text for text in labels)
    stops.first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.edge") == graph.edges[-1].name
    roles = page.locator(".nas-arch :is(button, input, svg.graph)").evaluate_all(
        "all => all.map((n) => n.ariaLabel)"
    )
    assert all(roles)


def test_slider_and_play_move_through_the_frames_without_a_kernel(page):
    graph = fabric(4, 4)
    frames = annealed(graph, 12)
    view = ArchView(graph, frames=frames, cost=macs(graph), budget=5e4)
    host(page, view)
    slider = page.locator("input[type=range]")
    assert slider.input_value() == "11"
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".when").inner_text() == "epoch 1 of 12"
    assert page.locator(".edge.live").count() == len(graph)
    assert page.evaluate("model.saved.at(-1)") == {"frame": 0, "mask": "1" * len(graph)}
    widths = page.locator(".edge .line").evaluate_all(
        "a => a.map((l) => parseFloat(l.style.strokeWidth))"
    )
    assert np.allclose(widths, 1 + 4.5 * 0.95, atol=0.02)
    saves = page.evaluate("model.saved.length")
    page.get_by_label("play").click()
    page.wait_for_function("document.querySelector('input').value === '11'", timeout=1_500_000)
    page.get_by_label("play").wait_for()  # the button is "play" again
    assert page.evaluate("model.saved.length") == saves + 1  # one message for the whole film
    kept = graph.reachable(frames[11] > 0.5)
    assert page.evaluate("model.state.mask") == "".join(map(str, kept.int().tolist()))
    assert page.locator(".edge.live").count() == int(kept.sum())


def test_sample_and_most_probable_work_without_a_kernel(page):
    graph = fabric(4, 4)
    host(page, ArchView(graph, probabilities=torch.full((len(graph),), 0.6)))
    seen = set()
    for _ in range(8):
        page.get_by_label("sample another").click()
        seen.add(page.evaluate("model.state.mask"))
    assert len(seen) > 5
    page.get_by_label("most probable").click()
    assert page.evaluate("model.state.mask") == "1" * len(graph)


def test_costs_that_only_python_knows(page):
    graph = residual_chain(2)
    view = ArchView(graph, cost=lambda m: m.sum(1).double() ** 2, frames=torch.eye(4).bool() | True)
    host(page, view)
    assert page.locator(".price").inner_text().startswith("16 —")  # recorded with the frames
    edge(page, "0→1 conv").click()
    assert page.locator(".price").inner_text() == "this cost needs the running kernel"
    page.evaluate("model.set('_priced', [model.get('mask'), 9])")  # Python's answer
    assert page.locator(".price").inner_text().startswith("9 —")


def test_sampler_of_ones_own_is_asked_in_python(page):
    class Fixed(torch.nn.Module):
        def probabilities(self):
            return torch.full((4,), 0.5)

        def sample(self, batch, generator=None):
            return type("Sample", (), {"mask": torch.tensor([[True, False, False, True]])})

    view = ArchView(residual_chain(2), sampler=Fixed())
    host(page, view)
    page.get_by_label("sample another").click()
    (message,) = page.evaluate("model.sent")
    view._handle_custom_msg(message, [])
    assert view.mask.tolist() == [True, False, False, True]


def test_points_of_the_front_show_their_runs(page):
    graph = fabric(3, 3)
    runs = [p > 0.5 for p in annealed(graph, 5)]
    runs[1] = runs[1].clone()
    runs[1][3] = False
    panel = ParetoPanel(graph, runs, [5, 4, 3, 2, 6], [0.9, 0.8, 0.7, 0.75, 0.6], cost=macs(graph))
    host(page, panel)
    page.locator('[data-point="1"]').click()
    assert page.evaluate("model.saved.at(-1).frame") == 1
    assert "off" in edge(page, graph.edges[3].name).get_attribute("class")
    page.keyboard.press("ArrowLeft")  # the next cheaper one
    assert page.evaluate("model.state.frame") == 2
    assert page.locator('[aria-checked="true"][data-point]').get_attribute("data-point") == "2"
    assert "run 3" in page.locator(".when").inner_text()
    assert page.locator(".dot.best").count() == 3


def test_cleaning_up_stops_the_film_and_the_listeners(page):
    graph = residual_chain()
    host(page, ArchView(graph, frames=annealed(graph, 5)))
    page.get_by_label("play").click()
    page.evaluate("cleanup()")
    shown = "[model.state.frame, document.querySelector('.when').textContent]"
    before = page.evaluate(shown)
    page.wait_for_timeout(1600)
    page.evaluate("model.set('mask', '0'.repeat(6))")
    assert (
        page.evaluate("[model.state.frame, document.querySelector('.when').textContent]") == before
    )
    assert page.locator(".edge.live").count() > 0


def sound(view=None):
    steps = 20
    posteriors = torch.rand(steps, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    return StreamPanel(
        torch.sin(torch.linspace(0, 3000, 80_000)) * torch.linspace(0.1, 1, 80_000),
        posteriors.numpy(), range(0, 4000, 200), range(1000, 3000, 100),
        ["silence", "unknown", "yes", "marvin"], truth=[("yes", 400.0), ("marvin", 2000.0)],
        found=[("yes", 600.0)], title="five seconds", view=view,
    )  # fmt: skip


def test_the_panel_of_a_stream_scrubs_by_slider_and_by_pointer(page):
    colours = set()
    for dark in (True, False):
        host(page, sound(), dark=dark)
        bar = page.locator(".posterior").first
        colours.add(bar.evaluate("n => getComputedStyle(n).fill"))
        screenshot(page, f"sound_{'dark' if dark else 'light'}")
    assert len(colours) == 2
    page.get_by_label("step of the stream").focus()
    page.keyboard.press("End")
    assert page.evaluate("model.state.frame") == 19
    assert page.locator("output").inner_text().endswith("2.9 k macs")
    seconds = page.locator(".time").all_text_contents()
    assert seconds == ["0", "1", "2", "3", "4", "5"]
    assert page.locator(".legend span").count() == 4  # what the colours mean
    assert page.locator(".cursor").evaluate("n => +n.getAttribute('x')") > 500
    box = page.locator("svg.stream").bounding_box()
    page.mouse.click(box["x"] + box["width"] * (92 + 660 * 0.5) / 760, box["y"] + 60)
    assert page.evaluate("model.state.frame") == 10  # the step whose middle is at 2.5 s


def test_the_slider_of_a_panel_stands_below_its_cursor(page):
    host(page, sound())
    slider = page.get_by_label("step of the stream")
    for key in ("Home", "End"):
        slider.focus()
        page.keyboard.press(key)
        cursor, track = page.locator(".cursor").bounding_box(), slider.bounding_box()
        thumb = track["x"] + 8 if key == "Home" else track["x"] + track["width"] - 8
        assert abs(cursor["x"] + cursor["width"] / 2 - thumb) < 3


def test_a_panel_shows_the_cost_of_the_linked_view_beside_its_own(page):
    chain = keyword_chain()
    view = ArchView(chain, frames=torch.ones(20, len(chain)).bool(), frame=0, cost=macs(chain))
    host(page, sound(view))
    whole = int(chain.macs.sum())
    assert (
        page.locator("output")
        .inner_text()
        .endswith(f"1 k macs · network in the graph {whole / 1000:g} k macs")
    )


def test_the_twin_of_a_view_serves_while_the_widget_is_not_there(page):
    """The two rows of an output as JupyterLab makes them; the upper one is empty, then filled."""
    graph = fabric(3, 3)
    view = ArchView(graph, frames=annealed(graph, 5), frame=2, cost=macs(graph))
    row = '<div class="jp-OutputArea-child">{}</div>'
    page.set_content(
        '<div class="jp-OutputArea">'
        + row.format("Loading widget...")
        + row.format(view.without_kernel())
        + "</div>"
    )
    rows = page.locator(".jp-OutputArea-child")
    rows.nth(1).locator(".when", has_text="epoch 3 of 5").wait_for()
    assert not rows.nth(0).is_visible() and page.locator(".edge").count() == len(graph)
    rows.nth(1).locator("input").focus()
    page.keyboard.press("Home")
    assert page.locator(".edge.live").count() == len(graph)
    page.evaluate(
        "document.querySelector('.jp-OutputArea-child').innerHTML = '<p class=nas-view>x'"
    )
    page.wait_for_function("!document.querySelector('.nas-twin .nas-view')")
    assert rows.nth(0).is_visible() and not rows.nth(1).is_visible()
    page.evaluate("document.querySelector('.jp-OutputArea-child').innerHTML = ''")
    rows.nth(1).locator(".when", has_text="epoch 1 of 5").wait_for()  # where it was left
    outside = f"<main>{view.without_kernel()}</main>"  # a page that shows the still picture
    page.set_content(outside)
    page.wait_for_timeout(600)
    assert page.locator(".nas-view").count() == 0


def test_a_view_that_is_seen_later_takes_up_where_the_other_is(page):
    chain = keyword_chain()
    steps = torch.ones(4, len(chain), dtype=torch.bool)
    view = ArchView(chain, frames=steps, frame=0, frame_label="step")
    other = ArchView(chain, frames=steps, frame=0, frame_label="step")
    panel = StreamPanel(
        torch.zeros(16_000), np.full((4, 2), 0.5), range(4), [1] * 4, ["a", "b"], view=view
    )
    cells = [f'<div class="jp-OutputArea">{v.without_kernel()}</div>' for v in (panel, other, view)]
    page.set_content(cells[0] + '<div style="height:4000px"></div>' + cells[1] + cells[2])
    page.get_by_label("step of the stream").focus()
    page.keyboard.press("End")
    assert page.locator(".when").count() == 0
    page.mouse.wheel(0, 5000)
    page.locator(".when", has_text="step 4 of 4").wait_for()
    page.locator(".when", has_text="step 1 of 4").wait_for()  # no partner of the panel
    page.locator(".nas-view input[type=range]").last.focus()
    page.keyboard.press("Home")
    assert page.get_by_label("step of the stream").input_value() == "0"


def test_colours_of_light_and_dark_pages(page):
    graph, chain, modules = fabric(8, 6), keyword_chain(), module_grid(4, 5)
    epochs = annealed(graph, 300)
    steps = torch.rand(20, len(chain), generator=torch.Generator().manual_seed(0)) < 0.8
    runs = annealed(graph, 9) > 0.5
    views = {
        "fabric": ArchView(graph, frames=epochs, frame=220, cost=macs(graph), budget=2e5),
        "stream": ArchView(chain, frames=steps, frame=3, frame_label="step", cost=macs(chain)),
        "tasks": ArchView(modules, frames=task_paths(modules, 4, 5), frame_label="task"),
        "front": ParetoPanel(graph, runs, range(9, 0, -1), range(9, 0, -1), cost=macs(graph)),
    }
    for name, view in views.items():
        colours = []
        for dark in (False, True):
            host(page, view, dark=dark)
            line = page.locator(".edge.live .line").first
            colours.append(line.evaluate("n => getComputedStyle(n).stroke"))
            screenshot(page, f"{name}_{'dark' if dark else 'light'}")
        assert colours[0] != colours[1]
