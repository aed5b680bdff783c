"""RxRx1-WILDS: the table against its metadata, and every way a download can go, with stand-ins for both servers."""

import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from biomass.datasets.download import extract, fetch, find_archives, join
from biomass.datasets.rxrx1 import load_rxrx1, prepare_rxrx1
from biomass.errors import ConfigError, DataError

SIZE = 8
CLASSES = ("s0", "s1", "p0", "EMPTY")
TYPES = ("treatment", "treatment", "positive_control", "negative_control")


def metadata() -> pd.DataFrame:
    """Experiments with 3, 1 and 2 plates, one number left out; wells that differ from plate to plate."""
    rows = []
    plates = {"HEPG2-01": ("train", (1, 2, 4)), "HUVEC-02": ("val", (3,)), "U2OS-01": ("test", (1, 2))}
    for experiment, (dataset, numbers) in plates.items():
        for plate in numbers:
            for i in range(plate + 3):
                well, sirna = f"{'BCD'[plate % 3]}{i + 2:02d}", (i + plate) % 4
                well_id = f"{experiment}_{plate}_{well}"
                rows += [
                    (
                        f"{well_id}_{site}",
                        well_id,
                        experiment.split("-")[0],
                        dataset,
                        experiment,
                        plate,
                        well,
                        site,
                        TYPES[sirna],
                        CLASSES[sirna],
                        sirna,
                    )
                    for site in (1, 2)
                ]
    columns = "site_id well_id cell_type dataset experiment plate well site well_type sirna sirna_id"
    return pd.DataFrame(rows, columns=columns.split())


def image(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def write_screen(folder: Path, table: pd.DataFrame | None = None) -> Path:
    """Write a screen in the layout of RxRx1-WILDS."""
    table = metadata() if table is None else table
    for i, row in enumerate(table.itertuples()):
        path = folder / "images" / str(row.experiment) / f"Plate{row.plate}" / f"{row.well}_s{row.site}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(path, compress_level=1)
    table.to_csv(folder / "metadata.csv", index=False)
    (folder / "RELEASE_v1.0.txt").write_text("1.0\n")
    return folder


def test_reads_the_layout(tmp_path: Path) -> None:
    write_screen(tmp_path / "rxrx1_v1.0")
    screen = load_rxrx1(tmp_path, download=False)
    expected = metadata()
    table = screen.table
    for column in ("experiment", "plate", "well", "site", "cell_type", "sirna"):
        assert table[column].astype(str).tolist() == expected[column].astype(str).tolist()
    assert table["label"].tolist() == expected["sirna_id"].tolist()
    for i, row in enumerate(expected.itertuples()):  # the official scheme, as its authors describe it
        assert table["split"][i] == ("id_test" if row.dataset == "train" and row.site == 2 else row.dataset)
        assert table["control"][i] == {"treatment": ""}.get(str(row.well_type), str(row.well_type).split("_")[0])
    assert screen.classes == CLASSES
    assert screen.splits == ("id_test", "test", "train", "val")
    assert screen.plate_names == ("HEPG2-01/1", "HEPG2-01/2", "HEPG2-01/4", "HUVEC-02/3", "U2OS-01/1", "U2OS-01/2")
    assert screen.pixels.channels == ("nuclei", "ER", "actin")
    assert screen.pixels.size == (SIZE, SIZE)
    rows = np.array([len(expected) - 1, 0, 11])
    np.testing.assert_array_equal(screen.pixels.read(rows), [image(r).transpose(2, 0, 1) for r in rows])
    assert screen.pixels.name(0).endswith("rxrx1_v1.0/images/HEPG2-01/Plate1/C02_s1.png")


@pytest.mark.parametrize("sites", [2, 4])
def test_splits_and_labels_are_those_of_wilds(tmp_path: Path, sites: int) -> None:
    """wilds reads the table by itself, and is slow and particular about it: here it is the reference."""
    from wilds.datasets.rxrx1_dataset import RxRx1Dataset

    table = pd.concat([metadata(), metadata().assign(site=lambda t: t["site"] + 2)]) if sites == 4 else metadata()
    write_screen(tmp_path / "rxrx1_v1.0", table.sample(frac=1, random_state=0))
    with pd.option_context("mode.copy_on_write", False):  # wilds writes into arrays; pycytominer switches it on
        reference = RxRx1Dataset(root_dir=str(tmp_path), download=False, split_scheme="official")
    names = {number: name for name, number in reference.split_dict.items()}
    screen = load_rxrx1(tmp_path, download=False)
    assert screen.table["split"].tolist() == [names[number] for number in reference.split_array]
    np.testing.assert_array_equal(screen.labels, reference.y_array)
    assert {"train", "id_test", "val", "test"} == set(screen.splits)


def test_a_well_is_called_the_same_however_it_is_written(tmp_path: Path) -> None:
    table = metadata()
    expected = load_rxrx1(write_screen(tmp_path / "a" / "rxrx1_v1.0").parent, download=False)
    table["well"] = table["well"].str.replace("0", "").str.lower()
    screen = load_rxrx1(write_screen(tmp_path / "b" / "rxrx1_v1.0", table).parent, download=False)
    pd.testing.assert_frame_equal(screen.table, expected.table)
    assert screen.pixels.name(0).endswith("Plate1/c2_s1.png")  # the file is the one that is there
    np.testing.assert_array_equal(screen.pixels.read(np.arange(9)), expected.pixels.read(np.arange(9)))


def change(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return apply


BAD: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (lambda t: t.drop(columns="well_type"), r"metadata\.csv' has no column 'well_type'"),
    (change("dataset", 3, "dev"), r"row 5 .* says 'dev' in column 'dataset'.*train, val, test"),
    (change("well_type", 3, "dmso"), r"row 5 .* says 'dmso' in column 'well_type'.*negative_control"),
    (change("site", 3, "one"), r"row 5 .* says 'one' in column 'site'"),
    (lambda t: t.assign(sirna_id=t["sirna_id"] * 2), "no image with sirna_id 1: number the classes from 0"),
    (lambda t: pd.concat([t, t[4:5]]), r"HEPG2-01, plate 1, well C04, site 1: row 6 .* and row \d+"),
    (lambda t: pd.concat([t, t[4:5].assign(well="c4")]), r"HEPG2-01, plate 1, well C04, site 1: row 6 .* and row \d+"),
    (change("well", 3, "NA"), r"row 5 of 'metadata\.csv' has no well"),
    (change("well", 3, "Z99"), r"Z99_s2\.png' is missing:"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_bad_metadata(tmp_path: Path, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    folder = write_screen(tmp_path / "rxrx1_v1.0")
    spoil(metadata()).to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(DataError, match=message) as caught:
        load_rxrx1(tmp_path, download=False)
    assert "\n" not in str(caught.value)


def test_absent_and_incomplete(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no RxRx1-WILDS in '.*rxrx1_v1\.0': .*by hand.*simulated") as caught:
        load_rxrx1(tmp_path, download=False)
    assert caught.value.advice == "download"
    assert not list(tmp_path.iterdir())
    folder = write_screen(tmp_path / "rxrx1_v1.0")
    (folder / "RELEASE_v1.0.txt").unlink()
    with pytest.raises(DataError, match=r"rxrx1_v1\.0' has no 'RELEASE_v1\.0\.txt': complete the folder"):
        load_rxrx1(tmp_path, download=True)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write '.*file/data'") as caught:
        prepare_rxrx1(tmp_path / "file" / "data")
    assert caught.value.advice == "root_dir"


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; understands ranges, and what the client of the mirror asks."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.cuts: list[int] = []
        """After how many bytes of a body each of the next connections breaks."""
        self.ranges = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, path: str) -> list[str]:
        """The ranges in which a file was fetched."""
        return [ranges for method, p, ranges in self.requests if (method, p) == ("GET", path)]


class Handler(BaseHTTPRequestHandler):
    server: Server
    commit = "a" * 40

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        ranges = self.headers.get("Range", "")
        self.server.requests.append((self.command, path, ranges))
        mirrored = {n.removeprefix("/mirror/"): data for n, data in self.server.files.items() if "/mirror/" in n}
        if path.startswith("/api/datasets/pangwei/wilds-rxrx1/revision/") and mirrored:
            return self.answer(json.dumps({"id": "pangwei/wilds-rxrx1", "sha": self.commit}).encode())
        if path.startswith("/api/datasets/pangwei/wilds-rxrx1/tree/"):
            return self.answer(
                json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in mirrored.items()
                    ]
                ).encode()
            )
        data = self.server.files.get(path.replace(f"/datasets/pangwei/wilds-rxrx1/resolve/{self.commit}/", "/mirror/"))
        if data is None:
            return self.answer(b"nothing here", 404)
        if not (ranges and self.server.ranges):
            return self.answer(data)
        start = int(ranges.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self.answer(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
        return self.answer(data[start:], 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        fixed = {"Content-Length": str(len(body)), "ETag": etag, "X-Repo-Commit": self.commit}
        for key, value in (fixed | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts and status in (200, 206):
            body = body[: self.server.cuts.pop(0)]
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Both sources of RxRx1-WILDS, which have nothing until a test gives them something."""
    from wilds.datasets.rxrx1_dataset import RxRx1Dataset

    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            RxRx1Dataset, "_versions_dict", {"1.0": {"download_url": f"{server.address}/wilds", "compressed_size": 1}}
        )
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def screen_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name → content of all files of a screen in the layout."""
    folder = write_screen(tmp_path_factory.mktemp("source"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def check_prepared(root: Path, files: dict[str, bytes]) -> None:
    """Exactly the dataset is in place, and nothing is left of the work."""
    folder = prepare_rxrx1(root)
    assert folder == root / "rxrx1_v1.0"
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == set(files) | {"RELEASE_v1.0.txt"}
    assert all((folder / name).read_bytes() == data for name, data in files.items() if name != "RELEASE_v1.0.txt")
    assert not (root / "rxrx1_v1.0.part").exists()


def test_download_from_wilds(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    server.files["/wilds"] = tar(screen_files)
    screen = load_rxrx1(tmp_path / "new" / "root")
    assert len(screen) == len(metadata())
    check_prepared(tmp_path / "new" / "root", screen_files)
    assert server.asked("/wilds") == [""]  # what is there is not fetched again
    assert [p for _, p, _ in server.requests] == ["/wilds"]


def test_download_goes_on_where_it_was_cut_off(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    server.files["/wilds"] = archive = tar(screen_files)
    server.cuts = [1000, 500]
    check_prepared(tmp_path, screen_files)
    assert server.asked("/wilds") == ["", "bytes=1000-", "bytes=1500-"]
    assert len(archive) > 2000


def test_interrupted_download_is_never_complete(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    server.files["/wilds"] = tar(screen_files)
    server.cuts = [1000, 0]  # the second connection brings nothing: no use to go on
    with pytest.raises(DataError, match=r"wilds: .*cut off after 1000 of \d+ bytes.*mirror: .*simulated") as caught:
        prepare_rxrx1(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rxrx1_v1.0").exists()
    with pytest.raises(DataError, match="no RxRx1-WILDS"):
        load_rxrx1(tmp_path, download=False)
    check_prepared(tmp_path, screen_files)  # the next call
    assert server.asked("/wilds")[-1] == "bytes=1000-"


def test_server_without_ranges(tmp_path: Path, server: Server) -> None:
    server.files["/file"] = data = bytes(range(256)) * 20
    server.ranges, server.cuts = False, [1000]
    assert fetch(f"{server.address}/file", tmp_path / "file").read_bytes() == data


def test_a_killed_download_that_had_everything(tmp_path: Path, server: Server) -> None:
    server.files["/file"] = data = b"abc" * 100
    (tmp_path / "file.part").write_bytes(data)
    assert fetch(f"{server.address}/file", tmp_path / "file").read_bytes() == data
    (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(data + b"more than there is")
    with pytest.raises(ConnectionError, match="not the file that was begun"):
        fetch(f"{server.address}/file", tmp_path / "file")
    assert fetch(f"{server.address}/file", tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("spoil", [lambda a: a[: len(a) // 2], lambda a: a[:-4], lambda a: b"no archive" * 100])
def test_damaged_archive(
    tmp_path: Path, server: Server, screen_files: dict[str, bytes], spoil: Callable[[bytes], bytes]
) -> None:
    server.files["/wilds"] = spoil(tar(screen_files))
    with pytest.raises(DataError, match=r"wilds: archive .* is damaged"):
        prepare_rxrx1(tmp_path)
    assert not (tmp_path / "rxrx1_v1.0").exists()
    server.files["/wilds"] = tar(screen_files)  # not the damaged file again
    check_prepared(tmp_path, screen_files)


def test_archive_that_lacks_images(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    files = dict(list(screen_files.items())[:-30])
    files["metadata.csv"] = screen_files["metadata.csv"]
    server.files["/wilds"] = tar(files)
    with pytest.raises(DataError, match=r"wilds: image .* is missing, and \d+ more"):
        prepare_rxrx1(tmp_path)
    server.files["/wilds"] = tar({"other/file": b""})
    with pytest.raises(DataError, match=r"wilds: .*no 'metadata\.csv'"):
        prepare_rxrx1(tmp_path / "b")


def pieces(data: bytes, name: str, tags: list[str]) -> dict[str, bytes]:
    step = -(-len(data) // len(tags))
    return {name + tag: data[i * step : (i + 1) * step] for i, tag in enumerate(tags)}


def part(files: dict[str, bytes], below: str) -> dict[str, bytes]:
    return {name.removeprefix(below): data for name, data in files.items() if name.startswith(below)}


MIRRORS: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "folder": lambda f: f,
    "folder in a folder": lambda f: {f"data/rxrx1_v1.0/{name}": data for name, data in f.items()},
    "tar.gz": lambda f: {"README.md": b"", "rxrx1_v1.0.tar.gz": tar(f)},
    "tgz in a folder, of a folder": lambda f: {"x/a.tgz": tar({f"rxrx1_v1.0/{n}": data for n, data in f.items()})},
    "tar": lambda f: {"a.tar": tar(f, "w")},
    "zip": lambda f: {"a.zip": zipped(f)},
    "pieces of tar.gz": lambda f: pieces(tar(f), "a.tar.gz.part-", ["aa", "ab", "ac"]),
    "pieces of zip": lambda f: pieces(zipped(f), "a.zip.", [f"{i:03d}" for i in range(1, 4)]),
    "images apart": lambda f: {
        "metadata.csv": f["metadata.csv"],
        "images.tar.gz": tar({n: d for n, d in f.items() if n != "metadata.csv"}),
    },
    "an archive an experiment": lambda f: (
        {"metadata.csv": f["metadata.csv"]}
        | {f"images/{e}.tar": tar(part(f, "images/"), "w") for e in ("HEPG2-01", "HUVEC-02", "U2OS-01")}
    ),
}


@pytest.mark.parametrize("layout", list(MIRRORS))
def test_falls_back_to_the_mirror(tmp_path: Path, server: Server, screen_files: dict[str, bytes], layout: str) -> None:
    server.files = {f"/mirror/{name}": data for name, data in MIRRORS[layout](screen_files).items()}
    check_prepared(tmp_path, screen_files)
    assert server.asked("/wilds") == [""]
    assert len(load_rxrx1(tmp_path, download=False)) == len(metadata())


def test_mirror_that_goes_away_in_the_middle(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    """The mirror's client returns a half-filled folder when the network is down, and says nothing is wrong."""
    half = tmp_path / "rxrx1_v1.0.part" / "mirror" / "downloaded"
    write_screen(half)
    for path in sorted(half.rglob("*.png"))[10:]:
        path.unlink()
    with pytest.raises(DataError, match=r"mirror: image .* is missing, and \d+ more"):
        prepare_rxrx1(tmp_path)
    assert not (tmp_path / "rxrx1_v1.0").exists()
    server.files = {f"/mirror/{name}": data for name, data in screen_files.items()}
    check_prepared(tmp_path, screen_files)


def test_neither_can_be_reached(tmp_path: Path, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"wilds: .*refused.*mirror: .*by hand.*simulated") as caught:
        load_rxrx1(tmp_path)
    assert "\n" not in str(caught.value)


def link(name: str, target: str, kind: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
        member = tarfile.TarInfo(f"{name}/escaped")
        archive.addfile(member, io.BytesIO())
    return stream.getvalue()


ESCAPES = {
    "tar up": tar({"a": b"", "images/../../escaped": b"!"}),
    "tar absolute": tar({"/escaped": b"!"}),
    "tar symbolic link": link("out", "..", tarfile.SYMTYPE),
    "tar hard link": link("out", "../secret", tarfile.LNKTYPE),
    "tar device": link("out", "", tarfile.FIFOTYPE),
    "zip up": zipped({"a": b"", "../escaped": b"!"}),
    "zip backslash": zipped({"..\\escaped": b"!"}),
    "zip absolute": zipped({"/escaped": b"!"}),
    "zip drive": zipped({"C:/escaped": b"!"}),
}


@pytest.mark.parametrize("archive", list(ESCAPES.values()), ids=list(ESCAPES))
def test_refuses_archives_that_escape(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "archive").write_bytes(archive)
    with pytest.raises(DataError, match=r"archive' is refused: its member '.*(escaped|out)'"):
        extract(tmp_path / "archive", tmp_path / "in" / "deep")
    assert not [p for p in tmp_path.rglob("*") if p.name in ("escaped", "out")]


def test_refused_archive_leaves_no_dataset(tmp_path: Path, server: Server, screen_files: dict[str, bytes]) -> None:
    server.files["/wilds"] = tar(screen_files | {"../escaped": b"!"})
    with pytest.raises(DataError, match=r"wilds: archive .* is refused"):
        prepare_rxrx1(tmp_path)
    assert not (tmp_path / "rxrx1_v1.0").exists()


def test_find_archives(tmp_path: Path) -> None:
    names = ["a.tar.gz", "b.zip.part1", "b.zip.part2", "b.zip.part10", "c.tar.aa", "c.tar.ab", "d/e.tgz", "d/f.tar-001"]
    others = ["a.tar.gz.md5", "b.tar.xz", "c.tar.gz.part", "metadata.csv", "tar.gz", "x.tar.gz.metadata", "y.zip.lock"]
    (tmp_path / "d").mkdir()
    for name in names + others:
        (tmp_path / name).write_text(f"{name};")
    found = {
        str(k.relative_to(tmp_path)): [str(p.relative_to(tmp_path)) for p in v]
        for k, v in find_archives(tmp_path).items()
    }
    assert found == {
        "a.tar.gz": names[:1],
        "b.zip": names[1:4],
        "c.tar": names[4:6],
        "d/e.tgz": names[6:7],
        "d/f.tar": names[7:],
    }
    joined = join(find_archives(tmp_path)[tmp_path / "b.zip"], tmp_path / "whole")
    assert joined.read_text() == "b.zip.part1;b.zip.part2;b.zip.part10;"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_only_where_a_person_watches(
    tmp_path: Path, server: Server, screen_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/wilds"] = tar(screen_files)
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        prepare_rxrx1(tmp_path / type(stream).__name__)
        assert ("archive.tar.gz" in stream.getvalue() and "Extracting" in stream.getvalue()) == stream.isatty()
        assert stream.isatty() or not stream.getvalue()
