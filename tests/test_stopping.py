"""Signals at odd moments."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from biomass import stopping
from biomass.atomic import whole_file

LINE = "start the same command again\n"


class Dropped:
    """What gets a signal where no error can leave it."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_within_a_callback_of_the_garbage_collector_stops_all_the_same(capfd):
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught, stopping.listening(goes_on=False):
        Dropped()
        time.sleep(9)
    assert (caught.value.code, capfd.readouterr().err) == (
        75,
        "stopped: nothing had begun; start the same command again\n",
    )
    assert time.monotonic() - began < 5


def test_a_signal_within_a_callback_is_noted_where_signals_are_noted(capfd):
    with pytest.raises(SystemExit) as caught, stopping.listening(goes_on=False), stopping.noted():
        Dropped()
        time.sleep(0.1)
        stopping.say("all is done")
    assert (caught.value.code, capfd.readouterr().err) == (75, f"stopped: all is done; {LINE}")


def test_a_signal_while_torch_writes_is_no_fault_of_the_disk(tmp_path):
    class Interrupted(io.BytesIO):
        def write(self, data):
            if self.tell() > 200:
                self.truncate(0)
                raise stopping.Stopped
            return super().write(data)

    with pytest.raises(stopping.Stopped), whole_file(tmp_path / "a.pt"):
        torch.save({"a": torch.ones(999), "b": torch.ones(99)}, Interrupted())
    assert not list(tmp_path.iterdir())


def test_the_second_interrupt_ends_a_process_at_once():
    code = """
import sys
sys.argv = [{!r}]
import biomass, time
from biomass import stopping
with stopping.listening(goes_on=True), stopping.noted():
    print("ready", flush=True)
    time.sleep(60)
"""
    root = Path(stopping.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code.format(str(root / "train_erm.py"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=9)
    assert (process.returncode, errors) == (stopping.AT_ONCE, f"stopped at once: nothing had begun; {LINE}")


def a_program(body: str, tmp_path: Path, redirected: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """A program of this package, started by a shell; what it does is ``body``."""
    code = f"import sys\nsys.argv = [{str(Path(stopping.__file__).with_name('__main__.py'))!r}]\nimport biomass\n{body}"
    (tmp_path / "program.py").write_text(code)
    command = f"'{sys.executable}' '{tmp_path / 'program.py'}' {redirected}"
    environment = os.environ | {"PYTHONPATH": str(Path(stopping.__file__).parents[1]), "PYTHONIOENCODING": encoding}
    return subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&- <&-"])
def test_no_file_is_taken_for_a_stream_that_is_closed(tmp_path, redirected):
    body = "with open('table.csv', 'w') as file:\n    print('a line')\n    file.write('plate')\nsys.stdout.flush()"
    ended = a_program(body, tmp_path, redirected)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "table.csv").read_text() == "plate"


def test_signs_that_a_terminal_lacks_are_written_out(tmp_path):
    assert a_program("print('ρ')", tmp_path, "").stdout == "ρ\n"
    assert a_program("print('ρ')", tmp_path, "", "ascii").stdout == "\\u03c1\n"


def test_too_little_memory_while_modules_are_imported_is_a_line(tmp_path):
    ended = a_program("raise ImportError('libtorch.so: failed to map segment from shared object')", tmp_path, "")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: there is too little memory (libtorch.so: failed to map")
    assert len(ended.stderr.splitlines()) == 1
    assert "Traceback" in a_program("raise ImportError('torch')", tmp_path, "").stderr


def test_what_is_forked_leaves_signals_to_its_parent():
    with stopping.listening(goes_on=True), stopping.noted():
        child = os.fork()
        if child == 0:
            known = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            os._exit(known != [signal.SIG_DFL, signal.SIG_IGN])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
