"""Nearest neighbours by the cosine of features, block by block."""
import numpy as np
from tqdm import tqdm

BLOCK = 1024  # rows whose neighbours are searched at once


def unit_rows(features):
    """Rows of length 1, float32 [N, D]."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def prepared(features, log):
    """log(1 + x), CleanNet's default normalisation, or x: float32 [N, D] -> float32 [N, D]."""
    return np.log1p(features) if log else np.asarray(features)


def nearest(unit, rows, pool, most):
    """Finds the nearest rows of a pool, but never the row itself.

    Args:
        unit: float32 [N, D], rows of length 1. rows: int [n], indices of the rows whose neighbours are wanted.
        pool: int [P], ascending, indices of the rows that may be neighbours. most: int, below P.

    Returns:
        int [n, most], indices of rows, the nearest first.
    """
    found = np.empty((len(rows), most), np.int64)
    among = unit if len(pool) == len(unit) else unit[pool]
    for start in tqdm(range(0, len(rows), BLOCK), desc="nearest neighbours", unit="block", disable=None):
        part = rows[start : start + BLOCK]
        similarity = unit[part] @ among.T  # [B, P]
        place = np.minimum(np.searchsorted(pool, part), len(pool) - 1)  # of each row itself, if it is in the pool
        own = np.flatnonzero(pool[place] == part)
        similarity[own, place[own]] = -np.inf
        closest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similarity, closest, axis=1), axis=1)
        found[start : start + BLOCK] = pool[np.take_along_axis(closest, order, axis=1)]
    return found
