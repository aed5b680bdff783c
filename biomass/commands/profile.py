"""Make profiles of cells, fields and wells, which other tools read.

    biomass profile model_path=my_run dataloaders=manifest dataloaders.root_dir=my_screen

Below runs/<run name>/ it writes profiles_cells.parquet (where images are of cells), profiles_fields.parquet and
profiles_wells.parquet: Metadata_* columns, Metadata_Count_Cells, and features emb_0000 …. A run that was stopped goes
on with the plates that are missing if it is started again under the same run_name; so does one whose screen has grown.

Every plate is normalized with its own moments (calibrated): those that `biomass calibrate` stored, or else they are
measured now, on all images of the plate, and kept in runs/<run name>/calibration.pt. With calibration=<run name> a
single image of such a plate has the same profile next week.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from biomass import training
from biomass.atomic import whole_file
from biomass.config import Config, script
from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.evaluation import checks, encode, postprocess, profiles
from biomass.evaluation.parts import fingerprints, plate_files
from biomass.experiment import chosen_words, compose, open_model, tool_folder
from biomass.identifiers import find
from biomass.models import digest
from biomass.norms import Method, PlateBatchNorm, Statistics, load_calibration, tuning_state
from biomass.screen import KINDS, PLATE, Screen, control_numbers

PLACE = 65

CALIBRATION = "calibration.pt"
"""The moments of all plates of a run, in its folder."""

POSTPROCESS = "postprocess.npz"
"""The post-processing of a run, fitted, in its folder."""

log = logging.getLogger(__name__)


@script("profile")
def main(cfg: Config) -> float | None:
    """Encode what is missing plate by plate, join the plates, and say where the files are."""
    data = cfg.dataloaders
    folder = tool_folder(cfg, "profile")
    fabric, path, network, architecture, channels, screen = open_model(cfg, "profile")
    encoder = encode.Encoder(network.encoder, channels, architecture.key)
    checks.run_once(encoder, screen)
    statistics = _statistics(cfg, encoder.network, screen)
    known = profiles.describe(screen, cfg.rows)
    log.info("the %d images are taken for %s", len(screen), known.row_level)
    groups = screen.groups(statistics.by)
    profiles.check_groups(known, groups, statistics.by)
    stored = _stored(cfg, encoder.network, path, statistics, screen, folder)

    transform = compose(cfg.transforms.eval)
    options: dict[str, Any] = {"normalize": cfg.normalize, "batch_size": cfg.encode_batch_size}
    about = [fabric.strategy.precision.precision, statistics.label, statistics.by, options["normalize"], channels]
    about += [repr(transform), known.row_level, stored.measuring.label if stored else ""]
    about += [options["batch_size"]] if statistics.blocks or not statistics.by_group else []
    settings = [digest(encoder.network), repr(tuning_state(network)) if statistics.tuned else "", repr(about)]
    options |= {"num_workers": data.num_workers, "on_bad_image": data.on_bad_image, "transform": transform}
    parts = profiles.Parts(
        known,
        [file.with_suffix("") for file in plate_files(screen, groups, statistics.by, folder / "plates")],
        fingerprints(screen, groups, known.table, *settings),
        stored.held if stored else {},
    )
    correction = _Correction.asked(cfg, known, " ".join([settings[0], (stored.measuring if stored else statistics).label]))
    cfg.check_all_read()

    # from here on the tool writes
    with training.RunLogger(folder, cfg.to_dict(), enabled=fabric.is_global_zero):
        missing = parts.missing()
        mine = [group for group in missing if group % fabric.world_size == fabric.global_rank]
        log.info("%d of %d plates are encoded now", len(missing), len(parts.folders))
        if stored is not None:
            stored.say(missing)
            options["held"] = stored.held.keys()
            ran = stored.measuring
        else:
            ran = statistics
        plates = encode.encoded_plates(fabric, encoder, screen, mine, ran, **options)
        parts.write(_shown(plates, statistics.names or (), len(mine)), None, screen.pixels.name)
        fabric.barrier()
        if not fabric.is_global_zero:
            return None
        unread = parts.missing()
        _say_skipped(parts, unread, statistics.names or (), folder)
        there = [group for group in range(len(parts.folders)) if group not in set(unread)]
        if stored is not None:
            moments = [parts.moments(group) for group in there]
            stacked = {name: torch.stack([one[name] for one in moments], 1) for name in moments[0]}
            names = [(statistics.names or ())[group] for group in there]
            training.add_plates(encoder.network, folder / CALIBRATION, stored.measuring, names, stacked)
        change = correction.fitted(parts, unread, folder)
        for level in known.levels:
            file = folder / f"profiles_{level}.parquet"
            rows = parts.join(level, file, unread, change if level == "wells" else None)
            print(f"{file}: {rows:,} {level}")
        raw = folder / "profiles_wells_raw.parquet"
        if change is None:
            raw.unlink(missing_ok=True)
        else:
            parts.join("wells", raw, unread)
            print(f"{raw}: the same wells before {correction.how}")
    return None


class _Correction(NamedTuple):
    """The post-processing that is asked for.

    Attributes:
        how: its name.
        controls: which controls it is fitted on.
        fit_on: the plates whose controls whitening is fitted on; None for all.
        by: columns that make a group; None: those of the steps.
        epsilon: of the steps.
        loaded: what was fitted before, where it is to be applied.
        origin: what the profiles are made by.
    """

    how: str
    controls: str
    fit_on: list[str] | None
    by: list[str] | None
    epsilon: float | None
    loaded: postprocess.Correction | None
    origin: str

    @classmethod
    def asked(cls, cfg: Config, known: profiles.Description, origin: str) -> "_Correction":
        """What the configuration says, after a look at the wells that there will be."""
        asked = cfg.postprocess
        how, fit_on, loaded = asked.how, asked.fit_on, None
        postprocess.check_how(how)
        controls, by, epsilon = asked.controls, asked.by, asked.epsilon
        if asked.load is not None:
            file = Path(asked.load)
            loaded = postprocess.Correction.load(file if file.is_file() else Path("runs") / asked.load / POSTPROCESS)
            if loaded.origin != origin:
                raise ConfigError(
                    f"'{asked.load}' was fitted on profiles by other weights or other statistics; fit it on these",
                    "postprocess",
                )
            if how not in ("none", loaded.how) or fit_on is not None:
                raise ConfigError(
                    f"'{asked.load}' is fitted already, to {loaded.how}; leave out what it is to be fitted on",
                    "postprocess",
                )
            how, controls, by = loaded.how, loaded.controls, None if loaded.by is None else list(loaded.by)
        control_numbers(controls)
        wells = known.well_table()
        if fit_on is not None:
            names = wells[profiles.NAMES["plate"]].astype(str)
            whole = postprocess.group_names(wells, (postprocess.BATCH, postprocess.PLATE))
            fit_on = find(fit_on, [*names, *whole], "plate that post-processing is fitted on", advice="postprocess")
        if how != "none":
            if profiles.CONTROL not in wells:
                raise DataError("some wells hold controls and treated images, so that nothing can be fitted on controls")
            mask = wells[profiles.CONTROL].isin(KINDS[controls]).to_numpy()
            postprocess.check_controls(wells, mask, how, by, loaded)
        return cls(how, controls, fit_on, by, epsilon, loaded, origin)

    def fitted(
        self, parts: profiles.Parts, without: Sequence[int], folder: Path
    ) -> Callable[[pd.DataFrame], pd.DataFrame] | None:
        """Fit it, or learn the new plates, and save it; None where nothing is to be done.

        Args:
            parts: hold the profiles of wells,
            without: but not of these plates.
            folder: of the run.
        """
        file = folder / POSTPROCESS
        if self.how == "none":
            file.unlink(missing_ok=True)
            return None
        controls = parts.controls(self.controls, without)
        if self.loaded is not None:
            done = self.loaded.learn(controls)
            anew = [postprocess.STEPS[one].anew for one in postprocess.CORRECTIONS[self.how]]
            log.info("%s: applied as it was fitted before; fitted anew: %s", self.how, "; ".join(anew))
        else:
            plates = controls[profiles.NAMES["plate"]]
            whole = postprocess.group_names(controls, (postprocess.BATCH, postprocess.PLATE))
            chosen = np.ones(len(controls), bool)
            if self.fit_on is not None:
                chosen = (plates.isin(self.fit_on) | np.isin(whole, self.fit_on)).to_numpy()
            log.info("%s: fitted on %d control wells of %d plates", self.how, chosen.sum(), len(set(whole[chosen])))
            done = postprocess.fit(
                controls,
                self.how,
                fit_on=chosen,
                by=self.by,
                epsilon=self.epsilon,
                kind=self.controls,
                origin=self.origin,
            )
        done.save(file)
        return done.apply


def _statistics(cfg: Config, network: nn.Module, screen: Screen) -> Statistics:
    """Where batch norm takes its statistics from."""
    method = Method("running", "calibrated", PLATE, PLATE).override(*chosen_words(cfg))
    if cfg.statistics.eval is None and not any(isinstance(module, PlateBatchNorm) for module in network.modules()):
        log.info("the network has no batch norm of plates: its profiles do not depend on other images (running)")
        method = method._replace(eval="running")
    method._replace(train="running").check_network(network)
    statistics = Statistics.over(screen, method.eval, method.eval_by, method.controls)
    if statistics.adapts:
        raise ConfigError(f"statistics '{statistics.word}' adapt a classifier, and profiles come from its encoder")
    statistics.passes(network)  # raises an error where it does not know its training plates
    statistics.check(screen)
    return statistics


class _Stored(NamedTuple):
    """The moments of plates, for ``calibrated``.

    Attributes:
        file: that they were read from; None where there is none.
        measuring: the statistics that other plates are measured by,
        held: the moments of the plates of the screen that are in the file, by number.
        images: of each plate.
    """

    file: Path | None
    measuring: Statistics
    held: dict[int, dict[str, Tensor]]
    images: np.ndarray

    def say(self, missing: Sequence[int]) -> None:
        """What is taken from the file, and what is measured."""
        assert self.measuring.names is not None
        if self.held:
            log.info("calibrated: %d plates have moments in '%s'", len(self.held), self.file)
        now = [group for group in missing if group not in self.held]
        if now:
            rows = "all their images" if self.measuring.word == "plate" else f"their images ({self.measuring.label})"
            first = self.measuring.names[now[0]]
            log.info(
                "calibrated: %d plates are measured now, on %s (%d to %d; the first is '%s')",
                len(now),
                rows,
                self.images[now].min(),
                self.images[now].max(),
                first,
            )


def _stored(
    cfg: Config, network: nn.Module, path: Path, statistics: Statistics, screen: Screen, folder: Path
) -> _Stored | None:
    """What is known of plates that statistics are taken from; None where they are not ``calibrated``."""
    named = cfg.calibration
    if statistics.word != "calibrated":
        return None
    assert statistics.names is not None
    images = np.bincount(screen.groups(statistics.by), minlength=len(statistics.names))
    file = training.calibration_file(path, named)
    if named is not None and not file.is_file():
        file = Path("runs") / named / CALIBRATION
        if not file.is_file():
            raise CheckpointError(f"calibration '{named}' is neither a file nor a run with {CALIBRATION}")
    held: dict[int, dict[str, Tensor]] = {}
    label = "plate"
    try:
        calibration = training.read_calibration(network, file, statistics.by) if file.is_file() else None
    except CheckpointError as error:
        if named is not None:
            raise
        log.warning("%s; it is left alone, and all plates are measured", error)
        calibration = None
    if calibration is not None:
        state = calibration.of(statistics.names)
        load_calibration(network, state)
        numbers = state.pop("plates").tolist()
        held = {group: {k: v[:, i] for k, v in state.items()} for i, group in enumerate(numbers)}
        label = calibration.label
    measuring = Statistics.labelled(label, statistics.by, statistics.names, statistics.controls)
    training.check_calibration(network, folder / CALIBRATION, measuring)
    return _Stored(file if held else None, measuring, held, images)


def _shown(
    plates: Iterator[profiles.PlateVectors], names: Sequence[str], total: int
) -> Iterator[profiles.PlateVectors]:
    """The same plates, with a bar that counts them, or a line in the log for each where there is no terminal."""
    with tqdm(total=total, unit="plate", leave=False, disable=not sys.stderr.isatty()) as bar:
        for number, plate in enumerate(plates, 1):
            yield plate  # the caller writes it
            bar.update()
            if bar.disable:
                log.info("plate %d of %d, '%s': %d images", number, total, names[plate.group], len(plate.rows))


def _say_skipped(parts: profiles.Parts, unread: Sequence[int], names: Sequence[str], folder: Path) -> None:
    """What could not be read, in the log and in ``skipped_images.txt``."""
    if len(unread) == len(parts.folders):
        raise DataError("no image of any plate can be read")
    if unread:
        log.warning("plate '%s' (%d in all) has no image that can be read", names[unread[0]], len(unread))
    skipped = parts.skipped()
    if skipped:
        file = folder / "skipped_images.txt"
        with whole_file(file) as part:
            part.write_text("".join(f"{name}\n" for name in skipped))
        log.warning("left out %d images that cannot be read; they are listed in %s", len(skipped), file)


if __name__ == "__main__":
    main()
