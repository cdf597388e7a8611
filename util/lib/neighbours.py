"""Nearest neighbours by the cosine of features, block by block."""
import numpy as np
from tqdm import tqdm

BLOCK = 1024  # rows, at most, whose neighbours are searched at once
AT_ONCE = 1 << 25  # cosines, at most, that are in memory at once


def unit_rows(features):
    """Rows of length 1, float32 [N, D]."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def prepared(features, log):
    """log(1 + x), CleanNet's default normalisation, or x: float32 [N, D] -> float32 [N, D]."""
    return np.log1p(features) if log else np.asarray(features)


def similarities(unit, rows, pool, description):
    """Compares rows with all rows of a pool, with a progress bar.

    Args:
        unit: float32 [N, D], rows of length 1. rows: int [n], indices of the rows to compare. pool: int [P], ascending, indices.
        description: of the bar.

    Yields:
        (index into `rows` of the first of a block, cosines float32 [B, P], -inf for a row and itself).
    """
    among = unit if len(pool) == len(unit) else unit[pool]
    block = max(1, min(BLOCK, AT_ONCE // len(pool)))
    for start in tqdm(range(0, len(rows), block), desc=description, unit="block", disable=None):
        part = rows[start : start + block]
        similarity = unit[part] @ among.T  # [B, P]
        place = np.minimum(np.searchsorted(pool, part), len(pool) - 1)  # of each row itself, if it is in the pool
        own = np.flatnonzero(pool[place] == part)
        similarity[own, place[own]] = -np.inf
        yield start, similarity


def nearest_with_cosine(unit, rows, pool, most):
    """Finds the nearest rows of a pool, but never the row itself.

    Args:
        unit, rows, pool: as in similarities. most: int, below P.

    Returns:
        int [n, most], indices of rows, the nearest first, and their cosines, float32 [n, most].
    """
    found, cosine = np.empty((len(rows), most), np.int64), np.empty((len(rows), most), np.float32)
    for start, similarity in similarities(unit, rows, pool, "nearest neighbours"):
        np.negative(similarity, out=similarity)  # the nearest first
        closest = np.argpartition(similarity, most - 1, axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(similarity, closest, axis=1), axis=1)
        closest, part = np.take_along_axis(closest, order, axis=1), slice(start, start + len(similarity))
        found[part], cosine[part] = pool[closest], -np.take_along_axis(similarity, closest, axis=1)
    return found, cosine


def nearest(unit, rows, pool, most):
    """The indices alone of nearest_with_cosine."""
    return nearest_with_cosine(unit, rows, pool, most)[0]
