"""The loop, checkpoints, logging, and what the scripts share."""

from biomass.training.calibrations import (
    Calibration,
    calibration_file,
    check_calibration,
    plates_data,
    save_calibration,
    use_calibration,
)
from biomass.training.checkpoint import Checkpoints, check_batches, check_resume, load_checkpoint, save_checkpoint
from biomass.training.checks import (
    check_channels,
    check_instances,
    check_labels,
    check_negatives,
    check_ranks,
    choose_splits,
    constant_channels,
)
from biomass.training.device import make_fabric, set_up
from biomass.training.evaluations import LossEvaluation, SplitEvaluation
from biomass.training.loaders import evaluation_loaders, sampler_columns, share, view_loader
from biomass.training.logger import RunLogger
from biomass.training.loop import Evaluate, Plan, Progress, Training, fit
from biomass.training.optim import adam, warmup_cosine
from biomass.training.pretrained import Probe, find_checkpoint, is_probe, load_encoder, load_network, load_probe
from biomass.training.probe import Profiler, build_probe, encoder_path, probed_part, profile_loader
from biomass.training.together import gathered
from biomass.training.tuning import TrainingPlates, measure_run, read_whole, tune

__all__ = [
    "Calibration",
    "Checkpoints",
    "Evaluate",
    "LossEvaluation",
    "Plan",
    "Probe",
    "Profiler",
    "Progress",
    "RunLogger",
    "SplitEvaluation",
    "Training",
    "TrainingPlates",
    "adam",
    "add_plates",
    "build_probe",
    "calibration_file",
    "check_batches",
    "check_calibration",
    "check_channels",
    "check_instances",
    "check_labels",
    "check_negatives",
    "check_ranks",
    "check_resume",
    "choose_splits",
    "constant_channels",
    "encoder_path",
    "evaluation_loaders",
    "find_checkpoint",
    "fit",
    "gathered",
    "is_probe",
    "load_checkpoint",
    "load_encoder",
    "load_network",
    "load_probe",
    "make_fabric",
    "measure_run",
    "plates_data",
    "probed_part",
    "profile_loader",
    "read_calibration",
    "read_whole",
    "sampler_columns",
    "save_calibration",
    "save_checkpoint",
    "set_up",
    "share",
    "tune",
    "use_calibration",
    "view_loader",
    "warmup_cosine",
]
