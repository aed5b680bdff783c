"""What is left beside profiles in the end: sample images, where in the network plates differ, and the page."""

from functools import partial
from pathlib import Path

from biomass.evaluation.layers import number_of_images, plate_distances, write_distances
from biomass.profiling.makers import Maker
from biomass.report.finish import finish


def finish_profiles(maker: Maker, folder: Path) -> Path | None:
    """Make the page of a run of profiles, see :func:`biomass.report.finish.finish`.

    Args:
        maker: of the profiles.
        folder: of the run, which holds them.
    """
    steps = []
    if maker.network is not None:
        steps.append(partial(_layers, maker, folder))
    return finish(folder, steps)


def _layers(maker: Maker, folder: Path) -> None:
    assert maker.network is not None
    assert maker.transform is not None
    most = number_of_images(len(maker.screen))
    write_distances(plate_distances(maker.network, maker.screen, maker.transform, most=most), folder)
