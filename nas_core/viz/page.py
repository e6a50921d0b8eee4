"""How a view gets into a page: as a widget, without a kernel, and as a still picture.

A view has traits (`_spec`: what never changes; `frame`, …) and `_draw`. Where anywidget is missing
it is its still picture with a slider.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets as t
from IPython.display import display

from nas_core.viz.geometry import DARK_PALETTE, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import anywidget
except ImportError:
    anywidget = None  # type: ignore[assignment]

_HERE = Path(__file__).parent
_DARK_PAGE = ':is([data-jp-theme-light="false"], .vscode-dark, html[theme="dark"])'
_ids: Counter[str] = Counter()


def code(name: str) -> dict[str, str]:
    """ESM and CSS of a view, each in one text without imports."""
    colours = ["".join(f"--k{i}:{c};" for i, c in enumerate(p)) for p in (PALETTE, DARK_PALETTE)]
    esm = (_HERE / "page.js").read_text("utf-8") + (_HERE / f"{name}.js").read_text("utf-8")
    return {
        "esm": re.sub(r"^ *(//|/\*\*).*\n", "", esm, flags=re.M),  # without comments
        "css": f".nas-view{{{colours[0]}}} {_DARK_PAGE} .nas-view{{{colours[1]}}}\n"
        + (_HERE / "page.css").read_text("utf-8"),
    }


def packed(data: Any, _: Any = None) -> str:
    """Plain data as compressed text."""
    return base64.b64encode(zlib.compress(json.dumps(data).encode(), 9)).decode()


def unpacked(text: str, _: Any = None) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text)))


class View(t.HasTraits):
    """What every view has, with and without anywidget; `_spec` is set before `__init__`."""

    _spec = t.Dict().tag(sync=True, to_json=packed, from_json=unpacked)
    frame = t.Int(0).tag(sync=True)

    def figure(self, note: str = "") -> Figure:
        """What is shown now, as a matplotlib figure; `note` is a small line at the bottom."""
        from nas_core.viz.static import plain_text

        with plain_text():
            return self._draw(note)  # type: ignore[attr-defined]

    def _identity(self) -> dict[str, Any]:
        """A model id made from the content: running a notebook again gives the same id."""
        content = json.dumps([type(self).__name__, self._spec], sort_keys=True)
        _ids[digest := hashlib.sha256(content.encode()).hexdigest()[:24]] += 1
        name = f"{digest}{_ids[digest]:08x}"
        self._spec = {"id": name} | self._spec
        return {"model_id": name, "layout": ipywidgets.Layout(model_id=f"{name}-layout")}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        from nas_core.viz.static import to_png

        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        still = self.figure("still picture; open the notebook in JupyterLab for the live view")
        png = base64.b64encode(to_png(still, small=True)).decode()
        return data | {"text/plain": repr(self), "image/png": png}, metadata


def live(name: str, *traits: str) -> Any:
    """Class decorator: a `View` becomes a widget that the module `name` shows.

    `traits` are those that the page reads besides `_spec` and `frame`.
    """
    widget = _anywidget(name, traits) if anywidget else _plain()
    return lambda core: type(core.__name__, (core, widget), {"__doc__": core.__doc__})


def _anywidget(name: str, traits: tuple[str, ...]) -> type:
    page, state = code(name), ("_spec", "frame", *traits)

    class Live(anywidget.AnyWidget):
        _esm, _css = page["esm"], page["css"]

        def _ipython_display_(self: Any, **_: Any) -> None:
            data, metadata = self._repr_mimebundle_()
            display(data, metadata=metadata, raw=True)
            display({"text/html": self.without_kernel()}, raw=True)

        def without_kernel(self) -> str:
            """HTML that shows the view as it is now in a trusted notebook without a kernel.

            Pages that remove scripts print little of it: all but a short loader is a comment.
            """
            traits = {k: v for k, v in self.get_state().items() if k in state}
            twin = (_HERE / "twin.js").read_text("utf-8")
            content = packed(page | {"traits": traits, "twin": twin})
            return f'<div class="nas-twin"><!--{content}--><script>{_LOADER}</script></div>'

    return Live


_LOADER = (
    "(async(r)=>{const b=Uint8Array.from(atob(r.firstChild.data),(c)=>c.charCodeAt(0)),"
    'z=new Blob([b]).stream().pipeThrough(new DecompressionStream("deflate")),'
    'p=await new Response(z).json();Function("root","page",p.twin)(r,p)})'
    "(document.currentScript.parentElement)"
)


def _plain() -> type:
    """Without anywidget: the still picture and a slider; `view.mask = …` switches edges."""

    class Plain(ipywidgets.VBox):
        def __init__(self, *args: Any, **kwargs: Any):
            from nas_core.viz.static import to_png

            super().__init__(*args, **kwargs)
            image = ipywidgets.Image(format="png")
            slider = ipywidgets.IntSlider(min=0, max=self._spec["count"] - 1, description="frame")
            ipywidgets.link((self, "frame"), (slider, "value"))
            self.children = [image, slider]

            def draw(_: Any = None) -> None:
                image.value = to_png(self.figure())

            self.observe(draw, [n for n in ("mask", "frame") if self.has_trait(n)])
            draw()

    return Plain
