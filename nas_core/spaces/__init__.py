"""Search spaces: functions that build a `SuperNetwork`."""

# ruff: noqa: F401 — these names are the public door of the package

from nas_core.spaces.conv_fabric import conv_fabric, share_by_scale
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.spaces.resnet_fabric import kept_by_group, plain_resnet, resnet_fabric
from nas_core.spaces.scalar import scalar_fabric, scalar_network
