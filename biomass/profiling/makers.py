"""What makes vectors of the images of a screen: an encoder under a word for statistics, or scikit-image."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lightning_fabric import Fabric
from torch import nn

from biomass import training
from biomass.cells.measure import measures_of
from biomass.config import Config, build
from biomass.errors import BiomassError, ConfigError
from biomass.evaluation import checks, encode, profiles
from biomass.evaluation.measured import measured_plates
from biomass.experiment import chosen_words, open_model
from biomass.inference import Transform
from biomass.models import Architecture, build_network, digest, is_own_code
from biomass.norms import WORDS, Method, PlateBatchNorm, Statistics, tuning_state
from biomass.profiling.moments import Stored, stored_moments
from biomass.screen import PLATE, OnBadImage, Screen

UNTRAINED = "untrained"
"""What profiles by an encoder of fresh weights are called, where others are called by their word for statistics."""

log = logging.getLogger(__name__)


class Maker(NamedTuple):
    """What makes vectors of the images of a screen.

    Attributes:
        word: for statistics, with the kind of controls; ``untrained``, or ``classical``, where something else makes a
            difference.
        fabric: its device.
        screen: the images,
        known: and what is known of them.
        by: columns that make a plate.
        stream: from numbers of plates to their vectors.
        features: names of the features; None: ``emb_0000…``.
        settings: what the vectors depend on.
        origin: the part of it without which a post-processing is of no use.
        stored: the moments of plates, where they are taken.
        network: what sees images, if it is a network,
        transform: and what is done to them before,
        channels: names of those that it sees then; None: those of the screen.
        others: what makes the vectors that these are compared with.
    """

    word: str
    fabric: Fabric
    screen: Screen
    known: profiles.Description
    by: tuple[str, ...]
    stream: Callable[[Sequence[int]], Iterator[profiles.PlateVectors]]
    features: list[str] | None
    settings: list[str]
    origin: str
    stored: Stored | None = None
    network: nn.Module | None = None
    transform: Transform | None = None
    channels: Sequence[str] | None = None
    others: tuple["Maker", ...] = ()


@dataclass(frozen=True)
class _Bench:
    """What encoders and words for statistics are tried on, and how."""

    fabric: Fabric
    path: Path
    screen: Screen
    known: profiles.Description
    transform: Transform
    cfg: Config
    normalize: bool
    batch_size: int | None
    num_workers: int
    on_bad_image: OnBadImage

    def maker(self, encoder: encode.Encoder, statistics: Statistics, word: str | None = None) -> Maker:
        """What makes vectors by an encoder under a word; called so if nothing else makes the difference."""
        network, channels, _ = encoder
        stored = stored_moments(self.cfg, network, self.path, statistics, self.transform, self.screen)
        ran = stored.measuring if stored else statistics
        precision = self.fabric.strategy.precision.precision
        about = [precision, statistics.label, ran.label, statistics.by, self.normalize, channels]
        by_batch = WORDS[statistics.word].mixture is not None and not statistics.whole_groups
        about += [repr(self.transform), self.batch_size if by_batch else None]
        weights = digest(network)
        tuning = repr(tuning_state(network)) if statistics.tuned else ""

        def stream(plates: Sequence[int]) -> Iterator[profiles.PlateVectors]:
            return encode.encoded_plates(
                self.fabric,
                encoder,
                self.screen,
                plates,
                ran,
                transform=self.transform,
                held=stored.held if stored else None,
                normalize=self.normalize,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                on_bad_image=self.on_bad_image,
            )

        return Maker(
            word or statistics.label,
            self.fabric,
            self.screen,
            self.known,
            ran.by,
            stream,
            None,
            [weights, tuning, repr(about)],
            f"{weights} {ran.label}",
            stored,
            network,
            encode.select_channels(channels, self.screen, self.transform),
            channels,
        )


def encoding(cfg: Config) -> Maker:
    """By the encoder of a trained network; and under other words, by an untrained one, to compare."""
    normalize, batch_size, words = cfg.normalize, cfg.encode_batch_size, list(dict.fromkeys(cfg.compare))
    workers, on_bad_image = cfg.dataloaders.num_workers, cfg.dataloaders.on_bad_image
    with _advised():
        for word in words:  # before anything takes time
            Statistics.labelled(word, PLATE, None, "negative")
    fabric, path, network, architecture, channels, screen, transform = open_model(cfg, "profile")
    encoder = encode.Encoder(network.encoder, channels, architecture.key)
    checks.run_once(encoder, screen)
    method = _method(cfg, encoder.network)
    statistics = Statistics.over(screen, method.eval, method.eval_by, method.controls)
    _check(statistics, encoder.network, screen)
    known = profiles.describe(screen, cfg.rows)
    bench = _Bench(fabric, path, screen, known, transform, cfg, normalize, batch_size, workers, on_bad_image)
    own, others = bench.maker(encoder, statistics), []
    with _advised():
        asked = [Statistics.labelled(word, method.eval_by, statistics.names, method.controls) for word in words]
        different = {one.label: one for one in asked if one.label != statistics.label}
        for one in different.values():
            Method("running", one.word).check_network(encoder.network)
            _check(one, encoder.network, screen)
            others.append(bench.maker(encoder, one))
    if words:
        fresh = _untrained(architecture, cfg.get("seed", 0))
        if fresh is not None:
            floor = replace(statistics, word="plate" if _has_norms(fresh) else "running")
            others.append(bench.maker(encode.Encoder(fresh, channels, architecture.key), floor, UNTRAINED))
    _pass_over(cfg.classical, ("channel", "diameter"))
    return own._replace(others=tuple(others))


def _method(cfg: Config, network: nn.Module) -> Method:
    """The statistics that the configuration asks for: calibrated, or running where the network has no norms for it."""
    method = Method("running", "calibrated", PLATE, PLATE).override(*chosen_words(cfg))
    if cfg.statistics.eval is None and not _has_norms(network):
        log.info("the network has no batch norm of plates: its profiles do not depend on other images (running)")
        method = method._replace(eval="running")
    method._replace(train="running").check_network(network)
    return method


def _check(statistics: Statistics, network: nn.Module, screen: Screen) -> None:
    """Raise an error where an encoder cannot be run under statistics, or the screen has not what they need."""
    if statistics.adapts:
        raise ConfigError(f"statistics '{statistics.word}' adapt a classifier, and profiles come from its encoder")
    statistics.passes(network)  # raises an error where it does not know its training plates
    statistics.check(screen)


@contextmanager
def _advised() -> Iterator[None]:
    """Errors inside are about words that are compared, not about the run's own."""
    try:
        yield
    except BiomassError as error:
        error.advice = "compare" if error.advice == "statistics" else error.advice
        raise


def _untrained(architecture: Architecture, seed: int) -> nn.Module | None:
    """An encoder like it, of fresh weights; None where these are the business of somebody's own code."""
    if is_own_code(architecture.key):
        log.warning("'%s' brings its weights along, so that there is no untrained encoder like it", architecture.key)
        return None
    log.info("compared with an untrained encoder: %s of random weights (seed %d)", architecture.key, seed + 1)
    return build_network(replace(architecture, head=()), seed=seed + 1).encoder


def _has_norms(network: nn.Module) -> bool:
    return any(isinstance(module, PlateBatchNorm) for module in network.modules())


def classical(cfg: Config) -> Maker:
    """By what scikit-image measures on nuclei."""
    workers, on_bad_image = cfg.dataloaders.num_workers, cfg.dataloaders.on_bad_image
    for key in ("model_path", "calibration"):
        if getattr(cfg, key) is not None:
            raise ConfigError(f"classical features take no network, and {key} names one; leave it out")
    if chosen_words(cfg)[1] is not None:
        raise ConfigError("classical features take no statistics; standardize them afterwards", "postprocess")
    if cfg.compare:
        raise ConfigError(f"classical features take no statistics, such as '{cfg.compare[0]}' to compare", "compare")
    for section in (cfg.model, cfg.transforms):
        _pass_over(section, section.to_dict())
    _pass_over(
        cfg, ("measure_again", "other_data", "seed", "device", "devices", "precision", "normalize", "encode_batch_size")
    )
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
    fabric, origin = training.make_fabric("cpu"), " ".join(settings)
    return Maker("classical", fabric, screen, known, PLATE, stream, measure.features, settings, origin)


def _pass_over(section: Config, keys: Iterable[str]) -> None:
    """Keys that mean something for other features: these need no reader."""
    for key in keys:
        section.get(key)


MAKERS: Mapping[str, Callable[[Config], Maker]] = {"encoder": encoding, "classical": classical}
"""What features may be, by the word for it."""
