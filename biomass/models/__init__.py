"""Encoders, heads and the architecture that a checkpoint carries."""

from biomass.models.encoders import build_encoder, check_vectors, is_own_code
from biomass.models.network import Architecture, Network, build_network, digest, multilayer

__all__ = ["Architecture", "Network", "build_encoder", "build_network", "check_vectors", "digest", "is_own_code", "multilayer"]
