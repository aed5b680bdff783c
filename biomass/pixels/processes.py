"""Work that is shared out among processes, each of which gets what it needs once and not with every piece."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_task: Callable[[Any], Any] | None = None  # of this worker process


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets us finish our piece
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _run(item: Any) -> Any:
    assert _task is not None
    return _task(item)


@contextmanager
def as_they_end(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int | None
) -> Iterator[Iterator[Result]]:
    """The results of a task for some items as they are finished, in any order.

    After an error those that were not begun are not.

    Args:
        task: is sent to every process once; must survive pickling.
        items: what it is called with.
        workers: processes; as many as there are cores if left out; with 0 or 1, this one does all, in order.

    >>> with as_they_end(abs, [-3, 2, -1], workers=1) as results:
    ...     list(results)
    [3, 2, 1]
    """
    count = min(count_cores() if workers is None else workers, len(items))
    if count < 2:
        yield map(task, items)
        return
    with ProcessPoolExecutor(count, initializer=_start, initargs=(task,)) as pool:
        try:
            jobs = [pool.submit(_run, item) for item in items]
            yield (job.result() for job in as_completed(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
