"""Try a trained classifier on small, uneven and uncontrolled plates, under every way of taking statistics.

    biomass stress model_path=my_run dataloaders=manifest dataloaders.root_dir=my_screen

Plates that the network has not seen are reduced to some of their wells, again and again, and the accuracy on treated
wells is written to runs/<run name>/stress.csv, with intervals, and drawn. A test that was cut off goes on with the
plates that are missing if it is started again under the same run_name.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass import training
from biomass.atomic import whole_file
from biomass.bounds import read_json
from biomass.config import Config, script
from biomass.errors import ConfigError, DataError, say
from biomass.evaluation import plots, stress
from biomass.evaluation.encode import select_channels
from biomass.evaluation.parts import pixel_hashes
from biomass.experiment import chosen_words, open_model, tool_folder
from biomass.formulas import to_csv
from biomass.loader import BatchReader, SkippedImages
from biomass.models import digest
from biomass.norms import Method, Statistics, tuning_state
from biomass.report.finish import finish
from biomass.screen import PLATE

PLACE = 70

log = logging.getLogger(__name__)


@script("stress")
def main(cfg: Config) -> float | None:
    """Run the test plate by plate, write the table and the plots; returns the accuracy on whole plates of the first."""
    data, words, workers = cfg.dataloaders, cfg.words, cfg.dataloaders.num_workers
    folder, report = tool_folder(cfg, "stress"), cfg.report
    fabric, path, network, trained, channels, screen, transform = open_model(cfg, "stress")
    if trained.head[-1:] != (len(screen.classes),):
        raise ConfigError(
            f"'{path}' tells {trained.head[-1] if trained.head else 'no'} classes apart, and the screen has "
            f"{len(screen.classes)}; give a classifier that was trained on these classes"
        )

    # what is tried, on which plates
    method = Method("running", "plate", PLATE, PLATE).override(*chosen_words(cfg))
    names = screen.group_names(method.eval_by)
    statistics = {word: Statistics.labelled(word, method.eval_by, names, method.controls) for word in words}
    if tuning_state(network) is None:
        for word in [word for word, one in statistics.items() if one.tuned]:
            log.warning(
                "'%s' does not know its training plates, so that '%s' is left out; run biomass tune", path, word
            )
            del statistics[word]
        if not statistics:
            raise ConfigError(f"statistics '{words[0]}' need the moments of training plates", "tune")
    for one in statistics.values():
        Method("running", one.word).check_network(network)
    axes = {axis: getattr(cfg.axes, axis) for axis in stress.AXES}
    alpha = np.inf if cfg.base.label_shift is None else cfg.base.label_shift
    base = stress.Condition(cfg.base.wells, alpha, cfg.base.controls).check()
    test = stress.StressTest(statistics, axes, base, cfg.repeats, cfg.seed)
    if not data.eval_splits:
        raise ConfigError(
            f"no split is named, of which plates are to be stressed; name one of {', '.join(screen.splits)}"
        )
    rows = np.concatenate([screen.rows(split) for split in data.eval_splits])
    plates = stress.plates_of(screen, rows, method.eval_by)
    bench = stress.Bench(
        fabric,
        network.to(fabric.device),
        select_channels(channels, screen, transform),
        cfg.eval_batch_size,
    )
    reader, skipped = BatchReader(screen, screen.groups(method.eval_by), data.on_bad_image), SkippedImages(screen)
    settings = [digest(network), repr(tuning_state(network)), repr(test), repr(transform), repr(base)]
    cfg.check_all_read()

    # from here on the tool writes
    with training.RunLogger(folder, cfg.to_dict(), enabled=fabric.is_global_zero) as logger:
        parts = {group: folder / "plates" / f"{group:04d}.json" for group in plates}
        prints = {group: _fingerprint(settings, screen.table.iloc[wells.rows]) for group, wells in plates.items()}
        pixels = dict(zip(plates, pixel_hashes(screen, [wells.rows for wells in plates.values()]), strict=True))
        results = {group: _read(part, prints[group], pixels[group]) for group, part in parts.items()}
        again = [group for group, known in results.items() if known is None and parts[group].is_file()]
        if again:
            message = "%d plates were tried with other images or in another way, and are tried again; the first is '%s'"
            log.warning(message, len(again), names[again[0]])
        todo = [group for group, known in results.items() if known is None]
        if len(todo) < len(plates):
            log.info("%d of %d plates were tried before in the same way", len(plates) - len(todo), len(plates))
        mine = todo[fabric.global_rank :: fabric.world_size]
        bar = tqdm(
            training.read_whole(reader, [plates[group] for group in mine], workers),
            "plates",
            len(mine),
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        for number, (batch, group) in enumerate(zip(bar, mine, strict=True), 1):
            skipped.note(batch)
            wells = plates[group].without(batch.skipped.numpy())
            if not (wells.controls == 0).any():
                log.warning("plate '%s' has no treated image that can be read: it is left out", names[group])
                continue
            results[group] = test.on_plate(bench, batch, wells)
            with whole_file(parts[group]) as file:
                known = {"fingerprint": prints[group], "pixels": pixels[group], "results": results[group]}
                file.write_text(json.dumps(known))
            if bar.disable:
                log.info("plate %d of %d, '%s'", number, len(mine), names[group])
        for of_rank in training.gathered(fabric, {group: results[group] for group in mine}):
            results |= of_rank
        skipped.merge(training.gathered(fabric, skipped.rows))
        if not fabric.is_global_zero:
            return None
        found = [one | {"plate": names[group]} for group, known in results.items() for one in known or ()]
        if not found:
            raise DataError("no plate has a treated image that can be read")
        everything = pd.DataFrame(found)
        table, drift = stress.summarize(everything), stress.summarize(everything, "drift")
        logger.text("stress.csv", to_csv(table))
        logger.text("drift.csv", to_csv(drift))
        about = stress.describe(list(plates.values()), base)
        logger.text("stress.json", json.dumps(about | {"results": table.to_dict("records")}, indent=1) + "\n")
        for name, figure in {"stress": plots.stress_curves(table), "drift": plots.stress_curves(drift)}.items():
            with whole_file(folder / f"{name}.png") as file:
                figure.savefig(file, dpi=150, format="png")
        skipped.report(folder)
    if report:
        finish(folder)
    say(f"{stress.to_markdown(table)}\n{len(plates)} plates; see {folder}/")
    return float(table["accuracy"].iloc[0])


def _fingerprint(settings: list[str], table: pd.DataFrame) -> str:
    """What the results of a plate depend on."""
    hashed = hashlib.sha256("\n".join(settings).encode())
    hashed.update(pd.util.hash_pandas_object(table[[*PLATE, "well", "site", "label", "control"]]).to_numpy().tobytes())
    return hashed.hexdigest()


def _read(file: Path, fingerprint: str, pixels: str) -> list[dict[str, Any]] | None:
    """The results of a plate that was tried before in the same way."""
    try:
        known = read_json(file.read_text())
        results: list[dict[str, Any]] = known["results"]
        same = known["fingerprint"] == fingerprint and known.get("pixels", pixels) == pixels
        return results if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    main()
