"""Trainings to be measured: fields by class, and cells by their neighbours of one field; with torch alone."""

from dataclasses import dataclass

from torch import nn

from biomass.models import Architecture, build_network
from biomass.objectives import Classification, Contrastive, Objective
from biomass.transforms import (
    Compose,
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    Standardize,
)

CLASSES = 1139
"""Of RxRx1."""


@dataclass(frozen=True)
class Case:
    """A training with a plate a step.

    Attributes:
        name: fields, or cells.
        network: a function of :mod:`benchmarks.resnet`.
        size: height and width of an image.
        fields: of a plate.
        steps: of an epoch, which are its plates.
        views: cells of each field in a batch; 1 for fields themselves.
    """

    name: str
    network: str
    size: int
    fields: int
    steps: int
    views: int = 1

    def __str__(self) -> str:
        return f"{self.name} of {self.size} px, {self.network}, {self.images} images a step"

    @property
    def images(self) -> int:
        """Of a step."""
        return self.fields * self.views

    @property
    def cells(self) -> int:
        """Images that a field has in all."""
        return 1 if self.views == 1 else 2 * self.views

    @property
    def augment(self) -> Compose:
        """The published augmentation."""
        spatial = (RandomResizedCrop(self.size), GaussianBlur(25, (0.1, 0.5))) if self.views > 1 else ()
        return Compose([RandomRotate90(), RandomHorizontalFlip(), *spatial, Standardize()])

    @property
    def objective(self) -> Objective:
        """The published loss."""
        return Classification(True) if self.views == 1 else Contrastive(0.05)

    def network_of(self) -> nn.Module:
        """The network, with its head, on the host."""
        head = (CLASSES,) if self.views == 1 else (2048, 128)
        return build_network(Architecture(f"benchmarks.resnet:{self.network}", 3, head))


QUICK = (Case("fields", "tiny", 64, 4, 2), Case("cells", "tiny", 48, 4, 2, views=5))
"""To try out that something runs."""
