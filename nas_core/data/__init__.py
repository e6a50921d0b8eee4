"""Data sets as tensors: embedded ones that need no download, and real ones from a data root."""

from nas_core.data import reference
from nas_core.data.dataset import (
    CorruptData,
    DataNotFound,
    Dataset,
    average_pool,
    stratified_order,
    zero_pad,
)
from nas_core.data.real import Images
from nas_core.data.registry import FILES, available, data_root, fetch, load, read_images, states

__all__ = [
    "FILES",
    "CorruptData",
    "DataNotFound",
    "Dataset",
    "Images",
    "available",
    "average_pool",
    "data_root",
    "fetch",
    "load",
    "read_images",
    "reference",
    "states",
    "stratified_order",
    "zero_pad",
]
