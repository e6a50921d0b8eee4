"""One graph type: edges are modules, a mask selects."""

# ruff: noqa: F401 — these names are the public door of the package

from nas_core.supernet.architecture import Architecture, recalibrate_batch_norm
from nas_core.supernet.graph import EdgeInfo, Graph
from nas_core.supernet.modules import count_macs, count_params
from nas_core.supernet.network import Edge, SuperNetwork
from nas_core.supernet.samplers import BernoulliSampler, ChoiceSampler, Sample
