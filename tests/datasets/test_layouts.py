"""Names of files as instruments and collections write them, and patterns for any other."""

import pytest

from biomass.datasets.layouts import PRESETS, compile_pattern, fitting, match_names, nearest, tidy_parts

GUID = "BEDC2073-A983-4B98-95E9-84466707A25D"


def parts_of(layout: str, path: str) -> dict[str, str]:
    form = next((one for one in PRESETS if one.name == layout), None) or compile_pattern(layout)
    fits, parts = match_names(form, [path], "screen")
    return tidy_parts(form, parts)[0].astype(str).iloc[0].to_dict() if fits[0] else {}


@pytest.mark.parametrize(
    ("layout", "path", "said"),
    [
        ("imagexpress", f"Week2_24381/Week2_180607_B02_s1_w1{GUID}.tif", "Week2_24381 B02 1 w1 1"),
        ("imagexpress", f"2012-01-01/123/TimePoint_2/ZStep_3/exp_H12_s10_w5{GUID}.TIF", "123 H12 10 w5 2 3"),
        ("imagexpress", f"Week4/Week4_27481/G10_s1_w1{GUID}.tif", "Week4_27481 G10 1 w1 1"),
        ("imagexpress", "20585/IXMtest_B15_s8_w49DE56250-C587-48D8-8840-5A322A3F0177.png", "20585 B15 8 w4 1"),
        ("imagexpress", "P 1/my_screen_AA01_w2.tif", "P 1 AA01 1 w2 1"),
        ("imagexpress", "P1/x_A01_s3.tif", "P1 A01 3 w1 1"),
        ("imagexpress", f"A01_s1_w1{GUID}.tif", "screen A01 1 w1 1"),
        (
            "phenix",
            "BR00116991__2020-11-05T19_51_35-Measurement1/Images/r01c02f03p04-ch5sk1fk1fl1.tiff",
            "BR00116991 A02 3 ch5 1 4",
        ),
        ("phenix", "P1/Images/r16c24f09p12-ch11sk2fk1fl1.tiff", "P1 P24 9 ch11 2 12"),
        ("phenix", "a__b/r32c48f100p01rc1-ch1sk1fk1fl1.tiff", "a__b AF48 100 ch1 1 1"),
        (
            "cellvoyager",
            "20260812/AssayPlate_Greiner_#655090_B02_T0001F012L01A03Z05C02.tif",
            "AssayPlate_Greiner_#655090 B02 12 C02 1 5",
        ),
        ("rxrx1", "images/HEPG2-01/Plate4/AA02_s2_w6.png", "HEPG2-01 4 AA02 2 w6"),
        ("rxrx3", "gene-001/Plate9/AF48_s1_w1.png", "gene-001 9 AF48 1 w1"),
    ],
)
def test_a_preset_reads_the_names_that_there_are(layout, path, said) -> None:
    parts = parts_of(layout, path)
    order = [parts[one] for one in ("experiment", "plate", "well", "site", "channel", "time", "z") if parts.get(one)]
    assert " ".join(order) == said
    assert [one.name for one in fitting([path], "screen")] == [layout]


@pytest.mark.parametrize(
    "path",
    ["images/HEPG2-01/Plate4/B02_s1.png", "overview_A01.tif", "P1/DC_sony #B10_CAM1_C01.tif", "P1/r1c1.tif", "A01.tif"],
)
def test_a_preset_does_not_read_others(path) -> None:
    assert fitting([path], "screen") == []


@pytest.mark.parametrize(
    ("pattern", "path", "said"),
    [
        ("{plate}/{well}_s{site}_w{channel}.tif", "deep/P1/a1_s02_w3.TIF", {"plate": "P1", "well": "A01", "site": "2"}),
        ("{plate}\\{row}{column}.tif", "P1/B12.tif", {"plate": "P1", "well": "B12"}),
        ("{plate}/r{row}c{column}/*.tif", "P1/r2c3/x y.tif", {"well": "B03"}),
        ("{experiment}/**/{plate}_{well}.tif", "e/x/y/P1_A01.tif", {"experiment": "e", "plate": "P1"}),
        ("{experiment}/**/{plate}_{well}.tif", "e/P1_A01.tif", {"experiment": "e", "plate": "P1"}),
        ("{plate}/{plate}_{well}_{channel}.tif", "P1/P1_A01_DNA.tif", {"channel": "DNA"}),
        ("{plate}/{plate}_{well}_{channel}.tif", "P1/P2_A01_DNA.tif", {}),
        ("{plate}_{well}_{site:[a-d]}.tif", "my_plate_A01_c.tif", {"plate": "my_plate", "site": "c"}),
        ("{plate}_{well}_{cell:(a|b)+}.tif", "P_A01_aba.tif", {"cell": "aba"}),
        ("{plate}/{well} (1) [x=2].tif", "P1/A01 (1) [x=2].tif", {"well": "A01"}),
        ("{plate}/{well} (1) [x=2].tif", "P1/A01 1 x=2.tif", {}),
        ("{plate}/{well}_t{time}_z{z}.tif", "P1/A01_t003_z10.tif", {"time": "3", "z": "10"}),
        ("{plate}_{well}.tif", "Pl\u0061\u0308tte_A01.tif", {"plate": "Pl\u00e4tte"}),
        ("{well}.tif", "A01.tif", {"well": "A01"}),
        ("screen/{well}.tif", "A01.tif", {"well": "A01"}),
    ],
)
def test_a_pattern_reads_what_it_says(pattern, path, said) -> None:
    parts = parts_of(pattern, path)
    assert bool(parts) == bool(said)
    assert {name: parts[name] for name in said} == said


def test_plates_are_called_after_folders_where_their_files_begin_alike() -> None:
    form = next(one for one in PRESETS if one.name == "cellvoyager")
    paths = [f"{plate}/AssayPlate_B02_T0001F001L01A01Z01C01.tif" for plate in ("P1", "P2")]
    parts, notes = tidy_parts(form, match_names(form, paths, "screen")[1])
    assert parts["plate"].tolist() == ["P1", "P2"]
    assert "folders" in notes[0]


def test_the_nearest_names_come_first() -> None:
    paths = ["notes/long name of something.tif", "P1/A01-ch1.tif", "P1/A02-ch1.tif", "P1_A01_w1.png"]
    assert nearest("P1/A01_w1.tif", paths, 2) == ["P1/A01-ch1.tif", "P1_A01_w1.png"]
    assert len(nearest("P1/A01_w1.tif", paths, 4)) == 4
