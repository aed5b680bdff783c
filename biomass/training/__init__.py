"""The loop, checkpoints, logging, and what the scripts share."""

from biomass.training.cells import ContrastiveEvaluation, profile_screen, sampler_columns, view_loader
from biomass.training.checkpoint import Checkpoints, check_architecture, load_checkpoint, save_checkpoint
from biomass.training.fabric import make_fabric, set_up
from biomass.training.logger import RunLogger
from biomass.training.loop import Progress, Schedule, Training, fit
from biomass.training.optim import adam, warmup_cosine
from biomass.training.pretrained import find_checkpoint, load_encoder, load_network
from biomass.training.probe import build_probe, check_channels, one_of
from biomass.training.supervised import SplitEvaluation, check_labels, evaluation_loaders

__all__ = [
    "Checkpoints",
    "ContrastiveEvaluation",
    "Progress",
    "RunLogger",
    "Schedule",
    "SplitEvaluation",
    "Training",
    "adam",
    "build_probe",
    "check_architecture",
    "check_channels",
    "check_labels",
    "evaluation_loaders",
    "find_checkpoint",
    "fit",
    "load_checkpoint",
    "load_encoder",
    "load_network",
    "make_fabric",
    "one_of",
    "profile_screen",
    "sampler_columns",
    "save_checkpoint",
    "set_up",
    "view_loader",
    "warmup_cosine",
]
