"""Scripts and tools in processes of their own, which need not import everything again.

A server imports what scripts import, and computes nothing. For every call it forks a process, which begins as a new one
would. Tests of start-up itself start Python.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.torture.forks import exit_code

ROOT = Path(__file__).resolve().parent.parent

_server: list["subprocess.Popen[str]"] = []


def run_warm(
    script: str | Path, *words: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """``python script words…`` in ``cwd``; ``biomass`` as a script is ``python -m biomass``."""
    if not _server or _server[0].poll() is not None:
        own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.warm"]
        started = subprocess.Popen(command, cwd=ROOT, env=own, stdin=-1, stdout=-1, text=True)
        _server[:] = [started]
    out, err = (cwd / f".warm.{name}" for name in ("out", "err"))
    asked = {"script": str(script), "words": words, "cwd": str(cwd), "out": str(out), "err": str(err)}
    server = _server[0]
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(asked | {"environment": dict(environment or {})}) + "\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    texts = []
    for file in (out, err):
        texts.append(file.read_text())
        file.unlink()
    return subprocess.CompletedProcess([str(script), *words], status, *texts)


def _serve() -> None:
    import importlib

    for name in ("biomass.experiment", "biomass.trained", "torch.utils.tensorboard", "biomass.report.page"):
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_script(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _be_script(asked: Mapping[str, Any]) -> None:
    """Be the process of a script until its end; never returns."""
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(asked["cwd"])
        os.environ |= asked["environment"]
        code = exit_code(lambda: _run(asked["script"], asked["words"]))
        import multiprocessing.util
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(script: str, words: list[str]) -> None:
    from biomass import stopping

    tool = script == "biomass"
    sys.argv = [str(ROOT / "biomass" / "__main__.py") if tool else script, *words]
    stopping.start_program()
    if tool:
        runpy.run_module("biomass", run_name="__main__")
    else:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _serve()
