"""The post-processing of wells that a user asks for: read from the configuration, looked at, and fitted."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.config import Config
from biomass.errors import ConfigError, DataError
from biomass.evaluation import postprocess, profiles
from biomass.evaluation.tables import METADATA
from biomass.identifiers import find
from biomass.screen import KINDS, control_numbers

POSTPROCESS = "postprocess.npz"
"""The post-processing of a run, fitted, in its folder."""

log = logging.getLogger(__name__)


class Correcting(NamedTuple):
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
    def asked(cls, cfg: Config, known: profiles.Description, origin: str) -> "Correcting":
        """What the configuration says, after a look at the wells that there will be."""
        asked = cfg.postprocess
        how, fit_on, loaded = asked.how, asked.fit_on, None
        postprocess.check_how(how)
        controls, by, epsilon = asked.controls, asked.by, asked.epsilon
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
            how, controls, by = loaded.how, loaded.controls, None if loaded.by is None else list(loaded.by)
        control_numbers(controls)
        wells = known.well_table()
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
