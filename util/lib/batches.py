"""Which rows a person is asked about next: batches leased to one window of a browser, and a share of the rows asked twice.

A module of its own because its rules are easier to read, and to trust, apart from the pages and requests of verify_images.
"""
import itertools
import time
import zlib
from typing import NamedTuple

import numpy as np

from util.lib import decisions

LEASE_SECONDS = 600  # without a sign of life, until a batch may go to somebody else


class Lease(NamedTuple):
    """Who has a row. author, window: str. end: float, seconds of time.monotonic()."""

    author: str
    window: str
    end: float


class Change(NamedTuple):
    """A decision on row number `row`, or an undo. before: how many decisions of the author on the row stood before it."""

    row: int
    label: str
    right_class: str
    before: int


class Batches:
    """Hands out rows and takes decisions on them.

    Args:
        rows: list of (key, class name). log: decisions.Log. repeat: share of the rows that are asked twice, from 0 to 1.
    """

    def __init__(self, rows, log, repeat=0.0):
        self.rows, self.log = rows, log
        self.repeated = np.array([_share(row) < repeat for row in rows], bool)
        self.decided = np.array([self._count(row) for row in rows], np.int32)  # how many decisions stand
        self._leases = {}  # {row number: Lease}

    def _count(self, row, author=None):
        """How many decisions on a row stand, of all authors or of one."""
        by_author = self.log.tally.standing.get(row, {})
        return sum(map(len, by_author.values())) if author is None else len(by_author.get(author, ()))

    def count(self, number, author):
        """How many decisions of an author on row `number` stand."""
        return self._count(self.rows[number], author)

    def take(self, author, window, held, order, size, groups=None):
        """Leases the next rows, of one group only if there are groups.

        Args:
            author, window: str, who asks and from which window of a browser. held: row numbers that the window has already.
            order: int [n], row numbers, the first to ask about first. size: rows per batch, at most. groups: int [N], or None.

        Returns:
            List of row numbers, perhaps empty.
        """
        now = time.monotonic()
        self._leases = {n: lease for n, lease in self._leases.items() if lease.end > now}
        self.renew(author, window, held)
        fresh = order[self.decided[order] == 0]
        once = order[self.repeated[order] & (self.decided[order] == 1)]
        of_others = [n for n in once if not self.count(n, author)]
        mixed = order[np.isin(order, np.concatenate([fresh, np.array(of_others, int)]))] if of_others else fresh
        # Rows that nobody has seen, and among them those to be repeated; when they run out, what this author saw long ago;
        # at last what another window of this author has, perhaps one that is closed.
        for first, rows, take_over in ((fresh, mixed, False), (once, once, False), (fresh, fresh, True)):
            free = self._free(rows, author, window, held, take_over)
            leader = next(iter(self._free(first, author, window, held, take_over)), None)
            if leader is not None:
                batch = list(itertools.islice((n for n in free if groups is None or groups[n] == groups[leader]), size))
                self._lease(author, window, batch)
                return batch
        return []

    def _free(self, rows, author, window, held, take_over):
        """Yields the row numbers that a window may get. take_over: also those that other windows of the same author have."""
        held = set(held)
        for n in rows.tolist():
            lease = self._leases.get(n)
            ours = lease is None or (lease.author == author and (take_over or lease.window == window))
            if ours and n not in held:
                yield n

    def _lease(self, author, window, numbers):
        self._leases |= dict.fromkeys(numbers, Lease(author, window, time.monotonic() + LEASE_SECONDS))

    def renew(self, author, window, held):
        """Lengthens the leases of a window on rows that it has, and leases those that nobody has, unless the author decided them."""
        leases = {n: self._leases.get(n) for n in held}
        self._lease(author, window, [
            n for n, lease in leases.items() if (lease.author == author if lease else not self.count(n, author))
        ])

    def release(self, author, window):
        """Gives back the leases of a window that closes."""
        self._leases = {n: lease for n, lease in self._leases.items() if (lease.author, lease.window) != (author, window)}

    def with_others(self, author):
        """The number of rows that other people have."""
        return sum(lease.author != author and lease.end > time.monotonic() for lease in self._leases.values())

    def decide(self, author, window, changes):
        """Writes decisions to disk. A request that is sent again, since its answer was lost, changes nothing.

        Args:
            changes: list of Change, each of another row.

        Returns:
            None, or why nothing was written, in words.
        """
        new = []
        for change in changes:
            row = self.rows[change.row]
            if self.count(change.row, author) == change.before and (change.before or change.label != decisions.UNDO):
                new.append(decisions.make(*row, change.label, author, change.right_class))
            elif not self._is_done(author, change):
                return f'"{row[0]}" was decided by {author} in another window meanwhile; reload the page'
        why = "a row is in the request twice" if len({change.row for change in changes}) < len(changes) else None
        why = why or next(filter(None, map(decisions.why_not, new)), None)
        if why:
            return why
        if new:
            self.log.append(new)
        for change in changes:
            self.decided[change.row] = self._count(self.rows[change.row])
            self._leases.pop(change.row, None)
        self._lease(author, window, [change.row for change in changes if change.label == decisions.UNDO])
        return None

    def _is_done(self, author, change):
        """Whether a change has been made already, by a request whose answer was lost."""
        standing = self.log.tally.standing.get(self.rows[change.row], {}).get(author, [])
        if change.label == decisions.UNDO:
            return len(standing) == change.before - 1
        last = standing[-1] if len(standing) == change.before + 1 else None
        return last is not None and (last.label, last.right_class) == (change.label, change.right_class)

    def progress(self, among=slice(None)):
        """(answers so far, answers in all): a row that is asked twice needs two. among: bool [N], some rows; by default all."""
        needed = (1 + self.repeated)[among]
        return int(np.minimum(self.decided[among], needed).sum()), int(needed.sum())

    def agreement(self):
        """(how many rows were decided twice or more with one label, how many were decided twice or more)."""
        twice = np.flatnonzero(self.decided > 1).tolist()
        labels = [{d.label for own in self.log.tally.standing[self.rows[n]].values() for d in own} for n in twice]
        return sum(len(found) == 1 for found in labels), len(twice)

    def last_decided(self, author, most):
        """The row numbers of the last decisions of an author that stand, at most `most`, oldest first."""
        numbers = {self.rows[n]: n for n in np.flatnonzero(self.decided).tolist()}
        latest = dict.fromkeys(row for row, _ in reversed(self.log.tally.in_order.get(author, {})) if row in numbers)
        return [numbers[row] for row in latest][:most][::-1]


def _share(row):
    """A number from 0 to 1 by the row alone, so that a restart repeats the same rows."""
    return zlib.crc32("\t".join(row).encode()) / 2**32
