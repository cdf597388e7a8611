"""Shifts the probabilities of each class by the share of mislabeled rows that its confident joint tells. Needs no verified row.

    shares, counts = confident_joint.shares_mislabeled(blocks, class_ids, probability, num_classes)
    shifted = confident_joint.shift_classes(probability, class_ids, shares, counts)

A module of its own because train_classifier.py trains, and this is right for probabilities of any classifier.
"""
import numpy as np
from scipy import special

from util.lib import arrays, calibration

CUT_SPREAD = 1.0  # the deviation of the cuts of classes, in logits
CUTS = np.linspace(-40, 40, 801)  # how far a cut may be from that of all rows: as far as two logits
LEAST_VARIANCE = 0.01  # of whether a row is mislabeled, in classes where none seems to be, or all


def shares_mislabeled(blocks, class_ids, probability, num_classes):
    """The share of mislabeled rows of each class, by the confident joint (Northcutt et al., 2021).

    A row counts for its most probable class among those whose probability is at least the mean that rows given that class have of it.
    It is mislabeled if that is another than its own.

    Args:
        blocks: yields (first row, float32 [n, C]), probabilities out of fold. class_ids: int [N], the given classes.
        probability: float [N], of these. num_classes: int, C.

    Returns:
        (float64 [C], 0 where no row counts; int64 [C], how many rows count).
    """
    rows = np.bincount(class_ids, minlength=num_classes)
    typical = np.bincount(class_ids, probability, num_classes) / np.maximum(rows, 1)  # [C]
    typical[rows == 0] = np.inf
    counts, as_given = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for start, block in blocks:
        given = class_ids[start : start + len(block)]
        likely = np.where(block >= typical, block, -1)
        most, own = likely.max(axis=1), likely[np.arange(len(block)), given]
        counts += np.bincount(given[most >= 0], minlength=num_classes)
        as_given += np.bincount(given[(most >= 0) & (own == most)], minlength=num_classes)
    return 1 - np.divide(as_given, counts, out=np.ones(num_classes), where=counts > 0), counts


def shift_classes(probability, class_ids, shares, counts):
    """Shifts the logits of each class towards a share of its rows below calibration.EVEN.

    A share is an estimate, off by chance as a share of so many rows is (binomial). The cuts of the classes, which EVEN is shifted to, are
    normal around that of all rows. The most likely cut is taken. So a share is met where many rows lie at that cut, and where rows
    are few and far from each other, the common cut stays.

    Args:
        probability: float [N]. class_ids: int [N]. shares: float [C]. counts: int [C], of the rows that tell each of them.

    Returns:
        float32 [N].
    """
    x = calibration.logits(probability)
    common = np.quantile(x, np.mean(shares[class_ids]))
    for share, count, rows in zip(shares, counts, arrays.rows_by_class(class_ids, len(shares))):
        if len(rows):
            below = np.searchsorted(np.sort(x[rows]), common + CUTS) / len(rows)
            misfit = (below - share) ** 2 * count / max(share * (1 - share), LEAST_VARIANCE)
            x[rows] -= common + CUTS[np.argmin(misfit + (CUTS / CUT_SPREAD) ** 2)]
    return special.expit(x).astype(np.float32)
