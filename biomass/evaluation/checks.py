"""What would fail after hours of encoding is refused at once. Each check runs once a run, as soon as it can.

:func:`check_names` needs nothing, :func:`check_encoders` the networks, :func:`check_cells` the screen.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from biomass.channels import match_channels
from biomass.errors import ConfigError, DataError, did_you_mean, one_line
from biomass.evaluation.encode import Encoder
from biomass.evaluation.nearest import DISTANCES
from biomass.evaluation.transfer import COLUMNS, POSTPROCESSINGS, Postprocessing
from biomass.norms import WORDS, PlateBatchNorm, Statistics
from biomass.screen import FIELD, PLATE, Screen


def check_names(
    normalizations: Sequence[str], postprocessings: Sequence[str], metric: str, channels: Sequence[str] | None
) -> None:
    """Refuse words that mean nothing, before there are data or a network.

    Raises:
        ConfigError: names the word, and the nearest or all of those that there are.
    """
    # the statistics of an image must not depend on which other images happen to be in its batch
    alone = [name for name, word in WORDS.items() if word.by_group or word.prior]
    words: tuple[tuple[str, Sequence[str], Iterable[str]], ...] = (
        ("normalization", normalizations, alone),
        ("postprocessing", postprocessings, POSTPROCESSINGS),
        ("metric", [metric], DISTANCES),
    )
    for kind, names, known in words:
        if not names:
            raise ConfigError(f"no {kind} is chosen; choose some of {', '.join(known)}")
        for name in names:
            if name not in known:
                raise ConfigError(f"{kind} '{name}' is unknown; {did_you_mean(name, known)}")
    if channels is not None and not len(channels):
        raise ConfigError("the list of channels is empty; name all that the encoder expects", "encoder_channels")


def check_encoders(encoders: Mapping[str, Encoder]) -> None:
    """Make sure that networks that shall be normalized by plates can be, before there are cells.

    Args:
        encoders: word for statistics → the network that is to run under it.

    Raises:
        ConfigError: statistics of plates are asked of a network without batch norm.
    """
    for word, encoder in encoders.items():
        plain = not any(isinstance(module, PlateBatchNorm) for module in encoder.network.modules())
        if plain and WORDS[word].by_group:
            raise ConfigError(
                f"network '{encoder.key}' has no batch norm, so plates cannot be normalized in it ({word}); take "
                "running averages alone, or a network with batch norm (resnet50)",
                advice="statistics",
            )


def check_cells(
    cells: Screen,
    encoders: Mapping[str, Encoder],
    statistics: Mapping[str, Statistics],
    postprocessings: Iterable[str] = (),
) -> None:
    """Make sure that a screen holds what encoders, their statistics and the evaluation need.

    Args:
        cells: the screen.
        encoders: word for statistics → the network that is to run under it.
        statistics: the same words, over the groups of ``cells``.
        postprocessings: those that wells will undergo; none where profiles of images are all that is wanted.

    Raises:
        ConfigError: a column or a channel is missing, an image is in two groups, or a network does not take images
            like these.
        DataError: a plate, a batch or the screen has too few controls, a well has two treatments, or a treatment no
            name or two mechanisms.
    """
    missing = [column for column in COLUMNS if column not in cells.table]
    if missing:
        raise ConfigError(f"the screen has no column '{missing[0]}'; profiles of treatments need {', '.join(COLUMNS)}")
    for word, encoder in encoders.items():
        _check_groups(statistics[word], cells)
        if encoder.channels is not None:
            match_channels(encoder.channels, cells.pixels.channels)
        run_once(encoder, cells)
    corrections = [POSTPROCESSINGS[how] for how in postprocessings]
    for correction in corrections:
        _check_control_wells(correction, cells)
    if corrections:
        _check_treatments(cells)


def _check_groups(statistics: Statistics, cells: Screen) -> None:
    """Every group has what its statistics are taken from, and no image is in two groups."""
    statistics.check(cells)
    fields, groups = cells.groups(FIELD), cells.groups(statistics.by)
    if (groups[np.unique(fields, return_index=True)[1]][fields] != groups).any():
        raise ConfigError(
            f"statistics by {', '.join(statistics.by)} put the cells of one image into two groups; choose columns that "
            "are the same for all cells of an image",
            advice="statistics",
        )


def run_once(encoder: Encoder, cells: Screen) -> None:
    """Make sure that a network takes the images of a screen: it is given two black ones of their size.

    Raises:
        ConfigError: it does not.
    """
    network = encoder.network
    shape = (len(cells.pixels.channels if encoder.channels is None else encoder.channels), *cells.pixels.size)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(2, *shape, device=next(network.parameters()).device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"network '{encoder.key}' does not take images of {shape[1]} x {shape[2]} pixels and {shape[0]} channels "
            f"({textwrap.shorten(one_line(error), 120)}); choose another network, or images of another size"
        ) from error
    finally:
        network.train(was_training)


def _check_control_wells(postprocessing: Postprocessing, cells: Screen) -> None:
    """The control wells that a post-processing is fitted on will be there."""
    each = next((column for column, name in COLUMNS.items() if name == postprocessing.each), None)
    wells = cells.table[["control", *PLATE, "well"]].drop_duplicates().astype(str)
    place = "the screen" if each is None else "batch '" + wells[each] + "'"
    count = (wells["control"] == "negative").groupby(pd.Series(place, wells.index)).sum()
    few = count[count < postprocessing.controls]
    if len(few):
        others = f" (and {len(few) - 1} others)" if len(few) > 1 else ""
        raise DataError(
            f"{few.index[0]}{others} has too few wells of negative controls: {few.iloc[0]}, and {postprocessing.title} "
            f"needs {postprocessing.controls}; do without {postprocessing.title}"
            + ("" if each is None else ", or leave the batch out of the screen")
        )


def _check_treatments(cells: Screen) -> None:
    """Every well has one treatment, and every treatment a name and one mechanism."""
    well, treatment = [*PLATE, "well"], ["compound", "concentration"]
    wells = cells.table[[*well, "control", *treatment, "moa"]].drop_duplicates()
    twice = wells[wells.duplicated(well)]
    if len(twice):
        raise DataError(f"well '{_names(twice, well)}' has two treatments or mechanisms; correct the screen's table")
    treated = wells[wells["control"] == ""]
    if treated.empty:
        raise DataError(
            f"none of the {len(wells)} wells is treated, so there are no treatments to compare; choose "
            "other plates, or look at the column 'control'"
        )
    for column in treatment:
        nameless = treated[treated[column].isna() | (treated[column] == "")]
        if len(nameless):
            raise DataError(f"treated well '{_names(nameless, well)}' has no {column}; fill it, or drop the well")
    kinds = treated[[*treatment, "moa"]].drop_duplicates()
    twice = kinds[kinds.duplicated(treatment)]
    if len(twice):
        compound, concentration, moa = twice.iloc[0]
        same = kinds[(kinds["compound"] == compound) & (kinds["concentration"] == concentration)]
        raise DataError(
            f"treatment '{compound}' {concentration:g} has two mechanisms, '{same['moa'].iloc[0]}' and "
            f"'{moa}'; correct the table of mechanisms"
        )


def _names(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """What the first row says in some columns, as one name."""
    return "/".join(map(str, table[list(columns)].iloc[0]))
