"""Images of a few plates as a network sees them, kept beside a run for its page."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from biomass.atomic import whole_file
from biomass.errors import BadImageError
from biomass.inference import Transform
from biomass.screen import Screen

PICTURE, ABOUT = "samples.png", "samples.json"
SIDE = 112
"""Longest side of a picture, in pixels; larger images are averaged down."""

_SHOWN, _LOOKED_AT = 2, 8  # images of a plate
_SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)
_GREYS = (0.01, 0.995)  # shares of all pixels of a channel that are black, and not white

log = logging.getLogger(__name__)


def save_samples(
    folder: Path,
    screen: Screen,
    transform: Transform,
    plates: int = 24,
    seed: int = 0,
    *,
    channels: Sequence[str] | None = None,
) -> None:
    """Write ``samples.png`` and ``samples.json``: plates after the transform, at one grey scale a channel.

    Of each plate a few images are read, of negative controls where it has any, since these should look alike
    everywhere. Shown are those that are nearest to the median of what was read, in the shares of dark and bright pixels
    of all channels. The picture has a row a plate, and in it image by image all channels. Nothing is written for a
    screen of vectors, or where no image can be read.

    Args:
        folder: of the run.
        screen: whose images are shown.
        transform: of the evaluation, (N, C, H, W) → (N, K, H, W), without randomness.
        plates: how many are shown, spread over all of them in the order of their names.
        seed: of the images that are read.
        channels: names of the K channels behind the transform; None: those of the screen, or their numbers.
    """
    shown = np.unique(screen.plate_ids)
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, min(plates, len(shown))).round().astype(int))]
    rng = np.random.default_rng(seed)
    found: dict[int, tuple[Tensor, np.ndarray, bool]] = {}
    for plate in shown:
        one = _typical(screen, int(plate), transform, rng)
        if one is not None:
            found[int(plate)] = one
    if not found:
        log.info("no image of this screen can be shown as the network sees it")
        return
    count = next(iter(found.values()))[0].shape[1]
    names = list(channels or screen.pixels.channels)
    if len(names) != count:
        names = [f"channel {i + 1}" for i in range(count)]
    pixels = torch.cat([images.transpose(0, 1).flatten(1) for images, _, _ in found.values()], 1).numpy()
    low, high = np.quantile(pixels, _GREYS, axis=1)
    high = np.maximum(high, low + 1e-6)
    rows = [_strip(images, low, high) for images, _, _ in found.values()]
    height, width = next(iter(found.values()))[0].shape[2:]
    about = {
        "channels": names,
        "low": low.tolist(),
        "high": high.tolist(),
        "height": height,
        "width": width,
        "images": _SHOWN,
        "of": len(np.unique(screen.plate_ids)),
        "plates": [_about(screen, plate, chosen, controls) for plate, (_, chosen, controls) in found.items()],
    }
    with whole_file(folder / PICTURE) as part:
        Image.fromarray(np.concatenate(rows)).save(part, format="PNG", optimize=True)
    with whole_file(folder / ABOUT) as part:
        part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _typical(
    screen: Screen, plate: int, transform: Transform, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray, bool] | None:
    """Images (n, K, h, w) of a plate, their rows (n,), and if they are controls; None where nothing can be read."""
    rows = np.flatnonzero(screen.plate_ids == plate)
    controls = rows[screen.negative_controls[rows]]
    drawn = np.sort(rng.permutation(controls if len(controls) else rows)[:_LOOKED_AT])
    read = []
    for row in drawn:
        try:
            read.append((row, screen.read(np.array([row]))))
        except BadImageError:
            continue
    if not read or read[0][1].ndim != 4:  # vectors
        return None
    raw = np.concatenate([image for _, image in read])
    with torch.inference_mode():
        images = transform(torch.from_numpy(raw.astype(np.float32))).float().clone()
    part = SIDE / max(images.shape[2:])
    if part < 1:
        images = F.interpolate(images, [max(1, round(part * side)) for side in images.shape[2:]], mode="area")
    spread = torch.quantile(images.flatten(2), torch.tensor(_SHARES), dim=2)  # (shares, N, K)
    distance = (spread - spread.median(1, keepdim=True).values).abs().sum((0, 2))
    best = distance.argsort(stable=True)[:_SHOWN].sort().values
    return images[best], np.array([row for row, _ in read])[best.numpy()], bool(len(controls))


def _strip(images: Tensor, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Images (n, K, h, w) beside each other, channel by channel: (h, _SHOWN * K * w) uint8, white where one lacks."""
    ends = [torch.from_numpy(end).float()[:, None, None] for end in (low, high)]
    grey = ((images - ends[0]) / (ends[1] - ends[0])).clamp(0, 1).mul(255).round().byte().numpy()
    count, channels, height, width = grey.shape
    strip = np.full((height, _SHOWN * channels * width), 255, np.uint8)
    strip[:, : count * channels * width] = grey.transpose(2, 0, 1, 3).reshape(height, -1)
    return strip


def _about(screen: Screen, plate: int, rows: np.ndarray, controls: bool) -> dict[str, Any]:
    """What the images of a plate are."""
    table = screen.table.iloc[rows]
    given = np.array([*screen.classes, ""], dtype=object)[table["label"].to_numpy()]
    if "compound" in table:
        compound = table["compound"].astype(str)
        given = np.where(compound == "", given, compound)
    wells = table["well"].astype(str)
    return {
        "plate": screen.plate_names[plate],
        "controls": controls,
        "images": [{"well": well, "treatment": str(one)} for well, one in zip(wells, given, strict=True)],
    }
