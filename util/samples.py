"""Writes blocks of rows as the arrays of SPEC.md section 4: train.npy, val.npy or all.npy, each with its keys."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from util import arrays, outputs
from util.errors import warn

NUMBERS_AT_ONCE = 1 << 22  # that grouping by class holds in memory, a few times


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
    with outputs.WholeFile(array_path) as spool, outputs.WholeFile(arrays.keys_path(array_path)) as keys:
        for block in blocks:
            if not block.keys:
                continue
            if not ids:
                width = block.features.shape[1] + (2 if verified else 1)
                spool.file.write(outputs.npy_header((0, width)))
            ids.append(block.class_ids)
            columns = [block.features, block.class_ids[:, None]] + ([block.labels[:, None]] if verified else [])
            spool.file.write(np.concatenate(columns, axis=1, dtype=np.float32).data)
            duplicates.add(block.keys)
            for key, class_id in zip(block.keys, block.class_ids):
                key_text[class_id if grouped else 0] += key.encode() + b"\n"
        if not ids:
            return 0
        ids = np.concatenate(ids)
        for text in key_text:
            keys.file.write(text)
        spool.file.seek(0)
        spool.file.write(outputs.npy_header((len(ids), width)))
        if not grouped or np.all(np.diff(ids) >= 0):
            outputs.commit_pair(spool, keys)
        else:
            spool.file.flush()
            with outputs.WholeFile(array_path, suffix="grouped") as array:
                array.file.write(outputs.npy_header((len(ids), width)))
                _write_permuted(np.load(spool.temporary, mmap_mode="r"), np.argsort(ids, kind="stable"), array.file)
                outputs.commit_pair(array, keys)
    if duplicates.count():
        warn(f"{source}: {duplicates.count()} rows repeat the key of an earlier row; they are kept, but joins by key are ambiguous")
    return len(ids)


def _write_permuted(source, order, out):
    """Writes rows `order` of a memory-mapped array to an open file; the next rows are read while some are written."""
    size = max(1, NUMBERS_AT_ONCE // source.shape[1])
    starts = list(range(0, len(order), size))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(lambda: source[order[:size]])
        for start in tqdm(starts, desc="grouping by class", unit="block", disable=None, leave=False, delay=1):
            block = ahead.result()
            ahead = reader.submit(lambda start=start: source[order[start + size : start + 2 * size]])
            out.write(block.data)
