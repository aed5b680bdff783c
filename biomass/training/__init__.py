"""The loop, checkpoints, logging, and what the scripts share."""

from biomass.training.checkpoint import Checkpoints, check_architecture, load_checkpoint, save_checkpoint
from biomass.training.fabric import make_fabric, set_up
from biomass.training.logger import RunLogger
from biomass.training.loop import Progress, Schedule, Training, fit, unwrapped
from biomass.training.optim import adam, warmup_cosine
from biomass.training.supervised import SplitEvaluation, check_labels, evaluation_loaders

__all__ = [
    "Checkpoints",
    "Progress",
    "RunLogger",
    "Schedule",
    "SplitEvaluation",
    "Training",
    "adam",
    "check_architecture",
    "check_labels",
    "evaluation_loaders",
    "fit",
    "load_checkpoint",
    "make_fabric",
    "save_checkpoint",
    "set_up",
    "unwrapped",
    "warmup_cosine",
]
