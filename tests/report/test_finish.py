"""The end of a run: files, the page, and nothing that could lose the run."""

import logging

import pytest

from biomass.atomic import whole_file
from biomass.errors import ConfigError, DataError
from biomass.report.finish import finish
from tests import disks


@pytest.fixture
def writer(monkeypatch):
    """What the page is written from, and where to: a list that grows."""
    calls = []

    def write_report(folders, out):
        calls.append((list(folders), out, sorted(file.name for file in folders[0].iterdir())))
        out.write_text("<html></html>")
        return out

    monkeypatch.setattr("biomass.report.page.write_report", write_report)
    return calls


def test_the_page_is_made_of_what_the_steps_leave_and_the_log_says_where_it_is(tmp_path, writer, caplog):
    caplog.set_level("INFO")
    steps = [lambda: (tmp_path / "a.csv").touch(), lambda: (tmp_path / "b.csv").touch()]
    assert finish(tmp_path, steps) == tmp_path / "report.html"
    assert writer == [([tmp_path], tmp_path / "report.html", ["a.csv", "b.csv"])]
    assert str(tmp_path / "report.html") in caplog.text


def failing(error):
    def step():
        raise error

    return step


@pytest.mark.parametrize(
    ("error", "level"), [(DataError("one plate"), logging.INFO), (RuntimeError("out\nof memory"), logging.WARNING)]
)
def test_a_step_that_fails_is_said_and_the_page_is_made_all_the_same(tmp_path, writer, caplog, error, level):
    caplog.set_level("INFO")
    assert finish(tmp_path, [failing(error), lambda: (tmp_path / "b.csv").touch()]) == tmp_path / "report.html"
    assert writer[0][2] == ["b.csv"]
    (said,) = [record for record in caplog.records if str(error).partition("\n")[0] in record.getMessage()]
    assert said.levelno == level
    assert "\n" not in said.getMessage()


def test_a_page_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("biomass.report.page.write_report", lambda *_: 1 / 0)
    assert finish(tmp_path) is None
    assert "no page" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("name", ["report.html", "a.csv"])
def test_a_full_disk_is_an_error(tmp_path, name, monkeypatch):
    def write(*_):
        with whole_file(tmp_path / name) as part:
            part.write_text("<html></html>")

    monkeypatch.setattr("biomass.report.page.write_report", write)
    with disks.failing(1, call="fsync", below=tmp_path), pytest.raises(ConfigError, match=rf"{name}.*No space left"):
        finish(tmp_path, [write] if name == "a.csv" else [])
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_no_failure_of_a_step(tmp_path, writer):
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, [failing(KeyboardInterrupt())])
    assert not writer
