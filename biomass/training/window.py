"""The steps between two lines of the log."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from biomass.errors import TrainingError
from biomass.loader import Batch
from biomass.training.checkpoint import Checkpoints
from biomass.training.numbers import kept
from biomass.training.together import Together


class Window:
    """Collects the loss and the scalars of some steps on the device, and waits for the device once to read them.

    Args:
        names: of the groups.
        image: the name of a row's image.
        steps, losses, scalars, before: what another one held, see :meth:`state`.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        image: Callable[[int], str],
        steps: Sequence[tuple[int, Tensor, Tensor]] = (),
        losses: Sequence[Tensor] = (),
        scalars: Sequence[dict[str, Tensor]] = (),
        before: float = math.nan,
    ) -> None:
        self.names = names
        self.image = image
        self.before = before
        self.last = ""
        self.steps = list(steps)
        self.losses = list(losses)
        self.scalars = list(scalars)

    def state(self, epoch: int, checkpoints: Checkpoints, together: Together) -> dict[str, Any]:
        """What those of all processes hold, for a checkpoint.

        Raises:
            TrainingError: as :meth:`flush`.
        """
        losses, scalars = self._of_all(epoch, checkpoints, together)
        steps = [step for steps in together.gather(self.steps) for step in steps]
        return {"steps": steps, "losses": losses, "scalars": scalars, "before": self.before}

    def to(self, device: torch.device) -> None:
        """Go on on a device, if it was read from a checkpoint."""
        self.losses = [loss.to(device) for loss in self.losses]
        self.scalars = [{name: value.to(device) for name, value in one.items()} for one in self.scalars]

    def add(self, step: int, batch: Batch, loss: Tensor, scalars: dict[str, Tensor]) -> None:
        """Remember a step's results without looking at them."""
        self.steps.append((step, batch.groups, batch.rows))
        self.losses.append(loss.detach())
        self.scalars.append(scalars)

    def flush(self, epoch: int, checkpoints: Checkpoints, together: Together) -> dict[str, float]:
        """Means over the steps of all processes since the last flush, named ``train/<name>``; empty where none were.

        Raises:
            TrainingError: a loss is not finite; names the first such step, its plates and its images.
        """
        losses, scalars = self._of_all(epoch, checkpoints, together)
        if self.losses:
            self.before, self.last = float(self.losses[-1]), self._described(-1)
        self.steps, self.losses, self.scalars = [], [], []
        if not losses:
            return {}
        means = {"train/loss": float(torch.stack(losses).float().cpu().mean())}
        for name in scalars[0]:
            means[f"train/{name}"] = float(torch.stack([s[name] for s in scalars]).float().mean())
        return means

    def _of_all(
        self, epoch: int, checkpoints: Checkpoints, together: Together
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Losses and scalars of all processes; on the host, where there are several."""
        wrong = self._wrong(epoch, checkpoints)
        if not together.several:
            parts = [(self.losses, self.scalars, wrong)]
        else:
            scalars = [{name: value.cpu() for name, value in one.items()} for one in self.scalars]
            parts = [*together.gather(([loss.cpu() for loss in self.losses], scalars, wrong))]
        for _, _, wrong in parts:
            if wrong is not None:
                raise TrainingError(wrong)
        return [loss for part in parts for loss in part[0]], [one for part in parts for one in part[1]]

    def _wrong(self, epoch: int, checkpoints: Checkpoints) -> str | None:
        """What is wrong with the first loss that is not finite."""
        losses = torch.stack(self.losses).float().cpu() if self.losses else torch.zeros(0)
        if losses.isfinite().all():
            return None
        first = int((~losses.isfinite()).nonzero()[0])
        before = losses[first - 1].item() if first else self.before
        grown = "" if before != before else f" (the step before had {before:.4g})"
        return (
            f"loss is {losses[first].item()} at step {self.steps[first][0]} of epoch {epoch + 1}{grown}, "
            f"{self._described(first)}: lower the learning rate, or look at these images ({kept(checkpoints.last)})"
        )

    def _described(self, place: int) -> str:
        """The plates and images of one of the steps."""
        _, groups, of_step = self.steps[place]
        plates, rows = groups.unique().tolist(), of_step.unique().tolist()
        shown = ", ".join(self.names[p] if self.names else str(p) for p in plates[:3]) + " …" * (len(plates) > 3)
        images = ", ".join(f"'{self.image(row)}'" for row in rows[:2]) + " …" * (len(rows) > 2)
        return f"plate {shown}, images {images}"
