"""The view where anywidget is missing: plain ipywidgets around the matplotlib drawing."""

from __future__ import annotations

from typing import Any

import ipywidgets

from nas_core.viz.static import edge_states, to_png


def plain(core: Any) -> type:
    """A widget class with the interface of `core` (`ArchViewCore`); it needs a running kernel."""

    class PlainView(core, ipywidgets.VBox):
        def __init__(self, *args: Any, **kwargs: Any):
            self._image = ipywidgets.Image(format="png")
            self._status = ipywidgets.HTML()
            super().__init__(*args, **kwargs)
            names = [edge.name for edge in self.graph.edges]
            edge = ipywidgets.Dropdown(options=names, description="edge")
            switch = ipywidgets.Button(description="switch")
            switch.on_click(lambda _: self._switch(edge.index))
            another = ipywidgets.Button(description="sample another")
            another.on_click(lambda _: self.sample())
            probable = ipywidgets.Button(description="most probable")
            probable.on_click(lambda _: self.most_probable())
            slider = ipywidgets.IntSlider(
                min=0, max=len(self.frames) - 1, value=self.frame, description=self.frame_label
            )
            ipywidgets.link((self, "frame"), (slider, "value"))
            controls = [edge, switch, another, probable] if self.probable else [edge, switch]
            rows = [self._image, *([slider] if len(self.frames) > 1 else []), self._status]
            self.children = [*rows, ipywidgets.HBox(controls)]
            self.observe(lambda _: self._draw(), ["mask", "frame"])
            self._draw()

        def _switch(self, edge: int) -> None:
            mask = self.mask.clone()
            mask[edge] = ~mask[edge]
            self.set_trait("mask", mask)

        def _draw(self) -> None:
            self._image.value = to_png(self.figure())
            states = edge_states(self.graph, self.mask)
            text = f"{states.count('live')} of {len(states)} edges"
            if dead := states.count("dead"):
                text += f", {dead} more on no path"
            if self.cost_value is not None:
                text += f" · {self._cost_name} {self.cost_value:.4g}"
                if self.budget is not None:
                    over = self.cost_value > self.budget
                    text += f" ({'over' if over else 'within'} the budget of {self.budget:.4g})"
            self._status.value = text

    return PlainView


def plain_panel(core: Any) -> type:
    """A widget class with the interface of `core` (`StreamPanelCore`): picture and slider."""

    class PlainPanel(core, ipywidgets.VBox):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            if kwargs.get("view") is not None:
                ipywidgets.link((self, "frame"), (kwargs["view"], "frame"))
            image = ipywidgets.Image(format="png", value=to_png(self.figure()))
            slider = ipywidgets.IntSlider(min=0, max=len(self._spec["times"]) - 1)
            ipywidgets.link((self, "frame"), (slider, "value"))
            self.observe(lambda _: setattr(image, "value", to_png(self.figure())), "frame")
            self.children = [image, slider]

    return PlainPanel
