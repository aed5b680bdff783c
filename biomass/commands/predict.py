"""Predict the classes of every field and every well of new plates with a trained network, or with several.

    biomass predict model_path=my_run dataloaders=manifest dataloaders.root_dir=next_month

The statistics of a plate are measured on all its images (or on its controls, or balanced), and stored beside the
checkpoint: any image of it gives the same prediction later, by itself. The classes are those of the checkpoint; the
screen need not have labels. Of several checkpoints the mean of their probabilities is taken, and their disagreement
written. With ``watch=true`` a screen that is still being imaged is predicted as its wells arrive: the folders that
``biomass index`` made the manifest of are looked at again and again.
"""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from biomass import training
from biomass.config import Config, build, script
from biomass.datasets.manifest import manifest_path
from biomass.datasets.recipe import look_again, read_recipes
from biomass.errors import ConfigError, say
from biomass.evaluation.predictions import write_predictions
from biomass.experiment import chosen_words, compose, tool_folder
from biomass.loader import SkippedImages
from biomass.screen import Screen
from biomass.trained import Model, Reading, load, words_of
from biomass.watching import Watch, to_table

PLACE = 75

log = logging.getLogger(__name__)


@script("predict")
def main(cfg: Config) -> float | None:
    """Load, predict and write; or go on doing so while the screen grows."""
    data, nodes, watching = cfg.dataloaders, cfg.transforms.eval, cfg.watch
    if cfg.model_path is None:
        raise ConfigError("predict needs a network, and none is named", "network")
    folder = tool_folder(cfg, "predict")
    stored, (_, word, by, controls) = cfg.calibration, chosen_words(cfg)
    word, columns = words_of(stored, word, by)
    model = load(
        cfg.model_path,
        statistics=word,
        by=columns,
        controls=controls,
        transform=None if nodes is None else compose(nodes),
        encoder=cfg.encoder_path,
        key=cfg.model.key,
        device=cfg.device,
        precision=cfg.precision,
        other_data=cfg.other_data,
        devices=cfg.devices,
    )
    first = model.fabric.is_global_zero
    if watching and model.fabric.world_size > 1:
        raise ConfigError("a screen is watched by one device", "devices")
    number, again = len(model.classes), cfg.measure_again
    if model.measures:
        model.take_stored(stored)
    known, compared = set(model.plates), model.compared_plates
    bad = data.on_bad_image  # while a screen grows, what cannot be read yet is left out
    reading = Reading(cfg.eval_batch_size, data.num_workers, "skip" if watching else bad)
    source, seconds, stop_after = data.source, cfg.watch_seconds, cfg.watch_stop_after
    cfg.check_all_read()
    screen = None if watching else build(source)
    if screen is not None:
        model.check(screen, again)

    # from here on the tool writes
    with training.RunLogger(folder, cfg.to_dict(), enabled=first) as logger:
        if screen is None:
            watch = Watch(model, _refresh(source, folder), reading, folder, stored)
            watch.run(seconds, stop_after)
            say(
                f"{len(set(to_table(watch.news)['plate']))} plates were predicted in {watch.looks} looks; see {folder}/"
            )
            return None
        skipped = SkippedImages(screen)
        found = model.predictions(screen, reading, skipped, keep=True, again=again)
        if not first:
            return None
        fields, wells = found.of_fields(), found.of_wells()
        write_predictions(fields, folder / "predictions.parquet", found.about)
        write_predictions(wells, folder / "predictions_wells.parquet", found.about)
        if model.measures:
            model.save_adaptation(stored)
        skipped.report(logger.folder)
    used = set(screen.group_names(model.by))
    fresh = used if again else used - known
    say(f"{len(fields)} fields and {len(wells)} wells of {len(used)} plates, {number} classes; see {folder}/")
    now = f": {len(fresh)} of them measured now{_sizes(model, fresh)}" if model.measures else ""
    before = used - fresh if model.measures else set()
    kept = f", {len(before)} as measured before for plates of these names" if before else ""
    say(f"statistics '{model.statistics}'{now}{kept}")
    if before - compared:
        log.info("if these are other plates of the same names, which is not known, set measure_again=true")
    return None


def _sizes(model: Model, plates: set[str]) -> str:
    """On how many images plates were measured: statistics of a few images are those of these images."""
    known = model.members[0].calibration
    counts = [n for name, n in zip(known.plates, known.images, strict=True) if name in plates] if known else []
    if not counts:
        return ""
    return f" on {min(counts)}" + (f" to {max(counts)}" if max(counts) > min(counts) else "") + " images each"


def _refresh(source: dict[str, Any], folder: Path) -> Callable[[], Screen]:
    """Reads the screen as it is now, in which files may be missing. How it is read is said once.

    Where a manifest says which folders it was made of, these are indexed first, for what has come; the manifest itself
    stays as it is, and what is there now is listed beside the predictions.
    """
    skip: dict[str, Any] = {"on_bad_image": "skip"} if "on_bad_image" in source else {}
    readers, looks = logging.getLogger("biomass.datasets"), itertools.count()
    grown = folder / "manifest.parquet"

    def refresh() -> Screen:
        level = readers.level
        readers.setLevel(level if next(looks) == 0 else logging.WARNING)
        try:
            path = manifest_path(**source) if str(source.get("_target_", "")).endswith(".load_manifest") else None
            if path is None or not read_recipes(path):
                return cast("Screen", build(source, **skip))
            look_again(path, grown)
            return cast("Screen", build(source, path=grown.absolute(), **skip))
        finally:
            readers.setLevel(level)

    return refresh


if __name__ == "__main__":
    main()
