"""``biomass preflight``: a page and a file from a plate map alone."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from biomass.commands.preflight import main
from biomass.datasets.packed import load_packed
from biomass.simulation import bbbc021, rxrx1

TINY = rxrx1.Design(experiments=4, plates=2, treatments=6, positive_controls=2, wells=12, negative_wells=4)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(table: pd.DataFrame, name: str = "map.csv") -> str:
    table.to_csv(name, index=False)
    return name


def plain_map(plates: int = 6) -> pd.DataFrame:
    rows = [(f"P{p}", f"A{i + 1}", "DMSO" if i < 4 else f"c{i}") for p in range(plates) for i in range(12)]
    return pd.DataFrame(rows, columns=["plate", "well", "compound"])


def summary(folder: str = "out") -> dict:
    return json.loads((Path(folder) / "preflight.json").read_text())


def fails(*words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    message = str(caught.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_file_says_what_the_page_says(capsys) -> None:
    main([write(plain_map()), "--out", "out"])
    page, said = capsys.readouterr().out, summary()
    assert {"verdict", "statistics", "reasons", "override", "design", "confounding"} <= said.keys()
    assert set(said["statistics"]) == {"running", "plate", "shrunk", "controls", "balanced"}
    for word, ways in said["statistics"].items():
        for way in ways:
            assert way["state"] in ("base", "safe", "risky", "fails", "unknown")
            if way["accuracy"] is not None and word != "running":
                assert way["low"] < way["accuracy"] < way["high"]
                assert f"{way['accuracy']:.2f} ({way['low']:.2f} … {way['high']:.2f})" in page
    assert said["override"] in page
    assert said["training"] in page
    assert said["verdict"]["statistics"] in said["override"]
    joined = " ".join(page.split())
    assert all(reason in joined for reason in said["reasons"])
    assert "treatment is 'compound'" in joined
    assert not re.search(r"(?<!\w)nan(?!\w)", page.lower())


def test_a_terminal_without_greek_letters_gets_a_page_too(monkeypatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    main([write(plain_map()), "--out", "out"])
    terminal.seek(0)
    assert "VERDICT" in terminal.read()


def test_it_writes_below_runs_if_nothing_is_said(capsys) -> None:
    main([write(plain_map()), "--run-name", "mine"])
    assert summary("runs/mine")["design"][0]["groups"] == 6
    main([write(plain_map())])
    assert len(list(Path("runs").glob("preflight-*/preflight.json"))) == 1


def test_nothing_is_written_where_the_place_cannot_be(capsys) -> None:
    Path("file").write_text("in the way")
    assert "file" in fails(write(plain_map()), "--out", "file")
    assert sorted(p.name for p in Path().iterdir()) == ["file", "map.csv"]


# --- designs ----------------------------------------------------------------------------------------------------------


def test_the_metadata_of_rxrx1(capsys) -> None:
    main([write(rxrx1._metadata(TINY, rxrx1.lay_out(TINY))), "--out", "out"])
    plates, experiments = summary()["design"]
    assert (plates["groups"], experiments["groups"]) == (8, 4)
    assert plates["median"] | {"treated": 12, "negative": 4, "positive": 2, "wells": 18} == plates["median"]
    assert "8 plates of 384 wells, 6 treatments" in capsys.readouterr().out


def test_the_fields_of_a_simulated_bbbc021(capsys) -> None:
    main([write(bbbc021.lay_out(bbbc021.Design())), "--out", "out"])
    plates, weeks = summary()["design"]
    assert plates["groups"] == 18
    assert (weeks["by"], weeks["groups"]) == (["experiment"], 6)
    assert plates["median"]["negative"] == 6
    assert plates["median"]["positive"] >= 2  # taxol, which is on all plates
    assert "which nearly all plates hold" in " ".join(capsys.readouterr().out.split())


def test_the_crops_of_bbbc021(real_data, capsys) -> None:
    main([str(real_data / "bbbc021_cells" / "manifest.csv"), "--out", "out"])
    said = summary()
    assert said["statistics"]["plate"][0]["state"] == "fails"
    assert said["statistics"]["plate"][0]["accuracy"] < 1
    assert said["override"] == "statistics.eval=running"  # two splits were measured, and disagree on all others
    assert said["try"]["by"] == ["experiment"]
    assert "statistics.eval=balanced statistics.by=[experiment] statistics.controls=all" in capsys.readouterr().out
    assert "'taxol 0.3'" in said["columns"]["control"]


def test_one_treatment_a_plate(capsys) -> None:
    table = plain_map(8)
    table["compound"] = np.where(table["compound"] == "DMSO", "DMSO", "c" + table["plate"])
    main([write(table), "--out", "out"])
    said = summary()
    assert said["statistics"]["plate"][0]["state"] == "fails"
    assert said["confounding"]["plate"]["group"] == 1


def test_a_single_plate_says_what_it_cannot_tell(capsys) -> None:
    main([write(plain_map(1)), "--out", "out"])
    assert "with one plate" in capsys.readouterr().out
    assert summary()["design"][0]["shift"]["correlation"] == 0


def test_a_table_without_wells_is_judged_by_its_rows(capsys) -> None:
    main([write(plain_map().drop(columns="well")), "--out", "out"])
    assert summary()["design"][0]["median"]["wells"] == 12
    assert "  A  " not in capsys.readouterr().out


# --- options ----------------------------------------------------------------------------------------------------------


def test_columns_controls_and_groups_are_named(capsys) -> None:
    table = plain_map().rename(columns={"plate": "dish", "compound": "what"})
    table["month"] = np.where(table["dish"].isin(["P0", "P1", "P2"]), "May", "June")
    options = ["columns.plate=dish", "columns.treatment=what", "control.column=what", "control.negative=[c5]"]
    sets = [word for option in options for word in ("--set", option)]
    main([write(table), "--out", "out", "--by", "month", *sets])
    plates, months = summary()["design"]
    assert (months["by"], months["groups"]) == (["month"], 2)
    assert plates["median"]["negative"] == 1
    assert plates["median"]["positive"] == 0  # the user has said which are controls


def test_copies_of_a_map_without_plates(capsys) -> None:
    main([write(plain_map(1).drop(columns="plate")), "--copies", "5", "--out", "out"])
    assert summary()["design"][0]["groups"] == 5


def test_curves_of_ones_own(capsys) -> None:
    header = "statistics,wells,alpha,controls,kind,accuracy,low,high,screens,classes,origin"
    rows = [
        "running,,,,,0.5,,,1,8,mine",
        "plate,8,inf,4,,0.25,0.2,0.3,1,8,mine",
        "shrunk,8,inf,4,,0.6,0.55,0.65,1,8,mine",
    ]
    Path("curves.csv").write_text("\n".join([header, *rows]))
    main([write(plain_map()), "--curves", "curves.csv", "--out", "out"])
    statistics = summary()["statistics"]
    assert statistics["plate"][0]["state"] == "fails"
    assert statistics["plate"][0]["accuracy"] == pytest.approx(0.5)
    assert statistics["shrunk"][0]["state"] == "safe"
    assert statistics["controls"][0]["state"] == "unknown"


def test_a_simulated_screen_with_this_plate_map(capsys) -> None:
    words = [write(plain_map()), "--simulate", "--out", "out"]
    main(words)
    stores = list(Path("out").glob("simulated-*/store.json"))
    assert len(stores) == 1
    screen = load_packed(stores[0].parent)
    assert len(screen) == 72
    assert set(screen.splits) == {"train", "val", "test"}
    assert str(stores[0].parent.absolute()) in capsys.readouterr().out
    before = stores[0].stat().st_mtime_ns
    main(words)  # is not drawn again
    assert stores[0].stat().st_mtime_ns == before
    other = plain_map()
    other["compound"] = other["compound"].replace("c5", "c6")
    main([write(other), "--simulate", "--out", "out"])
    assert len(list(Path("out").glob("simulated-*/store.json"))) == 2


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda t: t.drop(columns="plate"), [], r"no column of plates.*--set columns\.<column>"),
        (lambda t: t.assign(plate=t["plate"].where(t.index != 3)), [], "row 5 .* has no plate"),
        (lambda t: t.drop(columns="compound"), [], "no column of treatments"),
        (lambda t: t.assign(well=t["well"].replace("A12", "P24")), ["--format", "96"], "'P24'.*96"),
        (lambda t: t.assign(well=t["well"].replace("A12", "AG01")), [], "'AG01'"),
        (lambda t: t, ["--format", "100"], "100.*96, 384, 1536"),
        (lambda t: t, ["--by", "month"], "group by.*'month'"),
        (lambda t: t, ["--set", "kolumns.plate=a"], "did you mean 'columns'"),
        (lambda t: t[t["compound"] == "DMSO"], [], "all 24 wells are controls"),
        (lambda t: t, ["--curves", "map.csv"], "no column 'statistics'"),
        (lambda t: t[t["plate"] == "P0"], ["--simulate"], "1 plate:"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(change, options: list[str], said: str) -> None:
    assert re.search(said, fails(write(change(plain_map())), "--out", "out", *options))
    assert not Path("out").exists()


def test_what_is_not_a_table_is_one_line() -> None:
    Path("noise").write_bytes(bytes(range(256)) * 4)
    assert "'noise'" in fails("noise")
    assert "nowhere" in fails("nowhere.csv")
    assert f"'{Path.cwd()}'" in fails(".")
