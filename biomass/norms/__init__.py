"""Plate-aware batch norm: the layer, where its statistics come from, and their calibration over whole plates."""

from biomass.norms.calibration import (
    calibrate,
    calibration_state,
    forget_calibration,
    load_calibration,
    merge_calibrations,
)
from biomass.norms.plate_batch_norm import Correction, PlateBatchNorm, PlateContext, convert
from biomass.norms.statistics import WORDS, Method, Statistics, plate_statistics
from biomass.norms.tuning import MODES, Tuning, load_tuning, measure_plates, tuning_state
from biomass.norms.whole_plate import Store, norms_used_once, unwrap, whole_plate_forward

__all__ = [
    "MODES",
    "WORDS",
    "Correction",
    "Method",
    "PlateBatchNorm",
    "PlateContext",
    "Statistics",
    "Store",
    "Tuning",
    "calibrate",
    "calibration_state",
    "convert",
    "forget_calibration",
    "load_calibration",
    "load_tuning",
    "measure_plates",
    "merge_calibrations",
    "norms_used_once",
    "plate_statistics",
    "tuning_state",
    "unwrap",
    "whole_plate_forward",
]
