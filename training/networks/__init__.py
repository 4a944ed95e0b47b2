"""The networks of StyleGAN2: generator, discriminator, their parts, and reading them from files."""

from torch_utils.layers import Conv2dLayer, FullyConnectedLayer, normalize_2nd_moment
from training.networks.build import build_network, is_snapshot, load_network, network_record
from training.networks.discriminator import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue, MinibatchStdLayer
from training.networks.generator import Generator
from training.networks.mapping import MappingNetwork
from training.networks.modulated_conv import modulated_conv2d
from training.networks.synthesis import SynthesisBlock, SynthesisLayer, SynthesisNetwork, ToRGBLayer

__all__ = [
    "Conv2dLayer",
    "Discriminator",
    "DiscriminatorBlock",
    "DiscriminatorEpilogue",
    "FullyConnectedLayer",
    "Generator",
    "MappingNetwork",
    "MinibatchStdLayer",
    "SynthesisBlock",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRGBLayer",
    "build_network",
    "is_snapshot",
    "load_network",
    "modulated_conv2d",
    "network_record",
    "normalize_2nd_moment",
]
