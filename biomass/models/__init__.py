"""Encoders, heads and the architecture that a checkpoint carries."""

from biomass.models.encoders import build_encoder
from biomass.models.network import Architecture, Network, build_network, digest, multilayer

__all__ = ["Architecture", "Network", "build_encoder", "build_network", "digest", "multilayer"]
