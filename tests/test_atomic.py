"""Files and folders appear complete, or not at all."""

from pathlib import Path

import pytest

from biomass.atomic import check_place, check_writable, leftovers, whole_file, whole_folder, writing
from biomass.errors import ConfigError


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
