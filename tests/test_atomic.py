"""Files and folders appear complete, or not at all, whatever the disk does meanwhile."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from disks import failing, no_larger_than, resize, small_disk
from matplotlib.figure import Figure
from PIL import Image

from biomass.atomic import (
    check_place,
    check_writable,
    leftovers,
    no_link,
    whole_file,
    whole_files,
    whole_folder,
    writing,
)
from biomass.errors import ConfigError
from biomass.pixels.bbbc021_files import whole_h5


def test_a_file_replaces_the_old_one_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "new" / "a.txt"
    for text in ("old", "new"):
        with whole_file(place) as part:
            part.write_text(text)
            assert not place.exists() or place.read_text() == "old"
    assert place.read_text() == "new"
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: BaseException) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(type(error)), whole_file(place) as part:
        part.write_text("half")
        raise error
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "screen"
    with whole_folder(place) as part:
        (part / "a.txt").write_text("a")
        assert not place.exists()
    assert (place / "a.txt").read_text() == "a"
    with pytest.raises(ValueError, match="x"), whole_folder(tmp_path / "other") as part:
        (part / "a.txt").write_text("a")
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, whole) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"
    with pytest.raises(ConfigError, match=str(place)) as caught, whole(place, "store"):
        pass
    assert caught.value.advice == "store"
    assert "\n" not in str(caught.value)


def test_what_a_killed_process_left_is_found(tmp_path: Path) -> None:
    part = tmp_path / ".a.txt.123.part"
    part.write_text("half")
    assert leftovers(tmp_path / "a.txt") == [part]
    assert leftovers(tmp_path / "b.txt") == []


def test_a_full_disk_says_how_much_is_needed_and_other_causes_do_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No space left.* 2\.0 GiB"), writing(tmp_path, needed=2**31):
        raise OSError(28, "No space left on device")
    with pytest.raises(ConfigError, match="Permission denied") as caught, writing(tmp_path, needed=2**31):
        raise OSError(13, "Permission denied")
    assert "GiB" not in str(caught.value)


def test_a_folder_is_looked_at_before_it_is_written_to(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="'the store'") as caught:
        check_writable(tmp_path / "file" / "new", Path("the store"), "store")
    assert caught.value.advice == "store"


def test_a_place_is_looked_at_without_a_trace(tmp_path: Path) -> None:
    check_place(tmp_path / "deep" / "deeper")
    check_place(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "file/deep", "link/deep"):
        with pytest.raises(ConfigError, match=f"cannot write to '.*{place}'.*it is not a folder") as caught:
            check_place(tmp_path / place)
        assert "\n" not in str(caught.value)


def everything(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones, too."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def write_one(folder: Path) -> None:
    with whole_file(folder / "new" / "a.txt") as part:
        part.write_text("new")


def write_several(folder: Path) -> None:
    whole_files({folder / name: b"new" for name in ("a.txt", "c.txt")})


def write_folder(folder: Path) -> None:
    with whole_folder(folder / "screen") as part:
        for name in ("a.txt", "b.txt"):
            (part / name).write_text("new")


def is_one_line(error: ConfigError, folder: Path, number: int) -> bool:
    """Whether an error says where it is, and what the disk said."""
    return re.fullmatch(rf"cannot write '{folder}.*' \({os.strerror(number)}\): .+", str(error)) is not None


OLD = {"a.txt": "old", "b.txt": "old", "new/a.txt": "old"}


def old_folder(folder: Path) -> Path:
    (folder / "new").mkdir(parents=True)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("write", [write_one, write_several, write_folder])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_call_fails_what_was_there_stays_and_nothing_else(
    tmp_path: Path, write: Callable[[Path], None], number: int
) -> None:
    whole = old_folder(tmp_path / "whole")
    with failing(0, call="any", below=whole) as calls:
        write(whole)
    assert calls.count >= 4
    new = everything(whole)
    for at in range(1, calls.count + 1):
        folder = old_folder(tmp_path / str(at))
        try:
            with failing(at, number, "any", folder, once=True):
                write(folder)
        except ConfigError as error:
            assert is_one_line(error, folder, number)  # noqa: PT017  # not each call must end in an error
            # the last call of a file or a folder is the one that makes its name outlive a power failure
            assert everything(folder) == (new if at == calls.count and write is not write_several else OLD)
        else:  # a folder that was there did not need to be made; a file that can have no second name was copied
            assert everything(folder) == new
        write(folder) if write is not write_folder or everything(folder) == OLD else None
        assert everything(folder) == new


def test_where_files_cannot_be_put_back_either_it_is_said_which_are_new(tmp_path: Path) -> None:
    old_folder(tmp_path / "a")
    with failing(0, call="rename", below=tmp_path) as calls:
        write_several(tmp_path / "a")
    old_folder(tmp_path / "b")
    with failing(calls.count, errno.EIO, "rename", tmp_path), pytest.raises(ConfigError, match=r"a\.txt' are new"):
        write_several(tmp_path / "b")


def test_each_cause_has_its_own_remedy(tmp_path: Path) -> None:
    remedies = set()
    causes = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.ENOENT, errno.EMFILE)
    for number in causes:
        with failing(1, number, below=tmp_path), pytest.raises(ConfigError) as caught:
            write_one(tmp_path)
        remedies.add(str(caught.value).split("): ")[1])
    assert len(remedies) == len(causes)


def test_an_error_of_another_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"elsewhere/pixels' cannot be used"), whole_file(tmp_path / "a.txt"):
        Path("/elsewhere/pixels").read_text()
    with pytest.raises(ValueError, match="mine"), whole_file(tmp_path / "a.txt"):
        raise ValueError("mine: [Errno x]")


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for write, name in ((write_one, "new/a.txt"), (write_folder, "screen"), (write_several, "c.txt")):
        with failing(0, call="open", below=tmp_path):
            place = tmp_path / name
            place.parent.mkdir(exist_ok=True)
            for part in (f".{place.name}.{os.getpid()}.part", part_of(place)):
                place.with_name(part).symlink_to(victim)
        write(tmp_path)
        assert not place.is_symlink()
    assert victim.read_text() == "mine"
    (tmp_path / "grows").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), open(tmp_path / "grows", "a", opener=no_link):
        pass


def part_of(place: Path) -> str:
    """The name of what is being written."""
    with pytest.raises(ValueError, match="never"), whole_file(place) as part:
        raise ValueError("never written")
    return part.name


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            write_one(tmp_path)
            (tmp_path / "plain").write_text("")
            write_folder(tmp_path / f"{mask}")
            (tmp_path / "folder").mkdir()
        finally:
            os.umask(before)
        assert (tmp_path / "new/a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert (tmp_path / f"{mask}" / "screen").stat().st_mode == (tmp_path / "folder").stat().st_mode
        (tmp_path / "plain").unlink()
        (tmp_path / "folder").rmdir()


def test_the_next_writer_removes_what_killed_ones_left_of_the_same_file(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    mine = part_of(tmp_path / "a.txt").split(".")[3].partition("-")[2]
    stays = [
        f".a.txt.{os.getppid()}.part",  # of a process that is there
        f".a.txt.{gone.pid}-00000000.part",  # of another machine, and new
        f".b.a.txt.{gone.pid}.part",
        f".a.txt.txt.{gone.pid}.part",
        ".a.txt.part",
    ]
    goes = [f".a.txt.{gone.pid}.part", f".a.txt.{gone.pid}-{mine}.part", f".a.txt.{gone.pid}-{mine}.old"]
    goes += [f".a.txt.{gone.pid}-00000001.part"]
    for name in (*stays, *goes):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / goes[-1], (0, 0))
    assert len(leftovers(tmp_path / "a.txt")) == len(goes) + 2
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", *stays}


WRITERS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "text": lambda part, values: part.write_text(str(values.tolist())),
    "torch": lambda part, values: torch.save({"a": torch.from_numpy(values)}, part),
    "numpy": lambda part, values: np.save(part.open("wb"), values),
    "parquet": lambda part, values: pq.write_table(pa.table({"a": values}), part),
    "png": lambda part, values: Image.fromarray(values[:9000].reshape(90, 100).astype(np.uint8)).save(part, "PNG"),
    "figure": lambda part, values: Figure().savefig(part, format="png", dpi=300),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_libraries_that_write_by_themselves_end_in_the_same_line(tmp_path: Path, writer: str) -> None:
    values = np.random.default_rng(0).normal(0, 99, 9000)
    expected = pytest.raises(ConfigError, match=f"cannot write '{tmp_path}/a'.*too large")
    with no_larger_than(2000), expected as caught, whole_file(tmp_path / "a") as part:
        WRITERS[writer](part, values)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_hdf5_does_not_end_the_process(tmp_path: Path) -> None:
    with no_larger_than(2000), pytest.raises(ConfigError, match="too large"), whole_h5(tmp_path / "a.h5") as h5:
        for i in range(20):
            h5[f"{i}"] = np.arange(1000)
    assert not list(tmp_path.iterdir())
    with whole_h5(tmp_path / "a.h5") as h5:
        h5["a"] = np.arange(3)
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5["a"][2] == 2


def test_a_disk_that_is_full_keeps_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        for write in WRITERS.values():
            with pytest.raises(ConfigError, match="No space left"), whole_file(disk / "a") as part:
                (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
                write(part, np.arange(9000.0))
            (disk / "other").unlink()
            assert not list(disk.iterdir())
        resize(disk, "1m")
        write_one(disk)
        assert everything(disk) == {"new/a.txt": "new"}
