"""The keyword-spotting space: cnn-trad-fpool3 with shortcuts (thesis fig. 4.8)."""

from __future__ import annotations

from torch import nn

from nas_core.spaces.layers import initialize
from nas_core.supernet import Edge, SuperNetwork


def keyword_cnn(
    num_classes: int = 12, *, shortcuts: bool = True, head: bool = True,
    width: int = 64, bottleneck: int = 32, features: int = 128,
    conv1: tuple[int, int] = (20, 8), conv2: tuple[int, int] = (10, 4),
    input_shape: tuple[int, int, int] = (1, 101, 40), leak: float = 0.0,
) -> SuperNetwork:  # fmt: skip
    """Two convolutions, a bottleneck and Φ, the sum at node `features` that feeds the classifier.

    With the defaults 124,593,664 multiply-adds without and 137,284,096 with shortcuts; the
    cheapest path (input shortcut, classifier) takes 518,656. (The thesis' caption gives conv1 a
    stride of 3 in frequency; its printed figures need stride 1 and max-pooling by 3.)

    Args:
        shortcuts: linear layers from the input, conv1 and conv2 straight to Φ.
        head: without the classifier the output is Φ `[B, features]`, which SANAS also feeds to
            its controller; with it `[B, num_classes]`.
        width: channels of both convolutions.
        conv1, conv2: filter sizes, time × frequency; they must fit the map.
        input_shape: (1, frames, coefficients).
        leak: slope of all units below 0. With ReLU (0, the thesis) all units can die in the first
            steps when there are few; 0.1 prevents this.
    """
    _, frames, coefficients = input_shape
    time1, band1 = frames - conv1[0] + 1, (coefficients - conv1[1] + 1) // 3
    time2, band2 = time1 - conv2[0] + 1, band1 - conv2[1] + 1
    if min(time1, band1, time2, band2) < 1:
        raise ValueError(
            f"filters {conv1} and {conv2} with pooling by 3 do not fit a map of {frames} frames × "
            f"{coefficients} coefficients; use smaller filters or a longer map"
        )

    def unit() -> nn.Module:
        return nn.LeakyReLU(leak) if leak else nn.ReLU()

    def dense(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, features), unit())

    first = nn.Sequential(nn.Conv2d(input_shape[0], width, conv1), unit(), nn.MaxPool2d((1, 3)))
    second = nn.Sequential(nn.Conv2d(width, width, conv2), unit())
    squeeze = nn.Sequential(nn.Flatten(), nn.Linear(width * time2 * band2, bottleneck))
    expand = nn.Sequential(nn.Linear(bottleneck, features), unit())
    edges = [
        Edge("input", "conv1", first, "conv1", "conv"),
        Edge("conv1", "conv2", second, "conv2", "conv"),
        Edge("conv2", "lin1", squeeze, "lin1", "linear"),
        Edge("lin1", "features", expand, "lin2", "linear"),
    ]
    if shortcuts:
        pixels = {"input": frames * coefficients * input_shape[0]}
        sizes = pixels | {"conv1": width * time1 * band1, "conv2": width * time2 * band2}
        for node, size in sizes.items():
            edges.append(Edge(node, "features", dense(size), f"shortcut {node}", "shortcut"))
    if head:
        classifier = nn.Linear(features, num_classes)
        edges.append(Edge("features", "output", classifier, "classifier", "head"))
    nodes = ["input", "conv1", "conv2", "lin1", "features", "output"][: 6 if head else 5]
    height = {"features": 0.0, "output": 0.0}
    net = SuperNetwork(
        edges, "input", nodes[-1], input_shape=input_shape,
        name=f"keyword_cnn(width={width}{'' if shortcuts else ', no shortcuts'})",
        positions={n: (float(i), height.get(n, -0.6 * (i > 0))) for i, n in enumerate(nodes)},
    )  # fmt: skip
    initialize(net, nn.Conv2d, nn.Linear)
    return net
