"""The live view at the size of the thesis' fabrics: bytes in the notebook, time per slider step.

    python benchmarks/arch_view.py

A CNF of 8 columns and 6 scales over 300 epochs, in headless Chromium, as a notebook without a
kernel shows it. A step is everything between two positions of the slider: decoding the frame,
reachability, cost, 124 edges, style and layout; painting is not included.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil

import torch
from common import write_results

from nas_core import costs
from nas_core.spaces import conv_fabric
from nas_core.viz import ArchView

EPOCHS = 300
STEPS = """(order) => {
  const slider = document.querySelector('input[type=range]');
  const graph = document.querySelector('svg.graph');
  return order.map((t) => {
    const start = performance.now();
    slider.value = t;
    slider.dispatchEvent(new Event('input'));
    graph.getBoundingClientRect();  // style and layout now
    return performance.now() - start;
  });
}"""


def make_view() -> ArchView:
    """A search in which every probability moves in every epoch."""
    torch.manual_seed(0)
    net = conv_fabric(8, 6, 16, 10)
    end = (torch.rand(len(net.graph)) < 0.7).float()
    share = torch.linspace(0, 1, EPOCHS)[:, None]
    frames = 0.95 * (1 - share) + share * (0.02 + 0.96 * end)
    frames = (frames + 0.01 * torch.randn_like(frames)).clamp(0, 1)
    return ArchView(net, frames=frames, cost=costs.computation(net), budget=2e7)


def milliseconds(view: ArchView) -> tuple[float, float, float]:
    """Median per step in order, median per jump, and what 95 of 100 jumps stay below."""
    from playwright.sync_api import sync_playwright

    html = f'<div class="jp-OutputArea">{view.without_kernel()}</div>'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_content(html)
        page.locator("svg.graph").wait_for()
        page.evaluate(STEPS, list(range(EPOCHS)))  # warm
        film = page.evaluate(STEPS, list(range(EPOCHS)))
        jumps = page.evaluate(STEPS, torch.randperm(EPOCHS).tolist())
        browser.close()
    jumps.sort()
    return sorted(film)[EPOCHS // 2], jumps[EPOCHS // 2], jumps[EPOCHS * 95 // 100]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    view = make_view()
    state = {k: v for k, v in view.get_state().items() if isinstance(v, str | int | list)}
    bundle, _ = view._repr_mimebundle_()
    saved, twin = len(json.dumps(state)), len(view.without_kernel())
    film, jump, slow = milliseconds(view)
    png = base64.b64decode(bundle["image/png"])
    frame, raw = "one frame at 60 Hz: 16.7 ms", len(view.graph) * EPOCHS * 4
    measured = [
        ("saved state", saved / 1000, "kB", "limit 1000 per notebook"),
        ("twin without a kernel", twin / 1000, "kB", f"probabilities alone {raw / 1000:.0f} kB"),
        ("still picture", len(png) / 1000, "kB", "–"),
        ("to the next epoch", film, "ms", frame),
        ("to any epoch", jump, "ms", frame),
        ("to any epoch, 95 of 100 stay below", slow, "ms", frame),
    ]
    size = f"ArchView, {len(view.graph)} edges × {EPOCHS} epochs"
    write_results(
        "arch_view",
        [
            {"what": f"{size}: {what}", "value": float(f"{x:.3g}"), "unit": unit, "versus": versus}
            for what, x, unit, versus in measured
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
