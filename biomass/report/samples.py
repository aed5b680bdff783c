"""Images of a few plates as the network sees them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from biomass.errors import DataError, one_line
from biomass.report.files import read_json
from biomass.report.markup import figure, name
from biomass.report.section import Section

LEAD = "A plate whose images look unlike the others carries a batch effect that the network sees, too."
ROOM = 600_000
"""Bytes that the images may take in the page."""

_TRIES = ((1.0, 85), (1.0, 70), (1.0, 50), (0.7, 60), (0.5, 60), (0.35, 50), (0.25, 40))  # scale, quality of JPEG


def sample_images(folder: Path) -> Section | str:
    """The images that a run has kept, a picture a plate, at one grey scale a channel."""
    about = read_json(folder / "samples.json")
    if not about:
        return "no sample images: biomass profile and training runs keep them"
    try:
        with Image.open(folder / "samples.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        strips = [_stacked(pixels, about, row) for row in range(len(about["plates"]))]
        channels = [str(channel) for channel in about["channels"]]
        greys = [
            Markup("{} {} … {}").format(name(channel, 24), figure(float(low)), figure(float(high)))
            for channel, low, high in zip(channels, about["low"], about["high"], strict=True)
        ]
        shown, all_of_them = len(about["plates"]), int(about["of"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"'samples.png' is damaged ({one_line(error)}): run the command that made it again") from error
    coded = _encode(strips)
    figures = [_plate(plate, image, channels) for plate, image in zip(about["plates"], coded, strict=True)]
    how_many = f"{shown} of {all_of_them} plates" if shown < all_of_them else f"all {shown} plates"
    words = Markup(
        "<p>Images of {}, of negative controls where there are any, after the transform of the evaluation. Left to "
        "right: the channels; black and white are the same values on all plates: {}.</p>"
    ).format(how_many, Markup(", ").join(greys))
    grid = Markup('<div class="samples" style="display:flex;flex-wrap:wrap;gap:.8em">{}</div>')
    return Section("samples", "What the network sees", words + grid.format(Markup("").join(figures)), lead=LEAD)


def _stacked(pixels: np.ndarray, about: dict[str, Any], row: int) -> np.ndarray:
    """The images of one plate below each other, (n h, C w)."""
    height, width = int(about["height"]), int(about["width"]) * len(about["channels"])
    strip = pixels[row * height : (row + 1) * height]
    parts = [strip[:, i * width : (i + 1) * width] for i in range(len(about["plates"][row]["images"]))]
    if any(part.shape != (height, width) for part in parts):
        raise ValueError(f"it has no image of plate {row}")
    stacked = np.concatenate(parts)
    gap = max(1, height // 50)
    for edge in range(int(about["width"]), width, int(about["width"])):
        stacked[:, edge - gap : edge] = 255
    for edge in range(height, len(stacked), height):
        stacked[edge - gap : edge] = 255
    return stacked


def _encode(images: list[np.ndarray]) -> list[str]:
    """The images as JPEG in base64, as good as there is room for."""
    coded: list[str] = []
    for scale, quality in _TRIES:
        coded = []
        for pixels in images:
            image = Image.fromarray(pixels)
            if scale < 1:
                image = image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, optimize=True)
            coded.append(base64.b64encode(file.getvalue()).decode("ascii"))
        if sum(map(len, coded)) <= ROOM:
            break
    return coded


def _plate(plate: dict[str, Any], image: str, channels: list[str]) -> Markup:
    """One picture with the plate's name."""
    wells = ", ".join(f"{one['well']} {one['treatment']}".strip() for one in plate["images"])
    text = f"{plate['plate']}: {wells}; channels {', '.join(channels)}"[:600]
    wide = min(360, 56 * len(channels))
    return Markup(
        '<figure style="margin:0;max-width:100%;break-inside:avoid"><img alt="{}" title="{}" width="{}" '
        'style="max-width:100%;height:auto;display:block" src="data:image/jpeg;base64,{}">'
        '<figcaption style="font-size:.8em">{}</figcaption></figure>'
    ).format(text, text, wide, image, name(plate["plate"], 34))
