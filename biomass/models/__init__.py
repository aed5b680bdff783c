"""Encoders, heads and the architecture that a checkpoint carries."""

from biomass.models.encoders import build_encoder, check_images, is_own_code
from biomass.models.network import Architecture, Network, adapt, build_network, digest, multilayer

__all__ = [
    "Architecture",
    "Network",
    "adapt",
    "build_encoder",
    "build_network",
    "check_images",
    "digest",
    "is_own_code",
    "multilayer",
]
