"""The loop, checkpoints, logging, and what the scripts share."""

from biomass.training.cells import (
    ContrastiveEvaluation,
    check_instances,
    check_negatives,
    sampler_columns,
    view_loader,
)
from biomass.training.checkpoint import Checkpoints, check_resume, load_checkpoint, save_checkpoint
from biomass.training.device import make_fabric, set_up
from biomass.training.logger import RunLogger
from biomass.training.loop import Progress, Schedule, Training, fit
from biomass.training.optim import adam, warmup_cosine
from biomass.training.pretrained import find_checkpoint, load_encoder, load_network
from biomass.training.probe import build_probe, check_channels, frozen_part, one_of
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
    "check_channels",
    "check_instances",
    "check_labels",
    "check_negatives",
    "check_resume",
    "evaluation_loaders",
    "find_checkpoint",
    "fit",
    "frozen_part",
    "load_checkpoint",
    "load_encoder",
    "load_network",
    "make_fabric",
    "one_of",
    "sampler_columns",
    "save_checkpoint",
    "set_up",
    "view_loader",
    "warmup_cosine",
]
