"""The paper's four networks: an MLP, ResNet-18, ViT-Tiny and VGG-16, for images of any size."""

from ht_ray.vision.models.mlp import MLP
from ht_ray.vision.models.network import ModelConfig, Network, make_model
from ht_ray.vision.models.resnet import ResNet18
from ht_ray.vision.models.vgg import VGG16
from ht_ray.vision.models.vit import VisionTransformer, patch_size_for

__all__ = [
    "MLP",
    "VGG16",
    "ModelConfig",
    "Network",
    "ResNet18",
    "VisionTransformer",
    "make_model",
    "patch_size_for",
]
