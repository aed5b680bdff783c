"""What is left beside profiles in the end: how they are judged, sample images, where plates differ, and the page."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biomass.errors import DataError
from biomass.evaluation.layers import number_of_images, plate_distances, write_distances
from biomass.profiling.makers import Maker
from biomass.report.finish import finish
from biomass.training.samples import save_samples

CORRECTIONS = ("none", "standardize")
"""What is done to profiles that are judged at once; ``biomass evaluate`` compares more."""


About = Callable[[Mapping[str, Path]], Mapping[str, Any]]
"""From the files of profiles to what the page says of where they come from."""


def finish_profiles(maker: Maker, wells: Mapping[str, Path], folder: Path, about: About) -> Path | None:
    """Make the page of a run of profiles, see :func:`biomass.report.finish.finish`.

    Args:
        maker: of the profiles.
        wells: word for statistics → the profiles of wells under it, before post-processing.
        folder: of the run.
        about: what the page says of them.
    """
    steps = [partial(_judge, maker, wells, folder, about)]
    if maker.network is not None:
        steps.append(partial(_compare_layers, maker, folder))
    steps.append(partial(save_samples, folder, maker.screen, maker.transform or _as_read, channels=maker.channels))
    return finish(folder, steps)


def _judge(maker: Maker, wells: Mapping[str, Path], folder: Path, about: About) -> None:
    """Judge the profiles, as ``biomass evaluate`` does, in a minute."""
    from biomass.judgement.evaluate import Settings, evaluate  # of libraries that are slow to import
    from biomass.judgement.read import read_profiles

    if len(np.unique(maker.screen.plate_ids)) < 2:
        raise DataError("profiles of one plate say nothing of a batch effect, and are not judged")
    tables = {word: read_profiles(file) for word, file in wells.items()}
    evaluate(tables, folder, Settings(corrections=CORRECTIONS, maps="pca"), about(wells))


def _compare_layers(maker: Maker, folder: Path) -> None:
    assert maker.network is not None
    assert maker.transform is not None
    most = number_of_images(len(maker.screen) * (1 + len(maker.others)))
    write_distances(plate_distances(maker.network, maker.screen, maker.transform, most=most), folder)


def _as_read(images: Tensor) -> Tensor:
    return images.to(torch.float32)
