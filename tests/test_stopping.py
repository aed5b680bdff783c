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
