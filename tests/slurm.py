"""Slurm on this machine, as far as submitit and this package use it: its commands from ``sbatch`` to ``sacct``.

The tasks of a job are started at once, and so are the jobs of an array. What is queued again is started again when it
has ended, with ``SLURM_RESTART_COUNT`` one higher. The state of a job is a folder of ``FAKE_SLURM``.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path


def install(folder: Path) -> dict[str, str]:
    """Put the commands into a folder; the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct"):
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        file.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def place(job: str) -> Path:
    return Path(os.environ["FAKE_SLURM"]) / "jobs" / job


def sbatch(script: str) -> None:
    number = 1000 + 100 * len(list(place("").glob("*")))
    text = Path(script).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    first, last = re.fullmatch(r"(\d+)-(\d+)%\d+", asked["array"]).groups() if "array" in asked else (None, None)
    tasks = range(int(first), int(last) + 1) if first is not None else [None]
    for task in tasks:
        job = f"{number}" if task is None else f"{number}_{task}"
        place(job).mkdir(parents=True)
        (place(job) / "script.sh").write_text(text)
        nodes, each = int(asked.get("nodes", 1)), int(asked.get("ntasks-per-node", 1))
        own = {"SLURM_JOB_ID": str(number + (task or 0)), "SLURM_JOB_NAME": asked.get("job-name", "x")}
        own |= {"SLURM_NTASKS": str(nodes * each), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes)}
        own |= {"SLURM_NTASKS_PER_NODE": str(each), "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost"}
        if task is not None:
            own |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
            own |= {"SLURM_ARRAY_TASK_COUNT": str(len(tasks)), "SLURM_ARRAY_TASK_MIN": str(tasks[0])}
        subprocess.Popen(
            [sys.executable, __file__, "run", job],
            env=os.environ | own | {"FAKE_JOB": job},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=(place(job) / "log").open("a"),
            stderr=subprocess.STDOUT,
        )
    print(f"Submitted batch job {number}")


def run(job: str) -> None:
    """What a node does with a job, until it has ended without being queued again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for restart in range(100):
        (place(job) / "state").write_text("RUNNING")
        restarted = {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
        code = subprocess.call(
            ["bash", str(place(job) / "script.sh")],
            env=os.environ | restarted,
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        )
        again = place(job) / "requeue"
        if not again.exists():
            (place(job) / "code").write_text(str(code))
            (place(job) / "state").write_text("COMPLETED" if code == 0 else "FAILED")
            return
        again.unlink()
        (place(job) / "state").write_text("PENDING")


def srun(*arguments: str) -> int:
    job, words, output = os.environ["FAKE_JOB"], list(arguments), {}
    while words[0].startswith("-"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            output[option] = words.pop(0)
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    started = []
    for task in range(tasks):
        files = [Path(re.sub("%j|%A_%a", job, output[one]).replace("%t", str(task))) for one in ("--output", "--error")]
        own = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % (tasks // nodes))}
        own |= {"SLURM_NODEID": str(task // (tasks // nodes)), "SLURM_STEP_ID": "0"}
        out, err = (file.open("a") for file in files)
        started.append(subprocess.Popen(words, env=os.environ | own, stdout=out, stderr=err))
    (place(job) / "tasks").write_text(" ".join(str(one.pid) for one in started))
    return max(abs(one.wait()) for one in started)


def scancel(job: str, *options: str) -> None:
    number = getattr(signal, "SIG" + options[1].removeprefix("SIG")) if options else signal.SIGTERM
    for task in (place(job) / "tasks").read_text().split():
        os.kill(int(task), number)


def scontrol(what: str, job: str) -> None:
    assert what == "requeue", what
    (place(job) / "requeue").touch()
    (place(job) / "requeued").open("a").write(f"{time.time()}\n")
    scancel(job)  # as Slurm does


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for file in sorted(place("").glob("*/state")):
        print(f"{file.parent.name}|{file.read_text() or 'PENDING'}|localhost")


if __name__ == "__main__":
    raise SystemExit(globals()[sys.argv[1]](*sys.argv[2:]))
