"""The panel's traits; its page is plain SVG without imports."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nas_core.viz import stream_panel
from nas_core.viz.stream_panel import StreamPanel


def panel(**settings):
    posteriors = np.full((6, 2), 0.5)
    return StreamPanel(
        torch.randn(32_000), posteriors, 200.0 * np.arange(6), [10] * 6, ("bg", "yes"),
        truth=[("yes", 400.0)], found=[("yes", 600.0)], **settings,
    )  # fmt: skip


def test_state_and_frame_limits():
    p = panel(title="two seconds")
    assert p._spec["seconds"] == 2 and len(p._spec["posteriors"]) == 6
    assert repr(p) == "StreamPanel(two seconds: 6 steps, 1 detections)"
    p.frame = 99
    assert p.frame == 5
    p.frame = -1
    assert p.frame == 0
    assert not p._spec["audio"] and panel(player=True)._spec["audio"].startswith("UklGR")


def test_page_needs_nothing_from_outside():
    text = Path(stream_panel.__file__).with_suffix(".js").read_text()
    assert "import " not in text and "fetch(" not in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="3 times"):
        StreamPanel(torch.zeros(9), np.ones((6, 2)), [0, 1, 2], [1] * 6, ("a", "b"))
    with pytest.raises(ValueError, match="2 posteriors for 3 classes"):
        StreamPanel(torch.zeros(9), np.ones((1, 2)), [0], [1], ("a", "b", "c"))
