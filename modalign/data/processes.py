"""Work on many files in processes that a file may take down with it."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

Job = TypeVar("Job")

AHEAD = 2  # jobs that are handed out for each process
DIED = "the process that worked on it died"


def outcomes(
    work: Callable[[Job], str | None], jobs: Iterable[Job], workers: int
) -> Iterator[tuple[Job, str | None]]:
    """Each job with what `work` returned for it, None or why it failed, as they finish.

    With 0 workers all of it is done here. If a process dies, the jobs that were handed out are done
    again one by one, so that the one that killed it is named and the others are not lost; a job
    may therefore be done twice.
    """
    if not workers:
        yield from ((job, work(job)) for job in jobs)
        return
    waiting, suspects = deque(jobs), deque[Job]()
    while waiting or suspects:
        alone = bool(suspects)
        source, number = (suspects, 1) if alone else (waiting, workers)
        running: dict[Future[str | None], Job] = {}
        # Ctrl-C reaches every process; the one that started them ends them.
        ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(number, get_context("spawn"), *ignore)
        try:
            while source or running:
                while source and len(running) < (1 if alone else number * AHEAD):
                    running[pool.submit(work, source[0])] = source[0]
                    source.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            if alone:
                yield from ((job, DIED) for job in running.values())
            else:
                suspects.extend(running.values())
        finally:
            pool.shutdown(cancel_futures=True)
