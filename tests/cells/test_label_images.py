"""Nuclei from label images."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from biomass.cells.label_images import read_label_images
from biomass.datasets.manifest import load_manifest
from biomass.errors import DataError


@pytest.fixture
def screen(tmp_path):
    """Two plates whose files have the same names, in folders of their own."""
    rows = []
    for plate in ("P1", "P2"):
        (tmp_path / "images" / plate).mkdir(parents=True)
        for site in (1, 2):
            name = f"images/{plate}/A01_s{site}_w1.tif"
            tifffile.imwrite(tmp_path / name, np.full((30, 40), site, np.uint16))
            rows.append(("E", plate, "A01", site, name, "x"))
    table = pd.DataFrame(rows, columns=["experiment", "plate", "well", "site", "path", "label"])
    table.to_csv(tmp_path / "screen.csv", index=False)
    return load_manifest(tmp_path / "screen.csv", image="path", channels=["DNA"])


def labels(*places, shape=(30, 40), dtype=np.int32):
    image = np.zeros(shape, dtype)
    for number, (y, x) in enumerate(places, 3):
        image[y : y + 4, x : x + 6] = number
    return image


NAMES = [
    ("P1/A01_s1_w1_cp_masks.tif", "P1/A01_s2_w1_cp_masks.tif", "P2/A01_s1_w1_cp_masks.tif"),
    ("P1/A01_s1_w1.npy", "P1/A01_s2_w1.npy", "P2/A01_s1_w1.npy"),
    ("P1_A01_1_masks.png", "P1_A01_2_masks.png", "P2_A01_1_masks.png"),
    ("P1/A01-1.tif", "P1/A01-2.tif", "P2/A01-1.tif"),
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("workers", [1, 2])
def test_label_images_belong_to_the_fields_whose_names_they_have(tmp_path, screen, names, workers):
    images = (labels((2, 3), (20, 30)), labels(), labels((10, 10)))
    for name, image in zip(names, images, strict=True):
        file = tmp_path / "labels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("npy"):
            np.save(file, image)
        elif name.endswith("png"):
            Image.fromarray(image.astype(np.uint16)).save(file)
        else:
            tifffile.imwrite(file, image)
    fields, nuclei = read_label_images(tmp_path / "labels", screen, workers)
    places = [tuple(row) for row in fields[["plate", "site"]].to_numpy()]
    assert sorted(places) == [("P1", "1"), ("P1", "2"), ("P2", "1")]
    found = nuclei.assign(place=[places[field] for field in nuclei["field"]]).sort_values(["place", "y"])
    assert found["place"].tolist() == [("P1", "1"), ("P1", "1"), ("P2", "1")]
    np.testing.assert_allclose(found[["y", "x", "area"]], [[3.5, 5.5, 24], [21.5, 32.5, 24], [11.5, 12.5, 24]])
    assert found["nucleus"].tolist() == [3, 4, 3]
    assert found["nuclei_file"].astype(str).tolist() == [names[0], names[0], names[2]]


def one_image(tmp_path, image, name="P1_A01_1_masks.npy"):
    (tmp_path / "labels").mkdir(exist_ok=True)
    np.save(tmp_path / "labels" / name, image)
    return tmp_path / "labels"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (labels((2, 3), shape=(15, 20)), "15 x 20, its field 30 x 40: .*binned"),
        (np.zeros((30, 40, 3), np.uint8), "30 x 40 x 3 uint8, expected one plane"),
        (labels((2, 3)).astype(np.float32), "float32"),
        ((labels((2, 3), (20, 30)) > 0).astype(np.uint8), "it is a mask"),
    ],
)
def test_what_is_no_label_image_is_refused(tmp_path, screen, image, message):
    with pytest.raises(DataError, match=message) as caught:
        read_label_images(one_image(tmp_path, image), screen)
    assert "\n" not in str(caught.value)


def test_what_cellpose_keeps_for_itself_is_not_read(tmp_path, screen):
    folder = one_image(tmp_path, np.array({"masks": 1}, dtype=object), "A01_s1_w1_seg.npy")
    for path in (folder, folder / "A01_s1_w1_seg.npy"):
        with pytest.raises(DataError, match=r"_seg\.npy' is no label image.*--save_tif") as caught:
            read_label_images(path, screen)
        assert "\n" not in str(caught.value)
    np.save(folder / "P1_A01_1_cp_masks.npy", labels((2, 3)))
    assert len(read_label_images(folder, screen)[1]) == 1  # those beside it are


def test_label_images_of_other_names(tmp_path, screen, caplog):
    folder = one_image(tmp_path, labels((2, 3)), "A01_s1_w1_masks.npy")  # P1 or P2?
    with pytest.raises(DataError, match=r"1 of 1 label images .*'A01_s1_w1_masks\.npy'"):
        read_label_images(folder, screen)
    for name in ("P1_A01_1_masks.npy", "P1_A01_2_masks.npy"):
        np.save(folder / name, labels((2, 3)))
    assert len(read_label_images(folder, screen)[0]) == 2
    assert "1 of 3 label images" in caplog.text
    np.save(folder / "P1_A01-2_masks.npy", labels((2, 3)))
    with pytest.raises(DataError, match="label images of the same field"):
        read_label_images(folder, screen)
