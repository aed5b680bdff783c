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

Under other words for statistics (compare=[running,plate]) the wells are made, too, and by an untrained encoder:
profiles_wells_running.parquet … profiles_wells_untrained.parquet, which `biomass evaluate` sets against each other.
In the end stands report.html.

Many plates are done by many machines: shard=1/16 to shard=16/16, with one run_name, make some of the plates each, and
the same command with shard=merge joins them. A shard that dies is run again.
"""

import json
import logging
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from biomass import training
from biomass.atomic import whole_file
from biomass.config import Config, overrides, script
from biomass.errors import BiomassError, ConfigError, DataError, did_you_mean, printable, say
from biomass.evaluation import profiles
from biomass.evaluation.h5ad import check_anndata, write_h5ad
from biomass.evaluation.parts import fingerprints, members_of, pixel_hashes, plate_files
from biomass.evaluation.verdict import warning
from biomass.experiment import tool_folder
from biomass.fingerprint import fingerprint
from biomass.keys import PLACES
from biomass.profiling.correction import Correcting
from biomass.profiling.ending import finish_profiles
from biomass.profiling.makers import MAKERS, Maker
from biomass.shards import DATA, Shard, Shards, digest_of, digest_of_names, divide, parse_shard

PLACE = 72

_SHARDS = "shards"
"""The folder of a run for the notes of its shards."""

_FREE = (
    *("run_name", "shard", "device", "devices", "own_code", "report", "anndata", "postprocess"),
    *("encode_batch_size", "num_workers"),
)
"""What the shards of a run need not have in common."""

log = logging.getLogger(__name__)


@script("profile")
def main(cfg: Config) -> float | None:
    """Make what is missing plate by plate, join the plates, and say where the files are."""
    shard = parse_shard(cfg.shard)
    folder = tool_folder(cfg, "profile", f"{_SHARDS}/{shard.name}" if isinstance(shard, Shard) else None)
    if cfg.features not in MAKERS:
        raise ConfigError(f"features '{cfg.features}' are unknown; {did_you_mean(cfg.features, MAKERS)}")
    if cfg.anndata:
        check_anndata()
    maker = MAKERS[cfg.features](cfg)
    known, screen = maker.known, maker.screen
    groups, names = screen.groups(maker.by), screen.group_names(maker.by)
    log.info("%d images, which are taken for %s, of %d plates", len(screen), known.row_level, len(names))
    profiles.check_groups(known, groups, maker.by)
    mine = _plates_of(shard, groups)
    pixels = pixel_hashes(screen, members_of(groups), mine)
    parts = _parts(maker, folder / "plates", groups, pixels, mine)
    places = [folder / "compared" / _for_files(one.word) for one in maker.others]
    others = [
        (one, _parts(one, place, groups, pixels, mine, "wells"))
        for one, place in zip(maker.others, places, strict=True)
    ]
    shards = None if shard is None else Shards(folder / _SHARDS, _made(cfg, maker), "shard=")
    correction = Correcting.asked(cfg, known, maker.origin)
    anndata, report = cfg.anndata, cfg.report
    cfg.check_all_read()

    # from here on the tool writes
    made = [(maker, parts), *others]
    if shards is not None and isinstance(shard, Shard):
        _make_shard(shards, shard, made, names, mine, cfg)
        return None
    made_of = fingerprint(screen, maker.by)
    with training.RunLogger(folder, cfg.to_dict(), enabled=maker.fabric.is_global_zero):
        if shards is not None:
            _check_shards(shards, made, groups, names)
        elif not all(_make(one, of_one, names, mine) for one, of_one in made):
            return None  # the first process says why
        if not maker.fabric.is_global_zero:
            return None
        unread = parts.missing()
        _say_left_out(parts, unread, names, folder)
        for one, of_one in made:
            if one.stored is not None:
                one.stored.save(of_one, of_one.missing())
        wells = {
            maker.word: _write(
                maker.word, parts, unread, folder, correction.fitted(parts, unread, folder), anndata, made_of
            )
        }
        wells |= _write_compared([(one.word, of_one) for one, of_one in others], folder, made_of)
        if shards is not None:
            shards.remove()
    if report:
        finish_profiles(maker, wells, folder, _about)
    return None


def _about(wells: Mapping[str, Path]) -> dict[str, Any]:
    """What the page says of where it comes from."""
    from biomass.commands.evaluate import about  # of libraries that are slow to import

    return about(dict(wells), []) | {"command": shlex.join(["biomass", "profile", *overrides()])}


def _parts(
    maker: Maker,
    folder: Path,
    groups: np.ndarray,
    pixels: Sequence[str],
    mine: Collection[int] | None,
    only: str | None = None,
) -> profiles.Parts:
    """Where the profiles of plates are kept that a maker makes."""
    screen, known = maker.screen, maker.known
    return profiles.Parts(
        known,
        [file.with_suffix("") for file in plate_files(screen, groups, maker.by, folder)],
        fingerprints(screen, groups, known.table, *maker.settings, known.row_level, only=mine),
        maker.stored.held if maker.stored else {},
        only,
        pixels,
    )


def _plates_of(shard: Shard | str | None, groups: np.ndarray) -> list[int] | None:
    """The plates of a shard; None where there is no shard, or they are merged."""
    if not isinstance(shard, Shard):
        return None
    own: list[int] = np.unique(groups[divide(groups, shard.of) == shard.number]).tolist()
    return own


def _made(cfg: Config, maker: Maker) -> dict[str, str]:
    """What shards of one run must have in common: the data, the network, and the settings that profiles depend on."""
    settings = {key: json.dumps(value) for key, value in _leaves(cfg.to_dict())}
    free = {key for key in settings if not {key.partition(".")[0], key.split(".")[-1]}.isdisjoint({*PLACES, *_FREE})}
    kept = {key: value for key, value in settings.items() if key not in free}
    return kept | {"network": digest_of_names(maker.settings)[:12], DATA: digest_of(maker.screen)}


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _make_shard(
    shards: Shards,
    shard: Shard,
    made: Sequence[tuple[Maker, profiles.Parts]],
    names: Sequence[str],
    mine: Collection[int] | None,
    cfg: Config,
) -> None:
    """Make the plates of a shard, and leave a note of those that have no image with a profile."""
    assert mine is not None
    first = made[0][0].fabric.is_global_zero
    if first:
        shards.begin(shard)
    with training.RunLogger(shards.place(shard), cfg.to_dict(), enabled=first):
        if not all(_make(maker, parts, names, mine) for maker, parts in made) or not first:
            return
        shards.finish(
            shard, without=[[names[group] for group in parts.missing() if group in mine] for _, parts in made]
        )
        say(shards.say(shard, len(mine), "plates"))


def _check_shards(
    shards: Shards, made: Sequence[tuple[Maker, profiles.Parts]], groups: np.ndarray, names: Sequence[str]
) -> None:
    """Make sure that shards have made all plates, but for those that none of their images has a profile of."""
    notes = shards.finished()
    of = notes[0].shard.of
    shard_of = divide(groups, of)[np.unique(groups, return_index=True)[1]]
    for number, (maker, parts) in enumerate(made):
        without = {name for note in notes for name in note.more["without"][number]}
        lost = [group for group in parts.missing() if names[group] not in without]
        if lost:
            shard = Shard(int(shard_of[lost[0]]), of)
            raise DataError(
                f"shard {shard} has no profile of plate '{names[lost[0]]}' any more ({maker.word}), or one of other "
                f"images or moments: {shards.again(shard)}"
            )


def _make(maker: Maker, parts: profiles.Parts, names: Sequence[str], only: Collection[int] | None) -> bool:
    """Make the profiles of the plates that are missing, each process those of its own; whether all of them could."""
    missing, stored, fabric = parts.missing(), maker.stored, maker.fabric
    missing = [group for group in missing if only is None or group in only]
    total = len(names) if only is None else len(only)
    mine = [group for group in missing if group % fabric.world_size == fabric.global_rank]
    compared = "" if parts.only is None else f"'{maker.word}', to compare: "
    log.info("%s%d of %d plates are there already", compared, total - len(missing), total)
    outdated = parts.outdated(missing)
    if outdated:
        message = "%s%d plates have profiles that were made of other images or by other settings, and are made again; "
        log.warning(message + "the first is '%s'", compared, len(outdated), names[outdated[0]])
    if stored is not None:
        stored.say(missing)
        said = warning(maker.screen, stored.measuring.word, maker.by, stored.measuring.controls)
        if said is not None and not stored.held and fabric.is_global_zero:
            log.warning(said)
    error: BiomassError | None = None
    try:
        parts.write(_shown(maker.stream(mine), names, len(mine)), maker.features, maker.screen.pixels.name)
    except BiomassError as found:
        error = found
    error = _of_any(fabric, error)
    if error is not None and fabric.is_global_zero:
        raise error
    return error is None


def _for_files(word: str) -> str:
    """A word as a part of the name of a file."""
    return word.replace("/", "-")


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
    word: str,
    parts: profiles.Parts,
    without: Sequence[int],
    folder: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame] | None,
    anndata: bool,
    made_of: Mapping[str, Any],
) -> Path:
    """Join the plates; what an earlier call has written and this one does not is removed.

    Returns:
        The file of wells before post-processing.
    """
    files = {level: folder / f"profiles_{level}.parquet" for level in profiles.LEVELS}
    raw, h5ad = folder / profiles.RAW, files["wells"].with_suffix(".h5ad")
    for level in parts.known.levels:
        rows = parts.join(level, files[level], without, change if level == "wells" else None, word, made_of)
        say(f"{files[level]}: {rows:,} {level}")
    if change is not None:
        parts.join("wells", raw, without, statistics=word, data=made_of)
        say(f"{raw}: the same wells before post-processing")
    if anndata:
        write_h5ad(pd.read_parquet(files["wells"]), h5ad)
        say(f"{h5ad}: the same wells for scanpy")
    gone = [files[level] for level in profiles.LEVELS if level not in parts.known.levels]
    gone += [raw] * (change is None) + [h5ad] * (not anndata)
    for file in gone:
        file.unlink(missing_ok=True)
    return files["wells"] if change is None else raw


def _write_compared(
    others: Sequence[tuple[str, profiles.Parts]], folder: Path, made_of: Mapping[str, Any]
) -> dict[str, Path]:
    """Join the wells under other words, without post-processing; those of an earlier call that are not asked for go."""
    made = {folder / profiles.COMPARED.format(word=_for_files(word)): (word, parts) for word, parts in others}
    for file, (word, parts) in made.items():
        rows = parts.join("wells", file, parts.missing(), statistics=word, data=made_of)
        say(f"{file}: {rows:,} wells, to compare ({word})")
    for file in folder.glob(profiles.COMPARED.format(word="*")):
        if file not in made and file.name != profiles.RAW:
            file.unlink()
    return {word: file for file, (word, _) in made.items()}


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
            part.write_text("".join(f"{printable(name)}\n" for name in skipped))
        log.warning("left out %d images that cannot be read; they are listed in %s", len(skipped), file)


if __name__ == "__main__":
    main()
