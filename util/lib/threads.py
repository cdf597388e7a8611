"""Work done by threads, side by side, with the results in order."""
import collections
import os
from concurrent.futures import ThreadPoolExecutor

MOST = 8  # threads that are started unless more are asked for


def count(asked):
    """The threads to start: as many as asked for, or for 0 one a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or min(cores, MOST)


def in_order(function, items, num_threads):
    """Yields function(item) of every item in the items' order. Few items are taken ahead, so memory stays bounded."""
    running = collections.deque()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for item in items:
                running.append(threads.submit(function, item))
                if len(running) > 2 * num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
