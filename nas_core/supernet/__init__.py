"""One graph type: edges are modules, a mask selects."""

from nas_core.supernet.architecture import Architecture, recalibrate_batch_norm
from nas_core.supernet.graph import EdgeInfo, Graph
from nas_core.supernet.modules import count_macs, count_params
from nas_core.supernet.network import Edge, SuperNetwork
from nas_core.supernet.samplers import BernoulliSampler, ChoiceSampler, Sample

__all__ = [
    "Architecture",
    "BernoulliSampler",
    "ChoiceSampler",
    "Edge",
    "EdgeInfo",
    "Graph",
    "Sample",
    "SuperNetwork",
    "count_macs",
    "count_params",
    "recalibrate_batch_norm",
]
