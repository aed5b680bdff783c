"""What comes from others: names, archives, HDF5, and the lock file."""

import gzip
import io
import logging
import re
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomass.datasets.download import extract
from biomass.errors import DataError, RefusedError, log_printably, one_line, printable
from biomass.formulas import read_csv, to_csv
from biomass.guarded import ask
from biomass.identifiers import folder_name
from biomass.judgement.raw import read_raw
from biomass.table_files import read_table

ROOT = Path(__file__).parents[1]
ODD = ["..", ".", "-x", "a/b", "~", "con", "a\nb", "\0", "x" * 300, "x" * 299 + "y", "\u0430", "a", "\udc80", ""]


def test_names_stay_in_their_folder_and_are_unique(tmp_path: Path) -> None:
    paths = [tmp_path / folder_name(name) for name in ODD]
    assert len(set(paths)) == len(ODD)
    for path in paths:
        path.mkdir()
        assert path.resolve().parent == tmp_path.resolve()
        assert not path.name.startswith(("-", "."))


def test_no_sign_steers_a_log_or_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    odd = "P\x1b[2J\r\u202e\udc80\0"
    assert one_line(ValueError(odd)).isprintable()
    assert printable(odd).isprintable()
    before = logging.getLogRecordFactory()
    log_printably()
    logging.getLogger("x").warning("plate %s\nerror: none", odd)
    logging.setLogRecordFactory(before)
    assert caplog.messages[0].endswith("\n    error: none")
    assert caplog.messages[0].replace("\n", "").isprintable()


def test_formulas_are_text_and_come_back(tmp_path: Path) -> None:
    names = ["=1+1", "+x", "-y", "@z", "\tq", "'=a", "-1.5", "plain", "'"]
    table = pd.DataFrame({"name": names, "value": [-1.5] * len(names)})
    (tmp_path / "t.csv").write_text(to_csv(table))
    cells = [line.rpartition(",")[0].strip('"') for line in to_csv(table).splitlines()[1:]]
    assert [one for one in cells if one[0] in "=+-@\t"] == ["-1.5"]
    assert read_csv(tmp_path / "t.csv")["name"].tolist() == names
    assert read_table(tmp_path / "t.csv").frame()["name"].tolist() == names


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "a"], "is there twice"),
        (["a", "A"], "case"),
        (["a\x1b"], "cannot be shown"),
        (["x" * 300], "too long"),
        (["a", "a/b"], "is there twice"),
        (["../a"], "outside the folder"),
        (["b", "/a"], "outside the folder"),
        (["c:\\a"], "outside the folder"),
        (["\u212b", "A\u030a"], "case"),
        (["a/" * 600 + "b"], "too long"),
    ],
)
def test_odd_archives_leave_nothing(tmp_path: Path, names: list[str], why: str) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match=why):
        extract(tmp_path / "t.tar", tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a")
    member.type, member.linkname = kind, "b"
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("b"), io.BytesIO())
        archive.addfile(member)
    with pytest.raises(DataError, match="is a link or a device"):
        extract(tmp_path / "t.tar", tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]


ROWS = 10_500_000


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files that become huge: a Parquet table, a packed CSV, a workbook."""
    folder = tmp_path_factory.mktemp("bombs")
    nothing = pa.table([pa.array(np.zeros(ROWS, bool))], pa.schema([pa.field("value", pa.bool_(), nullable=False)]))
    pq.write_table(
        nothing, folder / "t.parquet", ROWS, compression="zstd", max_rows_per_page=ROWS, data_page_size=1 << 30
    )
    (folder / "t.csv.gz").write_bytes(gzip.compress(bytes(70 << 20), 1))
    with zipfile.ZipFile(folder / "t.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(70 << 20))
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [("t.parquet", f"declares {ROWS:,} rows in"), ("t.csv.gz", "become more than"), ("t.xlsx", "that become")],
)
def test_a_small_file_is_no_huge_table(bombs: Path, name: str, message: str) -> None:
    assert (bombs / name).stat().st_size < 1 << 20
    with pytest.raises(DataError, match=message):
        read_table(bombs / name)


def test_profiles_do_not_declare_what_they_cannot_hold(bombs: Path) -> None:
    with pytest.raises(DataError, match=f"declares {ROWS:,} rows in"):
        read_raw(bombs / "t.parquet")


def test_a_bomb_is_no_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tgz", "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("a")
        member.size = 80 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(DataError, match="100 times larger"):
        extract(tmp_path / "t.tgz", tmp_path / "in")


def test_hdf5_reads_no_other_file_and_declares_what_it_holds(tmp_path: Path) -> None:
    for name, options in {
        "other file": {"shape": (4,), "external": [("/etc/passwd", 0, 4)]},
        "declares": {"shape": (10**9,), "chunks": (1000,)},
    }.items():
        with h5py.File(tmp_path / "a.h5", "w") as h5:
            h5.create_dataset("x", dtype="u1", **options)
        with pytest.raises(RefusedError, match=name):
            ask("hdf5", tmp_path / "a.h5", skip=[], virtual=False)


def test_the_lock_file_has_what_is_required_with_hashes() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", lock.strip())
    locked = {one.partition("==")[0]: one.partition("==")[2].split()[0] for one in entries}
    assert {name: locked.get(name.lower()) for name in pins} == pins
    assert all("--hash=sha256:" in one for one in entries)
    assert "://" not in lock
