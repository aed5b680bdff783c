"""Make profiles of cells, fields and wells, which other tools read.

    biomass profile model_path=my_run dataloaders=manifest dataloaders.root_dir=my_screen

Below runs/<run name>/ it writes profiles_cells.parquet (where images are of cells), profiles_fields.parquet and
profiles_wells.parquet: Metadata_* columns, Metadata_Count_Cells, and features emb_0000 …. The cells of a screen of
fields are known where classical features counted them, or a column of the screen says it (cells, Count_Cells);
otherwise that column is left out. A run that was stopped goes on with the plates that are missing if it is started
again under the same run_name; so does one whose screen has grown.

Every plate is normalized with its own moments (calibrated): those that stand beside the checkpoint (`biomass calibrate`
and `biomass predict` write them, too), or else they are measured now, on all images of the plate, and kept there. So a
single image of such a plate has the same profile next week.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from biomass import training
from biomass.atomic import whole_file
from biomass.cells.measure import measures_of
from biomass.config import Config, build, script
from biomass.errors import BiomassError, ConfigError, DataError, did_you_mean
from biomass.evaluation import checks, encode, postprocess, profiles
from biomass.evaluation.h5ad import check_anndata, write_h5ad
from biomass.evaluation.measured import measured_plates
from biomass.evaluation.parts import fingerprints, plate_files
from biomass.evaluation.positions import Positions
from biomass.evaluation.tables import METADATA
from biomass.evaluation.verdict import warning
from biomass.experiment import chosen_words, open_model, tool_folder
from biomass.identifiers import find, well_places
from biomass.inference import Transform
from biomass.models import digest
from biomass.norms import WORDS, Method, PlateBatchNorm, Statistics, calibration_state, tuning_state
from biomass.screen import KINDS, PLATE, Screen, control_numbers

PLACE = 72

POSTPROCESS = "postprocess.npz"
"""The post-processing of a run, fitted, in its folder."""

log = logging.getLogger(__name__)


@script("profile")
def main(cfg: Config) -> float | None:
    """Make what is missing plate by plate, join the plates, and say where the files are."""
    folder = tool_folder(cfg, "profile")
    if cfg.features not in MAKERS:
        raise ConfigError(f"features '{cfg.features}' are unknown; {did_you_mean(cfg.features, MAKERS)}")
    if cfg.anndata:
        check_anndata()
    maker = MAKERS[cfg.features](cfg)
    known, screen, stored = maker.known, maker.screen, maker.stored
    groups, names = screen.groups(maker.by), screen.group_names(maker.by)
    log.info("%d images, which are taken for %s, of %d plates", len(screen), known.row_level, len(names))
    profiles.check_groups(known, groups, maker.by)
    parts = profiles.Parts(
        known,
        [file.with_suffix("") for file in plate_files(screen, groups, maker.by, folder / "plates")],
        fingerprints(screen, groups, known.table, *maker.settings, known.row_level),
        stored.held if stored else {},
    )
    correction = _Correction.asked(cfg, known, maker.origin)
    anndata = cfg.anndata
    cfg.check_all_read()

    # from here on the tool writes
    first, rank, world = maker.fabric.is_global_zero, maker.fabric.global_rank, maker.fabric.world_size
    with training.RunLogger(folder, cfg.to_dict(), enabled=first):
        missing = parts.missing()
        mine = [group for group in missing if group % world == rank]
        log.info("%d of %d plates are there already", len(names) - len(missing), len(names))
        if stored is not None:
            stored.say(missing)
            said = warning(screen, stored.measuring.word, maker.by, stored.measuring.controls) if first else None
            if said is not None and not stored.held:
                log.warning(said)
        error: BiomassError | None = None
        try:
            parts.write(_shown(maker.stream(mine), names, len(mine)), maker.features, screen.pixels.name)
        except BiomassError as found:
            error = found
        error = _of_any(maker.fabric, error)
        if not first:
            return None
        if error is not None:
            raise error
        unread = parts.missing()
        _say_left_out(parts, unread, names, folder)
        if stored is not None:
            stored.save(parts, unread)
        _write(parts, unread, folder, correction.fitted(parts, unread, folder), anndata)
    return None


class _Maker(NamedTuple):
    """What makes vectors of the images of a screen.

    Attributes:
        fabric: its device.
        screen: the images,
        known: and what is known of them.
        by: columns that make a plate.
        stream: from numbers of plates to their vectors.
        features: names of the features; None: ``emb_0000…``.
        settings: what the vectors depend on.
        origin: the part of it without which a post-processing is of no use.
        stored: the moments of plates, where they are taken.
    """

    fabric: Fabric
    screen: Screen
    known: profiles.Description
    by: tuple[str, ...]
    stream: Callable[[Sequence[int]], Iterator[profiles.PlateVectors]]
    features: list[str] | None
    settings: list[str]
    origin: str
    stored: "_Stored | None" = None


def _encoding(cfg: Config) -> _Maker:
    """By the encoder of a trained network."""
    normalize, batch_size = cfg.normalize, cfg.encode_batch_size
    workers, on_bad_image = cfg.dataloaders.num_workers, cfg.dataloaders.on_bad_image
    fabric, path, network, architecture, channels, screen, transform = open_model(cfg, "profile")
    encoder = encode.Encoder(network.encoder, channels, architecture.key)
    checks.run_once(encoder, screen)
    statistics = _statistics(cfg, encoder.network, screen)
    stored = _stored(cfg, encoder.network, path, statistics, transform, screen)
    ran = stored.measuring if stored else statistics
    about = [fabric.strategy.precision.precision, statistics.label, ran.label, statistics.by, normalize, channels]
    by_batch = WORDS[statistics.word].mixture is not None and not statistics.whole_groups
    about += [repr(transform), batch_size if by_batch else None]
    weights = digest(encoder.network)
    tuning = repr(tuning_state(network)) if statistics.tuned else ""

    def stream(plates: Sequence[int]) -> Iterator[profiles.PlateVectors]:
        return encode.encoded_plates(
            fabric,
            encoder,
            screen,
            plates,
            ran,
            transform=transform,
            held=stored.held if stored else None,
            normalize=normalize,
            batch_size=batch_size,
            num_workers=workers,
            on_bad_image=on_bad_image,
        )

    known = profiles.describe(screen, cfg.rows)
    settings = [weights, tuning, repr(about)]
    _pass_over(cfg.classical, ("channel", "diameter"))
    return _Maker(fabric, screen, known, ran.by, stream, None, settings, f"{weights} {ran.label}", stored)


def _classical(cfg: Config) -> _Maker:
    """By what scikit-image measures on nuclei."""
    workers, on_bad_image = cfg.dataloaders.num_workers, cfg.dataloaders.on_bad_image
    for key in ("model_path", "calibration"):
        if getattr(cfg, key) is not None:
            raise ConfigError(f"classical features take no network, and {key} names one; leave it out")
    if chosen_words(cfg)[1] is not None:
        raise ConfigError("classical features take no statistics; standardize them afterwards", "postprocess")
    for section in (cfg.model, cfg.transforms):
        _pass_over(section, section.to_dict())
    _pass_over(cfg, ("measure_again", "seed", "device", "devices", "precision", "normalize", "encode_batch_size"))
    screen = build(cfg.dataloaders.source)
    known = profiles.describe(screen, cfg.rows)
    cells = known.row_level == "cells"
    measure = measures_of(screen.pixels.channels, known.row_level, cfg.classical.channel, cfg.classical.diameter)
    groups = screen.groups(PLATE)

    def stream(plates: Sequence[int]) -> Iterator[profiles.PlateVectors]:
        return measured_plates(
            screen,
            groups,
            plates,
            measure,
            batch_size=64 if cells else 1,
            num_workers=workers,
            on_bad_image=on_bad_image,
            counted=not cells,
        )

    settings = ["classical", repr(measure)]
    return _Maker(
        training.make_fabric("cpu"), screen, known, PLATE, stream, measure.features, settings, " ".join(settings)
    )


def _pass_over(section: Config, keys: Iterable[str]) -> None:
    """Keys that mean something for other features: these need no reader."""
    for key in keys:
        section.get(key)


MAKERS: Mapping[str, Callable[[Config], _Maker]] = {"encoder": _encoding, "classical": _classical}
"""What features may be, by the word for it."""


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
        position: whether row and column effects of plates are removed first.
    """

    how: str
    controls: str
    fit_on: list[str] | None
    by: list[str] | None
    epsilon: float | None
    loaded: postprocess.Correction | None
    origin: str
    position: bool

    @classmethod
    def asked(cls, cfg: Config, known: profiles.Description, origin: str) -> "_Correction":
        """What the configuration says, after a look at the wells that there will be."""
        asked = cfg.postprocess
        how, fit_on, loaded = asked.how, asked.fit_on, None
        postprocess.check_how(how)
        controls, by, epsilon, position = asked.controls, asked.by, asked.epsilon, asked.position
        if by is not None:  # columns of the screen, or of the profiles
            by = [c if c.startswith(METADATA) else profiles.NAMES.get(c, f"{METADATA}{c}") for c in by]
        if asked.load is not None:
            file = Path(asked.load)
            loaded = postprocess.Correction.load(file if file.is_file() else Path("runs") / asked.load / POSTPROCESS)
            if loaded.origin != origin:
                raise ConfigError(
                    f"'{asked.load}' was fitted on profiles by other weights or other statistics; fit it on these",
                    "postprocess",
                )
            if how not in ("none", loaded.how) or any(one is not None for one in (fit_on, by, epsilon)):
                raise ConfigError(
                    f"'{asked.load}' is fitted already, to {loaded.how}; leave out what it is to be fitted on",
                    "postprocess",
                )
            if position and not loaded.position:
                raise ConfigError(
                    f"'{asked.load}' was fitted on profiles with their position effects; leave these, or fit it again",
                    "postprocess",
                )
            how, controls, by = loaded.how, loaded.controls, None if loaded.by is None else list(loaded.by)
            position = loaded.position
        control_numbers(controls)
        wells = known.well_table()
        if position:
            well_places(wells[profiles.NAMES["well"]])
        if fit_on is not None:
            names = wells[profiles.NAMES["plate"]].astype(str)
            whole = postprocess.group_names(wells, (postprocess.BATCH, postprocess.PLATE))
            fit_on = find(fit_on, [*names, *whole], "plate that post-processing is fitted on", advice="postprocess")
        if how != "none":
            if profiles.CONTROL not in wells:
                raise DataError(
                    "some wells hold controls and treated images, so that nothing can be fitted on controls"
                )
            mask = wells[profiles.CONTROL].isin(KINDS[controls]).to_numpy()
            postprocess.check_controls(wells, mask, how, by, loaded)
        return cls(how, controls, fit_on, by, epsilon, loaded, origin, position)

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
        positions = Positions.of(map(pd.read_parquet, parts.files("wells", without))) if self.position else None
        if self.how == "none":
            file.unlink(missing_ok=True)
            return None if positions is None else positions.apply
        controls = parts.controls(self.controls, without)
        if positions is not None:
            controls = positions.apply(controls)
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
        replace(done, position=self.position).save(file)
        return done.apply if positions is None else lambda wells: done.apply(positions.apply(wells))


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
        network: that they belong to.
        file: where they are kept.
        known: what the file holds of these weights, before anything is measured.
        measuring: the statistics that other plates are measured by, after
        transform: was done to their images,
        held: the moments of the plates of the screen that are in the file, by number.
        images: of each plate.
    """

    network: nn.Module
    file: Path
    known: training.Calibration
    measuring: Statistics
    transform: Transform
    held: dict[int, dict[str, Tensor]]
    images: np.ndarray

    def save(self, parts: profiles.Parts, without: Sequence[int]) -> None:
        """Write the moments of the plates that were measured; others that the file holds stay."""
        groups = [group for group in range(len(parts.folders)) if group not in {*without, *self.held}]
        if not groups:
            return
        moments = [parts.moments(group) for group in groups]
        plates = [(self.measuring.names or ())[group] for group in groups]
        new = replace(
            self.known,
            plates=plates,
            images=[int(self.images[group]) - parts.unread(group) for group in groups],
            moments={name: torch.stack([one[name] for one in moments], 1) for name in moments[0]},
        )
        training.check_calibration(self.network, self.file, self.measuring, self.transform).merged(new).save(self.file)

    def say(self, missing: Sequence[int]) -> None:
        """What is taken from the file, and what is measured."""
        assert self.measuring.names is not None
        if self.held:
            log.info(
                "calibrated: %d plates have moments in '%s', by their names alone: if these are "
                "other plates of the same names, set measure_again=true",
                len(self.held),
                self.file,
            )
        now = [group for group in missing if group not in self.held]
        if now:
            rows = "all their images" if self.measuring.word == "plate" else f"their images ({self.measuring.label})"
            first = self.measuring.names[now[0]]
            few, many = self.images[now].min(), self.images[now].max()
            log.info(
                "calibrated: %d plates are measured now, on %s (%s; the first is '%s'), and kept in '%s'",
                len(now),
                rows,
                few if few == many else f"{few} to {many}",
                first,
                self.file,
            )


def _stored(
    cfg: Config, network: nn.Module, path: Path, statistics: Statistics, transform: Transform, screen: Screen
) -> _Stored | None:
    """What is known of plates that statistics are taken from; None where they are not ``calibrated``."""
    named, again = cfg.calibration, cfg.measure_again
    if statistics.word != "calibrated":
        return None
    assert statistics.names is not None
    images = np.bincount(screen.groups(statistics.by), minlength=len(statistics.names))
    file = training.calibration_file(path, named)
    label = training.Calibration.read(file).word if file.is_file() else "plate"
    measuring = Statistics.labelled(label, statistics.by, statistics.names, statistics.controls)
    known = training.check_calibration(network, file, measuring, transform)
    if again:
        known = replace(known, plates=[], images=[], moments={})
    known.warn_of_grown(statistics.names, screen.groups(statistics.by))
    known.give(network, statistics.names)
    state = calibration_state(network)
    numbers = state.pop("plates").tolist()
    held = {group: {k: v[:, i] for k, v in state.items()} for i, group in enumerate(numbers)}
    return _Stored(network, file, known, measuring, transform, held, images)


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


def _write(
    parts: profiles.Parts,
    without: Sequence[int],
    folder: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame] | None,
    anndata: bool,
) -> None:
    """Join the plates; what an earlier call has written and this one does not is removed."""
    files = {level: folder / f"profiles_{level}.parquet" for level in profiles.LEVELS}
    raw, h5ad = folder / "profiles_wells_raw.parquet", files["wells"].with_suffix(".h5ad")
    for level in parts.known.levels:
        rows = parts.join(level, files[level], without, change if level == "wells" else None)
        print(f"{files[level]}: {rows:,} {level}")
    if change is not None:
        parts.join("wells", raw, without)
        print(f"{raw}: the same wells before post-processing")
    if anndata:
        write_h5ad(pd.read_parquet(files["wells"]), h5ad)
        print(f"{h5ad}: the same wells for scanpy")
    gone = [files[level] for level in profiles.LEVELS if level not in parts.known.levels]
    gone += [raw] * (change is None) + [h5ad] * (not anndata)
    for file in gone:
        file.unlink(missing_ok=True)


def _of_any(fabric: Fabric, error: BiomassError | None) -> BiomassError | None:
    """The first error of any process, once all of them are done with their plates."""
    errors = [error] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(errors, error)
    return next((one for one in errors if one is not None), None)


def _say_left_out(parts: profiles.Parts, unread: Sequence[int], names: Sequence[str], folder: Path) -> None:
    """What has no profile, in the log; and what cannot be read in ``skipped_images.txt``, too."""
    if len(unread) == len(parts.folders):
        raise DataError(f"no image of the {len(names)} plates has a profile: none can be read, or none has a nucleus")
    if unread:
        log.warning("plate '%s' (%d in all) has no image that has a profile", names[unread[0]], len(unread))
    skipped, file = parts.skipped(unread), folder / "skipped_images.txt"
    file.unlink(missing_ok=True)  # of an earlier call
    if skipped:
        with whole_file(file) as part:
            part.write_text("".join(f"{name}\n" for name in skipped))
        log.warning("left out %d images that cannot be read; they are listed in %s", len(skipped), file)


if __name__ == "__main__":
    main()
