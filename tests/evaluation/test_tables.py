"""Aggregation, normalization and choice of features; the whole published recipe on the real BBBC021 wells."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError, DataError
from biomass.evaluation import (
    aggregate,
    feature_columns,
    normalize,
    nsc,
    nscb,
    prune_correlated,
    replicate_correlation,
)

TREATMENT = ["Metadata_compound", "Metadata_concentration"]


def wells(seed=0, plates=4, treatments=5, controls=3, d=4):
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(plates):
        rows += [(f"p{p}", f"w{p // 2}", "DMSO", 0.0, True)] * controls
        rows += [(f"p{p}", f"w{p // 2}", f"c{t // 2}", float(t % 2), False) for t in range(treatments)]
    names = ["plate", "batch", "compound", "concentration", "control"]
    table = pd.DataFrame(rows, columns=[f"Metadata_{n}" for n in names])
    features = pd.DataFrame(rng.normal(size=(len(rows), d)) * 3 + 7, columns=[f"f{i}" for i in range(d)])
    return pd.concat([table, features], axis=1).sample(frac=1, random_state=seed)


@pytest.mark.parametrize("how", ["mean", "median"])
def test_aggregate_agrees_with_a_loop(how):
    table = wells()
    out = aggregate(table, TREATMENT, how, keep=["Metadata_control"], collect=["Metadata_batch"])
    assert list(out.columns) == [*TREATMENT, "Metadata_control", "Metadata_batch", "f0", "f1", "f2", "f3"]
    keys = sorted({tuple(k) for k in table[TREATMENT].to_numpy().tolist()})
    assert [tuple(k) for k in out[TREATMENT].to_numpy().tolist()] == keys
    for i, (compound, concentration) in enumerate(keys):
        part = table[(table["Metadata_compound"] == compound) & (table["Metadata_concentration"] == concentration)]
        for f in feature_columns(table):
            assert out.loc[i, f] == pytest.approx(getattr(np, how)(part[f].to_numpy()))
        assert out.loc[i, "Metadata_control"] == (compound == "DMSO")
        assert out.loc[i, "Metadata_batch"] == ("w0", "w1")


def test_aggregate_of_categories_and_bytes():
    table = pd.DataFrame({"Metadata_well": [b"A1", b"B1", b"A1"], "f": [1, 2, 5]})
    table["Metadata_kind"] = pd.Categorical(["x", "y", "x"], categories=["z", "y", "x"])
    assert aggregate(table, "Metadata_well")["f"].tolist() == [3, 2]
    by_kind = aggregate(table, "Metadata_kind", collect=["Metadata_well"])
    assert by_kind["Metadata_kind"].tolist() == ["y", "x"]
    assert by_kind["Metadata_well"].tolist() == [("B01",), ("A01",)]


def test_aggregate_names_bad_input():
    table = wells()
    with pytest.raises(DataError, match=r"column 'Metadata_plate' says both 'p\d' and 'p\d' for c0/0"):
        aggregate(table[~table["Metadata_control"]], TREATMENT, keep=["Metadata_plate"])
    with pytest.raises(ConfigError, match="no column 'Metadata_site'"):
        aggregate(table, "Metadata_site")
    with pytest.raises(ConfigError, match="how='max'"):
        aggregate(table, TREATMENT, "max")
    table.loc[7, "Metadata_compound"] = None
    with pytest.raises(DataError, match="row 7 has nothing in column 'Metadata_compound'"):
        aggregate(table, TREATMENT)
    table = wells()
    table.loc[9, "f2"] = np.nan
    with pytest.raises(DataError, match="row 9 has nan in feature 'f2'"):
        aggregate(table, TREATMENT)


def test_groups_are_the_same_whatever_their_names_are_written_as():
    table = wells()
    plates = table["Metadata_plate"].str.lstrip("p").astype(int)
    expected = aggregate(table.assign(Metadata_plate=plates), "Metadata_plate")
    for written in (
        plates.astype(float),
        plates.astype(str),
        plates.astype(float).astype(str),
        plates.astype(str) + np.where(np.arange(len(table)) % 2, " ", ""),
        plates.astype("category"),
        plates.astype("Int64"),
        plates.astype(str).str.encode("ascii"),
    ):
        out = aggregate(table.assign(Metadata_plate=written), "Metadata_plate")
        assert out["Metadata_plate"].astype(str).tolist() in (["0", "1", "2", "3"], ["0.0", "1.0", "2.0", "3.0"])
        pd.testing.assert_frame_equal(out.drop(columns="Metadata_plate"), expected.drop(columns="Metadata_plate"))
    with pytest.raises(DataError, match=r"Metadata_plate is written '[pP]0' in row \d+ and '[pP]0' in row \d+"):
        aggregate(table.replace({"Metadata_plate": {"p1": "P0"}}), "Metadata_plate")
    for missing in ("NA", " ", None, float("nan"), pd.NA):
        unnamed = table.copy()
        unnamed.loc[5, "Metadata_plate"] = missing
        with pytest.raises(DataError, match="row 5 has nothing in column 'Metadata_plate'"):
            aggregate(unnamed, "Metadata_plate")
    for missing, kept in (("NA", ""), ("", ""), (None, None)):
        out = aggregate(table.assign(Metadata_moa=missing), TREATMENT, keep=["Metadata_moa"])
        assert set(out["Metadata_moa"]) == {kept}
    mixed = table.assign(Metadata_moa=np.where(np.arange(len(table)) % 2, "NA", None))
    assert set(aggregate(mixed, TREATMENT, keep=["Metadata_moa"])["Metadata_moa"]) <= {"", None}
    assert set(aggregate(mixed, TREATMENT, collect=["Metadata_moa"])["Metadata_moa"]) == {()}


NOT_FEATURES = (
    *("ImageNumber", "ObjectNumber", "TableNumber", "Nuclei_Number_Object_Number", "Cells_Parent_Nuclei"),
    *("Image_Metadata_Plate", "Cells_Metadata_Well", "Cells_Neighbors_FirstClosestObjectNumber_10"),
    *("Nuclei_Location_Center_X", "Cells_Location_CenterMassIntensity_Y_DNA", "Cells_Location_MaxIntensity_X_ER"),
    *("Nuclei_AreaShape_Center_Y", "Nuclei_AreaShape_BoundingBoxMaximum_X", "x", "Y"),
    *("Image_FileName_DNA", "Image_PathName_DNA", "PathName_DNA", "Image_URL_DNA", "Image_MD5Digest_DNA"),
    *("Image_ExecutionTime_01Load", "Image_Group_Index", "Unnamed: 0"),
    *("plate", "Plate", "well", "Well", "site", "batch", "concentration", "plate_id"),
    *("ImageID", "ObjectID", "cell_number", "CellNumber", "image_id", "well_id", "WellID", "Well_Row", "row_index"),
    *("site_id", "FieldID", "plate_number", "barcode", "Plate_Barcode", "timepoint", "TimePoint", "Position X [µm]"),
    *("centroid-0", "centroid_weighted-1", "Centroid_X", "bbox-0", "bbox_x1", "Center_X", "Cells_Center_X", "pos_x"),
    *("PositionX", "Location_X", "X_um", "Group_Index", "Image_Set_Number", "TrackObjects_Label", "id", "ID"),
    *("Cells_TrackObjects_Label_40", "Metadata", "Metadata.Plate", "Metadata-Well", "class", "target", "fold"),
    *("Row", "Column", "Plane", "Field", "Object No", "Bounding Box", "Nuclei Selected - Object No in Nuclei"),
    *("Cells_Neighbors_SecondClosestObjectNumber_Adjacent", "label", "coords", "wellid", "Dose_uM"),
)
MEASURED = (
    *("Nuclei_AreaShape_Area", "Cells_AreaShape_Zernike_0_0", "Nuclei_AreaShape_Compactness", "area", "emb_0001", "f1"),
    *("Nuclei_Intensity_MeanIntensity_DNA", "Cells_Correlation_K_DNA_ER", "Cells_Texture_Contrast_ER_3_00"),
    *("Nuclei_Neighbors_NumberOfNeighbors_10", "Nuclei_Children_Cells_Count", "Image_Count_Nuclei"),
    *("emb_0000", "eccentricity", "mean_intensity", "area_bbox", "equivalent_diameter_area", "inertia_tensor-0-0"),
    *("moments_hu-0", "moments_central-0-1", "axis_major_length", "feret_diameter_max", "num_pixels", "orientation"),
    *("Nuclei - Nucleus Area [µm²]", "Nuclei - Number of Objects", "Cell Count", "Nuclei - Symmetry 02 SER"),
    *("Nuclei - Intensity Nucleus HOECHST 33342 Mean", "x1", "Cells_Intensity_MassDisplacement_DNA"),
    *("Cells_AreaShape_CentralMoment_0_1", "Cells_RadialDistribution_FracAtD_DNA_1of4", "mitotic_index", "größe"),
    *("Nuclei_Texture_DifferenceVariance_RNA_5_00_256", "Cells_Granularity_1_DNA", "positional_variance"),
)


def test_what_plainly_is_not_a_feature_is_left_out_and_named(caplog):
    columns = [*NOT_FEATURES, *MEASURED, "Metadata_plate"]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, len(columns))), columns=columns)
    assert tuple(feature_columns(table)) == MEASURED
    control = np.arange(9) < 4
    out = normalize(table.assign(Metadata_plate="p"), control, "Metadata_plate")
    pd.testing.assert_frame_equal(out[list(NOT_FEATURES)], table[list(NOT_FEATURES)])
    np.testing.assert_allclose(out.loc[control, list(MEASURED)].std(ddof=1), 1)
    assert f"{len(NOT_FEATURES)} columns are not taken as features: {', '.join(NOT_FEATURES)}" in caplog.text
    caplog.clear()
    prune_correlated(table)
    assert not caplog.text  # said once
    with pytest.raises(DataError, match="no features: x, y"):
        prune_correlated(pd.DataFrame({"x": [1.0, 2], "y": [1.0, 2]}))


def test_normalize_agrees_with_a_loop():
    table = wells()
    out = normalize(table, "Metadata_control", "Metadata_plate")
    assert list(out.columns) == list(table.columns)
    assert out.index.equals(table.index)
    assert out.filter(like="Metadata_").equals(table.filter(like="Metadata_"))
    for plate in table["Metadata_plate"].unique():
        here = (table["Metadata_plate"] == plate).to_numpy()
        reference = table[here & table["Metadata_control"].to_numpy()]
        for f in feature_columns(table):
            expected = (table.loc[here, f] - np.mean(reference[f])) / np.std(reference[f], ddof=1)
            np.testing.assert_allclose(out.loc[here, f], expected, atol=1e-10)


def test_normalize_agrees_with_pycytominer_up_to_the_divisor():
    import pycytominer

    table = wells(plates=1, controls=6).reset_index(drop=True)
    names = feature_columns(table)
    theirs = pycytominer.normalize(
        table, names, meta_features=["Metadata_plate"], samples="Metadata_control == True", method="standardize"
    )
    ours = normalize(table, "Metadata_control", "Metadata_plate")
    np.testing.assert_allclose(ours[names] * np.sqrt(6 / 5), theirs[names], atol=1e-9)


def test_normalize_is_safe_for_features_that_are_constant_in_controls():
    table = wells(controls=7)
    control = table["Metadata_control"].to_numpy()
    for constant in (0.0, 0.1, 1e6 / 3, np.where(np.arange(len(table)) % 2, 0.1, np.nextafter(0.1, 1))):
        part = table.assign(f0=np.where(control, constant, table["f0"]))
        out = normalize(part, control, ["Metadata_batch", "Metadata_plate"])
        np.testing.assert_allclose(out["f0"][control], 0, atol=1e-6)
        np.testing.assert_allclose(out["f0"][~control], table["f0"][~control] - np.max(constant), atol=1e-6)


def test_a_plate_without_controls_is_named():
    table = wells()
    keep = ~((table["Metadata_plate"] == "p2") & table["Metadata_control"])
    with pytest.raises(DataError, match="plate 'p2' has 0 control rows"):
        normalize(table[keep], "Metadata_control", "Metadata_plate")
    with pytest.raises(DataError, match="plate 'w1/p2' has 0 control rows"):
        normalize(table[keep], "Metadata_control", ["Metadata_batch", "Metadata_plate"])


def test_replicate_correlation_agrees_with_a_loop():
    table = wells(plates=3, treatments=6)
    table["f1"] = 0.1
    got = replicate_correlation(table, TREATMENT, replicates=3)
    treated = table[table["Metadata_compound"] != "DMSO"]
    replicate = {f: [[], [], []] for f in feature_columns(table)}
    for _, part in treated.groupby(TREATMENT):
        for f, lists in replicate.items():
            for k in range(3):
                lists[k].append(part[f].iloc[k])
    for f, (a, b, c) in replicate.items():
        if f != "f1":
            expected = np.median([np.corrcoef(a, b)[0, 1], np.corrcoef(a, c)[0, 1], np.corrcoef(b, c)[0, 1]])
            assert got[f] == pytest.approx(expected)
    assert got["f1"] == 0
    with pytest.raises(DataError, match="0 of 7 treatments have exactly 4 rows"):
        replicate_correlation(table, TREATMENT, replicates=4)


def test_prune_correlated_leaves_no_correlated_pair_and_drops_the_busier_one():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 3))
    x = np.repeat(base, 4, axis=1) + 0.1 * rng.normal(size=(200, 12)) * np.tile([1, 2, 3, 4], 3)
    table = pd.DataFrame(x, columns=[f"f{i}" for i in range(12)])
    table["minus"], table["twin"], table["flat"] = -table["f3"], table["f0"], 0.1
    table["Metadata_x"] = "text"
    kept = prune_correlated(table, 0.9)
    left = np.abs(table[[k for k in kept if k != "flat"]].corr().to_numpy())
    assert np.triu(left, 1).max() <= 0.9
    assert "flat" in kept
    burden = table.drop(columns=["Metadata_x", "flat"]).corr().abs()
    mean = burden.sum()
    expected = set(burden.columns)
    for i, a in enumerate(burden.columns):
        for b in burden.columns[i + 1 :]:
            if burden.loc[a, b] > 0.9:
                expected.discard(a if mean[a] > mean[b] + 1e-9 else b)
    assert set(kept) - {"flat"} == expected
    assert prune_correlated(table.sample(frac=1, random_state=1), 0.9) == kept
    wide = pd.DataFrame(rng.normal(size=(50, 40))).add_prefix("f")
    twins = pd.concat([wide, (3 * wide).add_prefix("twin_")], axis=1)
    assert prune_correlated(twins) == list(wide.columns)  # of equals the first, whatever the rounding
    with pytest.raises(ConfigError, match=r"threshold=1\.5"):
        prune_correlated(table, 1.5)


def test_the_published_recipe_from_the_wells_up(real_data):
    folder = real_data / "bbbc021_profiles"
    names = {
        "Image_Metadata_Plate_DAPI": "Metadata_plate",
        "Image_Metadata_Well_DAPI": "Metadata_well",
        "Image_Metadata_Compound": "Metadata_compound",
        "Image_Metadata_Concentration": "Metadata_concentration",
    }
    images = pd.read_csv(folder / "BBBC021_v1_image.csv.gz", usecols=list(names)).rename(columns=names)
    moas = pd.read_csv(folder / "BBBC021_v1_moa.csv").add_prefix("Metadata_")
    layout = images.drop_duplicates(["Metadata_plate", "Metadata_well"])
    table = pd.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")
    table = table.rename(columns={"Image_Metadata_Plate": "Metadata_plate", "Image_Metadata_Well": "Metadata_well"})
    table = table.merge(layout, on=["Metadata_plate", "Metadata_well"], validate="one_to_one")
    table = table.merge(moas, on=TREATMENT, validate="many_to_one")
    table = pd.concat([table, table["Metadata_plate"].str.split("_").str[0].rename("Metadata_batch")], axis=1)
    control = table["Metadata_compound"] == "DMSO"
    assert (len(table), control.sum()) == (632, 330)
    metadata = [c for c in table if c.startswith("Metadata_")]

    reproducible = replicate_correlation(table, TREATMENT, replicates=3)
    table = table[metadata + list(reproducible.index[reproducible >= 0.5])]
    table = table[metadata + prune_correlated(table, 0.95)]
    table = normalize(table, control, "Metadata_plate")
    profiles = aggregate(table[~control], TREATMENT, keep=["Metadata_moa"], collect=["Metadata_batch"])

    published = pd.read_csv(folder / "treatment_profiles.csv.gz").sort_values(["compound", "concentration"])
    assert profiles["Metadata_compound"].tolist() == published["compound"].tolist()
    ours = profiles[feature_columns(profiles)].to_numpy()
    theirs = published.drop(columns=["compound", "concentration", "moa", "batch"]).to_numpy()
    assert ours.shape == theirs.shape == (103, 177)
    # up to which of two identical features was kept, every feature is the published one
    nearest = np.abs(ours[:, :, None] - theirs[:, None, :]).max(0).min(0)
    assert nearest.max() < 1e-6

    matrix = nsc(profiles, "Metadata_compound", "Metadata_moa", "correlation").confusion_matrix()
    expected = pd.read_csv(folder / "published_confusion_matrix.csv", index_col=0)
    assert list(matrix.columns) == list(expected.columns)
    np.testing.assert_array_equal(matrix, expected)
    assert nscb(profiles, "Metadata_compound", "Metadata_moa", "Metadata_batch").scorable.sum() == 92
