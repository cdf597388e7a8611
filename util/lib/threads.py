"""Runs a function on many items in several threads and keeps the results in order."""
import collections
import os
from concurrent.futures import ThreadPoolExecutor

MOST = 8  # threads that are started unless more are asked for


def count(asked):
    """The number of threads to start: `asked`, or for 0 one per core that this process may use, at most MOST."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or min(cores, MOST)


def in_order(function, items, num_threads, ahead=None):
    """Yields function(item) of every item, in the order of the items.

    Args:
        function: called in the threads. items: an iterable, read in the caller's thread.
        ahead: results that are computed while the caller works on one, which bounds the memory; None: two per thread.
    """
    ahead = ahead or 2 * num_threads
    running = collections.deque()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for item in items:
                running.append(threads.submit(function, item))
                if len(running) > ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
