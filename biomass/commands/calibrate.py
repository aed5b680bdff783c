"""Measure plates for a trained network and store their statistics beside its checkpoint.

    biomass calibrate model_path=my_run dataloaders=manifest dataloaders.root_dir=my_screen

Afterwards any image of these plates can be encoded by itself, in any order, with the statistics of its whole plate:
``statistics.eval=calibrated`` in train_classifier.py and transfer_bbbc021.py reads them. A second call adds plates to
the file, and replaces those that it measures again. The statistics belong to the weights of the checkpoint.
"""

import numpy as np
import pandas as pd

from biomass import training
from biomass.config import Config, script
from biomass.errors import ConfigError, say
from biomass.evaluation.encode import select_channels
from biomass.experiment import chosen_words, open_model, tool_folder
from biomass.formulas import to_csv
from biomass.inference import calibrate_plates
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.norms import Method, Statistics, calibration_state, load_calibration, merge_calibrations
from biomass.samplers import PlateBatches
from biomass.screen import PLATE

PLACE = 60


@script("calibrate")
def main(cfg: Config) -> float | None:
    """Read every plate once, store its moments, and say how many plates the file holds."""
    data = cfg.dataloaders
    fabric, path, network, _, channels, screen, prepare = open_model(cfg, "calibrate")
    encoder = network.encoder.to(fabric.device)

    method = Method("running", "plate", PLATE, PLATE).override(*chosen_words(cfg))
    statistics = Statistics.over(screen, method.eval, method.eval_by, method.controls)
    if statistics.word not in ("plate", "controls"):
        raise ConfigError(f"statistics '{statistics.word}' are not measured on plates; calibrate plate or controls")
    method.check_network(encoder)
    statistics.check(screen)
    groups = screen.groups(statistics.by)
    rows = groups.argsort(kind="stable")
    whole = PlateBatches(rows, groups[rows], batch_size=cfg.encode_batch_size, shuffle=False)
    batches = training.share(fabric, whole, groups)
    reader, skipped = BatchReader(screen, groups, data.on_bad_image), SkippedImages(screen)
    loader = Loader(reader, batches, data.num_workers, pin_memory=fabric.device.type == "cuda")
    file = training.calibration_file(path, cfg.calibration)
    transform = select_channels(channels, screen, prepare)
    training.check_calibration(encoder, file, statistics, prepare)
    folder = tool_folder(cfg, "calibrate")
    cfg.check_all_read()

    # from here on the tool writes
    with training.RunLogger(folder, cfg.to_dict(), enabled=fabric.is_global_zero) as logger:
        if len(batches):  # there may be fewer plates than devices
            calibrate_plates(fabric, encoder, loader, transform, statistics, skipped)
        skipped.merge(training.gathered(fabric, skipped.rows))
        if fabric.world_size > 1:
            load_calibration(encoder, merge_calibrations(training.gathered(fabric, calibration_state(encoder))))
        if not fabric.is_global_zero:
            return None
        images = np.bincount(np.delete(groups, sorted(skipped.rows)), minlength=len(statistics.names or ()))
        read = np.where(np.isin(np.arange(len(groups)), list(skipped.rows)), -1, groups)
        measured = np.flatnonzero(images).tolist()
        made_of = training.plates_data(screen, statistics.names or (), read, statistics.label, measured)
        numbers = dict(zip(statistics.names or (), images.tolist(), strict=True))
        names = training.save_calibration(encoder, file, statistics, prepare, numbers, made_of)
        logger.text("plates.csv", to_csv(pd.DataFrame({"plate": statistics.names, "images": images})))
        skipped.report(folder)
    say(f"{file} holds the statistics of {len(names)} plates, {(images > 0).sum()} of them measured now; see {folder}/")
    return None


if __name__ == "__main__":
    main()
