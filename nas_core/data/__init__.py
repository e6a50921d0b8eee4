"""Data sets as tensors: embedded ones that need no download, and real ones from a data root."""

from nas_core.data import reference
from nas_core.data.dataset import CorruptData, DataNotFound, Dataset, stratified_order
from nas_core.data.files import FILES
from nas_core.data.registry import available, data_root, fetch, load

__all__ = [
    "FILES",
    "CorruptData",
    "DataNotFound",
    "Dataset",
    "available",
    "data_root",
    "fetch",
    "load",
    "reference",
    "stratified_order",
]
