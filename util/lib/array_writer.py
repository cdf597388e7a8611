"""Writes rows, block by block, as the arrays of docs/formats.md: train.npy, val.npy or all.npy, each with its keys."""
import os

import numpy as np
from tqdm import tqdm

from util.lib import arrays, atomic, checksums, class_list, threads
from util.lib.errors import UserError, counted, warn

AT_ONCE = 4 << 20  # bytes of features that are sorted and written together


class _Keys:
    """The sample keys of the rows, as text per class (or one text, for rows that are not grouped), and their hashes."""

    def __init__(self, num_classes, grouped):
        self._grouped, self._hashes = grouped, []
        self._texts = [bytearray() for _ in range(num_classes if grouped else 1)]

    def add(self, keys, class_ids):
        """Adds the keys of the next rows. keys: list of str [n]. class_ids: int32 [n]."""
        self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))  # eight bytes per key
        for key, class_id in zip(keys, class_ids):
            self._texts[class_id if self._grouped else 0] += key.encode() + b"\n"

    def write(self, file):
        """Writes a key per line, in the order of the rows in the array, to a binary file."""
        for text in self._texts:
            file.write(text)

    def num_repeated(self):
        """The number of keys that an earlier row has too."""
        hashes = np.concatenate(self._hashes)
        return len(hashes) - len(np.unique(hashes))


class _RowIndices:
    """Gives every row its index in the file: the next one of its class if class sizes are known, else the next of all.

    Args:
        class_sizes: int [num_class], the most rows that each class may have; None: unknown.
    """

    def __init__(self, class_sizes):
        self._class_ids = [] if class_sizes is None else None  # in the order of the indices
        self._ends = np.cumsum([np.iinfo(np.int64).max] if class_sizes is None else class_sizes)
        self._first = np.concatenate([[0], self._ends[:-1]])
        self._next = self._first.copy()

    def take(self, class_ids):
        """Gives indices to the next rows, of int32 [n] class ids.

        Returns:
            (order, indices), int64 [n] each: row order[i] gets indices[i], ascending. None: a class has too many rows.
        """
        groups = class_ids
        if self._class_ids is not None:
            self._class_ids.append(class_ids)
            groups = np.zeros_like(class_ids)
        order = np.argsort(groups, kind="stable")
        counts = np.bincount(groups, minlength=len(self._next))
        indices = np.repeat(self._next - np.cumsum(counts) + counts, counts) + np.arange(len(groups))
        self._next += counts
        return None if (self._next > self._ends).any() else (order, indices)

    def count(self):
        """The number of indices given."""
        return int((self._next - self._first).sum())

    def order_by_class(self):
        """The order of the rows by class, then by index: int64 [N], indices. Those that no row was given come last."""
        if self._class_ids is not None:
            return np.argsort(np.concatenate(self._class_ids), kind="stable")
        free = np.ones(self._next.max(), bool)
        for first, end in zip(self._first, self._next):
            free[first:end] = False
        return np.argsort(free, kind="stable")


def write_references(path, references, class_names, source=None):
    """Writes ref.npy with its checksums, both or neither, and keeps the class list beside them.

    Args:
        path: of ref.npy. references: float32 [C, R, D]. class_names: list of str [C].
        source: arrays.FeatureArray that they were found on, if any.
    """
    written = {os.path.basename(path): checksums.of(references), "classes.txt": checksums.of_class_list(class_names)}
    if source:
        written[os.path.basename(source.path)] = source.checksum
    with atomic.WholeFile(path) as array, atomic.WholeFile(checksums.beside(path)) as tie:
        atomic.write_array(array.file, references)
        tie.file.write(atomic.json_text(written).encode())
        class_list.keep_beside(os.path.dirname(path), class_names)
        atomic.commit_together(array, tie)


def write(blocks, array_path, class_names, *, grouped, verified, source, class_sizes=None):
    """Writes an array and its keys, whole or not at all; nothing if there are no rows.

    Args:
        blocks: iterable of tsv.Block. array_path: e.g. data/all.npy. class_names: list of str, kept beside the array.
        verified: keep the verification label.
        grouped: order the rows by class id; False: as given. source: where the rows come from, for messages.
        class_sizes: int [num_class], the most rows of each class, for grouped ones. With it every row is written to its
            final index; without it rows are moved at the end.

    Returns:
        The number of rows.
    """
    key_texts, indices = _Keys(len(class_names), grouped), _RowIndices(class_sizes)
    with (
        atomic.WholeFile(array_path) as array,
        atomic.WholeFile(checksums.beside(array_path)) as tie,
        atomic.WholeFile(arrays.keys_path(array_path)) as keys,
    ):

        def write_rows(rows):
            _write_rows(array.file, *rows)
            array.file.flush()
            return rows[0].shape[1]

        def sync(width):  # to disk now, while others parse and write, so that little is left at the end
            os.fsync(array.file.fileno())
            return width

        rows = _sorted_rows(blocks, key_texts, indices, verified, source)
        widths = set(threads.in_order(sync, threads.in_order(write_rows, rows, 1), 1))
        if not widths:
            return 0
        width, count = widths.pop(), indices.count()
        key_texts.write(keys.file)
        array.file.seek(0)
        start = array.file.write(atomic.npy_header((count, width)))
        array.file.flush()
        if grouped:
            _permute_rows(array.temporary, start, 4 * width, indices.order_by_class())
        array.file.truncate(start + 4 * width * count)
        keys.finish()
        written = {
            os.path.basename(array_path): checksums.of_file(array.temporary, start),
            os.path.basename(keys.path): checksums.of_file(keys.temporary), "classes.txt": checksums.of_class_list(class_names),
        }
        tie.file.write(atomic.json_text(written).encode())
        class_list.keep_beside(os.path.dirname(array_path), class_names)
        atomic.commit_together(array, tie, keys)
    if repeated := key_texts.num_repeated():
        repeat = "repeats" if repeated == 1 else "repeat"
        rows = counted(repeated, "row")
        warn(f"{source}: {rows} {repeat} the key of an earlier row; all rows are kept, but joins by key are ambiguous")
    return count


def _sorted_rows(blocks, key_texts, indices, verified, source):
    """Takes the indices of the rows in blocks, AT_ONCE bytes together, and adds their keys to key_texts.

    Yields:
        (float32 [n, width], the rows as the array holds them; int64 [n], their indices in it, ascending).
    """
    for part in _in_parts(block for block in blocks if block.keys):
        for block in part:
            key_texts.add(block.keys, block.class_ids)
        taken = indices.take(np.concatenate([block.class_ids for block in part]))
        if taken is None:
            raise UserError(
                f"{source}: has more rows than a moment ago; wait until it is complete and convert it again"
            )
        order, in_file = taken
        yield _joined(part, order, verified), in_file


def _in_parts(blocks):
    """Yields lists of consecutive blocks, whose features have at least AT_ONCE bytes together."""
    part, size = [], 0
    for block in blocks:
        part.append(block)
        size += block.features.nbytes
        if size >= AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _joined(blocks, order, verified):
    """The rows of blocks in another order: feature, class id and, if verified, label.

    Returns:
        float32 [n, D + 1 or D + 2], whose row i is row order[i] of the blocks.
    """
    width = blocks[0].features.shape[1]
    matrix = np.empty((len(order), width + 1 + verified), np.float32)
    targets, done = np.argsort(order), 0
    for block in blocks:
        here = targets[done : done + len(block.keys)]
        matrix[here, :width] = block.features
        matrix[here, width] = block.class_ids
        if verified:
            matrix[here, width + 1] = block.labels
        done += len(here)
    return matrix


def _write_rows(file, matrix, indices):
    """Writes row i of a matrix as row indices[i], ascending, of a .npy file."""
    start = len(atomic.npy_header((0, matrix.shape[1])))
    firsts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    for first, end in zip(firsts, [*firsts[1:], len(indices)]):
        file.seek(start + int(indices[first]) * matrix[0].nbytes)
        file.write(matrix[first:end].data)


def _permute_rows(path, start, size, order):
    """Moves row order[i] of a file to index i, for rows of `size` bytes from offset `start` on.

    Rows move along the cycles of the permutation: each is read once and written once, without a second copy on disk.
    """
    order = memoryview(order)  # as quick as a list, at a quarter of its memory
    held, row = bytearray(size), bytearray(size)
    with (
        open(path, "r+b", buffering=0) as file,
        tqdm(total=len(order), desc="grouping by class", unit="row", disable=None, leave=False, delay=1) as bar,
    ):
        def read(index, into):
            file.seek(start + index * size)
            file.readinto(into)

        def write(index, data):
            file.seek(start + index * size)
            file.write(data)
            order[index] = index
            bar.update()

        for first in range(len(order)):
            if order[first] == first:
                continue
            read(first, held)
            index = first
            while (source := order[index]) != first:
                read(source, row)
                write(index, row)
                index = source
            write(index, held)
