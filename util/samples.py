"""Writes blocks of rows as the arrays of SPEC.md section 4: train.npy, val.npy or all.npy, each with its keys."""
import numpy as np
from tqdm import tqdm

from util import arrays, outputs
from util.errors import warn


class _DuplicateCounter:
    """Counts sample keys that came before; eight bytes a key."""

    def __init__(self):
        self._hashes = []

    def add(self, keys):
        self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))

    def count(self):
        hashes = np.concatenate(self._hashes)
        return len(hashes) - len(np.unique(hashes))


def write(blocks, array_path, num_classes, *, grouped, verified, source):
    """Writes an array and its keys, whole or not at all; nothing if there are no rows.

    Args:
        blocks: iterable of rows.Block. array_path: e.g. data/all.npy. grouped: order the rows by class id, else as they come.
        verified: keep the verification label. source: where the rows come from, for messages.

    Returns:
        The number of rows.
    """
    ids, duplicates = [], _DuplicateCounter()
    # Text of the keys, one piece a class (or one in all), which comes out in the order of the rows.
    key_text = [bytearray() for _ in range(num_classes if grouped else 1)]
    with outputs.WholeFile(array_path) as array, outputs.WholeFile(arrays.keys_path(array_path)) as keys:
        for block in blocks:
            if not block.keys:
                continue
            if not ids:
                width = block.features.shape[1] + (2 if verified else 1)
                array.file.write(outputs.npy_header((0, width)))
            ids.append(block.class_ids)
            columns = [block.features, block.class_ids[:, None]] + ([block.labels[:, None]] if verified else [])
            array.file.write(np.concatenate(columns, axis=1, dtype=np.float32).data)
            duplicates.add(block.keys)
            for key, class_id in zip(block.keys, block.class_ids):
                key_text[class_id if grouped else 0] += key.encode() + b"\n"
        if not ids:
            return 0
        ids = np.concatenate(ids)
        for text in key_text:
            keys.file.write(text)
        array.file.seek(0)
        start = array.file.write(outputs.npy_header((len(ids), width)))
        if grouped:
            array.file.flush()
            _permute_rows(array.temporary, start, 4 * width, np.argsort(ids, kind="stable"))
        outputs.commit_pair(array, keys)
    if duplicates.count():
        warn(f"{source}: {duplicates.count()} rows repeat the key of an earlier row; they are kept, but joins by key are ambiguous")
    return len(ids)


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
