"""Writes blocks of rows as the arrays of SPEC.md section 4: train.npy, val.npy or all.npy, each with its keys."""
import os

import numpy as np
from tqdm import tqdm

from util.lib import arrays, atomic, threads
from util.lib.errors import UserError, warn

AT_ONCE = 4 << 20  # bytes of features that are sorted and written at a time


class _DuplicateCounter:
    """Counts sample keys that came before; eight bytes a key."""

    def __init__(self):
        self._hashes = []

    def add(self, keys):
        self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))

    def count(self):
        hashes = np.concatenate(self._hashes)
        return len(hashes) - len(np.unique(hashes))


class _Places:
    """Gives rows their places in a file: the next of their class where the sizes of classes are known, else the next of all."""

    def __init__(self, class_sizes):
        self._class_ids = [] if class_sizes is None else None  # in the order of the places
        self._ends = np.cumsum([np.iinfo(np.int64).max] if class_sizes is None else class_sizes)
        self._first = np.concatenate([[0], self._ends[:-1]])
        self._next = self._first.copy()

    def take(self, class_ids):
        """Gives the next rows, of int32 [n] class ids, their places.

        Returns:
            int64 [n] twice: the rows in the order of their places, and these places; or None: a class has more rows than its size.
        """
        groups = class_ids
        if self._class_ids is not None:
            self._class_ids.append(class_ids)
            groups = np.zeros_like(class_ids)
        order = np.argsort(groups, kind="stable")
        counts = np.bincount(groups, minlength=len(self._next))
        places = np.repeat(self._next - np.cumsum(counts) + counts, counts) + np.arange(len(groups))
        self._next += counts
        return None if (self._next > self._ends).any() else (order, places)

    def count(self):
        """The places taken."""
        return int((self._next - self._first).sum())

    def order_by_class(self):
        """int64 [N], the place of each row when rows are ordered by class, then by place; places not taken come last."""
        if self._class_ids is not None:
            return np.argsort(np.concatenate(self._class_ids), kind="stable")
        free = np.ones(self._next.max(), bool)
        for first, end in zip(self._first, self._next):
            free[first:end] = False
        return np.argsort(free, kind="stable")


def write(blocks, array_path, num_classes, *, grouped, verified, source, class_sizes=None):
    """Writes an array and its keys, whole or not at all; nothing if there are no rows.

    Args:
        blocks: iterable of tsv.Block. array_path: e.g. data/all.npy. grouped: order the rows by class id, else as they come.
        verified: keep the verification label. source: where the rows come from, for messages.
        class_sizes: rows of each class at most, for grouped ones: each is then written where it belongs, else moved at the end.

    Returns:
        The number of rows.
    """
    duplicates, places = _DuplicateCounter(), _Places(class_sizes)
    # Text of the keys, one piece a class (or one in all), which comes out in the order of the rows.
    key_text = [bytearray() for _ in range(num_classes if grouped else 1)]

    def sorted_batches():
        """Yields float32 [n, width] rows and their places, int64 [n], ascending."""
        for batch in _batches(block for block in blocks if block.keys):
            for block in batch:
                duplicates.add(block.keys)
                for key, class_id in zip(block.keys, block.class_ids):
                    key_text[class_id if grouped else 0] += key.encode() + b"\n"
            taken = places.take(np.concatenate([block.class_ids for block in batch]))
            if taken is None:
                raise UserError(f"{source}: has more rows than a moment ago; wait until it is complete and convert it again")
            order, in_file = taken
            yield _joined(batch, order, verified), in_file

    with atomic.WholeFile(array_path) as array, atomic.WholeFile(arrays.keys_path(array_path)) as keys:

        def write_batch(batch):
            _write_rows(array.file, *batch)
            array.file.flush()
            return batch[0].shape[1]

        def sync(width):  # now, while others parse and write, so that little is left at the end
            os.fsync(array.file.fileno())
            return width

        widths = set(threads.in_order(sync, threads.in_order(write_batch, sorted_batches(), 1), 1))
        if not widths:
            return 0
        width, count = widths.pop(), places.count()
        for text in key_text:
            keys.file.write(text)
        array.file.seek(0)
        start = array.file.write(atomic.npy_header((count, width)))
        array.file.flush()
        if grouped:
            _permute_rows(array.temporary, start, 4 * width, places.order_by_class())
        array.file.truncate(start + 4 * width * count)
        atomic.commit_pair(array, keys)
    if duplicates.count():
        warn(f"{source}: {duplicates.count()} rows repeat the key of an earlier row; they are kept, but joins by key are ambiguous")
    return count


def _batches(blocks):
    """Yields lists of consecutive blocks, whose features have at least AT_ONCE bytes together."""
    batch, size = [], 0
    for block in blocks:
        batch.append(block)
        size += block.features.nbytes
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(batch, order, verified):
    """float32 [n, D + 1 or 2]: the rows of blocks, feature and class id and, if verified, label; row order[i] of them is row i."""
    width = batch[0].features.shape[1]
    matrix = np.empty((len(order), width + 1 + verified), np.float32)
    places, done = np.argsort(order), 0
    for block in batch:
        here = places[done : done + len(block.keys)]
        matrix[here, :width] = block.features
        matrix[here, width] = block.class_ids
        if verified:
            matrix[here, width + 1] = block.labels
        done += len(here)
    return matrix


def _write_rows(file, matrix, places):
    """Writes row i of a matrix as the places[i]th, ascending, of the rows of a .npy file."""
    start = len(atomic.npy_header((0, matrix.shape[1])))
    firsts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    for first, end in zip(firsts, [*firsts[1:], len(places)]):
        file.seek(start + int(places[first]) * matrix[0].nbytes)
        file.write(matrix[first:end].data)


def _permute_rows(path, start, size, order):
    """Puts row order[i] of a file in place i, for rows of `size` bytes from `start` on; no second copy is needed on disk.

    Rows move along the cycles of the permutation: each is read once and written once.
    """
    order = memoryview(order)  # as quick as a list, at a quarter of its memory
    held, row = bytearray(size), bytearray(size)
    with (
        open(path, "r+b", buffering=0) as file,
        tqdm(total=len(order), desc="grouping by class", unit="row", disable=None, leave=False, delay=1) as bar,
    ):
        def read(place, into):
            file.seek(start + place * size)
            file.readinto(into)

        def write(place, data):
            file.seek(start + place * size)
            file.write(data)
            order[place] = place
            bar.update()

        for first in range(len(order)):
            if order[first] == first:
                continue
            read(first, held)
            place = first
            while (source := order[place]) != first:
                read(source, row)
                write(place, row)
                place = source
            write(place, held)
