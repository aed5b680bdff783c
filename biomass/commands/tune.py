"""Let a trained network know its training plates, and choose on validation plates what depends on them.

    biomass tune model_path=my_run dataloaders=manifest dataloaders.root_dir=my_screen

The statistics ``shrunk`` and ``balanced`` need it: the moments of training plates and of what they are composed of, and
how much these count. Training scripts measure the moments when they end; this tool does so for older checkpoints, and
chooses the numbers by the accuracy on validation plates that are reduced in many ways. Both are written into the
checkpoint.
"""

import numpy as np
import pandas as pd

from biomass import training
from biomass.config import Config, script
from biomass.errors import say
from biomass.evaluation.encode import select_channels
from biomass.evaluation.stress import Bench, plates_of
from biomass.experiment import chosen_words, open_model, tool_folder
from biomass.formulas import to_csv
from biomass.loader import BatchReader
from biomass.norms import Method, Statistics, tuning_state
from biomass.screen import PLATE

PLACE = 65


@script("tune")
def main(cfg: Config) -> float | None:
    """Measure, choose, and write the checkpoint again; returns the accuracy of ``balanced`` on reduced plates."""
    data = cfg.dataloaders
    fabric, path, network, trained, channels, screen, prepare = open_model(cfg, "tune", True)
    classifies = trained.head[-1:] == (len(screen.classes),)

    method = Method("running", "plate", PLATE, PLATE).override(*chosen_words(cfg))
    method.check_network(network)
    reader = BatchReader(screen, screen.groups(method.eval_by), data.on_bad_image)
    transform = select_channels(channels, screen, prepare)
    most, batch_size, split, workers = cfg.measure_plates, cfg.eval_batch_size, cfg.train_split, data.num_workers
    number = len(screen.classes)
    measured = training.TrainingPlates(screen, reader, transform, number, most, batch_size, split, workers)
    words = ("shrunk", "balanced")
    statistics = {word: Statistics.over(screen, word, method.eval_by, method.controls) for word in words}
    rows = np.concatenate([screen.rows(one) for one in data.eval_splits])
    plates = list(plates_of(screen, rows, method.eval_by).values())
    chosen = [plates[i] for i in np.unique(np.linspace(0, len(plates) - 1, cfg.fit_plates).astype(int))]
    folder, seed = tool_folder(cfg, "tune"), cfg.seed
    cfg.check_all_read()

    # from here on the tool writes
    with training.RunLogger(folder, cfg.to_dict()) as logger:
        network = network.to(fabric.device)
        measured.measure(fabric, network)
        best = None
        if classifies:
            bench = Bench(fabric, network, transform, batch_size)
            tuning, tried = training.tune(
                bench, zip(training.read_whole(reader, chosen), chosen, strict=True), statistics, seed
            )
            table = pd.DataFrame(tried)
            logger.text("tried.csv", to_csv(table))
            best = float(table.loc[table["word"] == "balanced", "accuracy"].max())
            say(f"chosen on {len(chosen)} plates: {tuning.describe()}")
        training.save_checkpoint(training.load_checkpoint(path) | {"tuning": tuning_state(network)}, path)
    say(f"'{path}' knows its training plates now; see {folder}/")
    return best


if __name__ == "__main__":
    main()
