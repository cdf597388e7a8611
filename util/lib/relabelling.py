"""From which cosine on a mislabeled row is taken for an image of its nearest class: chosen so that a share of the new classes is right.

A module of its own because export_weights.py tells what becomes of each row, and this which rows get another class. Cosines are to the
best class other than the given one. How well these limits keep their promise is in docs/results.md.
"""
import numpy as np


def limit_by_absence(absent, cosines, precision):
    """The lowest limit at which chance explains at most a share 1 - precision of the rows that reach it.

    Where a label is correct, the true class is the given one, so each other class is wrong: such rows show which cosines an image
    reaches whose class is absent. This is the procedure of Benjamini and Hochberg (1995) on conformal p-values.

    Args:
        absent: float [V], of rows that are verified correct. cosines: float [N], of rows taken for mislabeled. precision: float.

    Returns:
        float, one of `cosines`; infinite where no limit keeps the promise.
    """
    falling = np.sort(cosines)[::-1]
    reached = len(absent) - np.searchsorted(np.sort(absent), falling)
    by_chance = len(cosines) * (reached + 1) / (len(absent) + 1)
    return _lowest(falling, by_chance <= (1 - precision) * np.arange(1, len(cosines) + 1))


def limit_by_decisions(cosines, is_right, precision):
    """The lowest limit at which people found at least a share `precision` of the rows that reach it to be of their nearest class.

    Args:
        cosines: float [N], of rows taken for mislabeled that people decided. is_right: bool [N]. precision: float.

    Returns:
        float, one of `cosines`; infinite where no limit keeps the promise. One wrong row is added for the rows that nobody decided.
    """
    order = np.argsort(-cosines, kind="stable")
    wrong, rows = np.cumsum(~is_right[order]) + 1, np.arange(1, len(order) + 1) + 1
    falling = cosines[order]
    last_of_equals = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    return _lowest(falling, last_of_equals & (wrong <= (1 - precision) * rows))


def _lowest(falling, keeps):
    """The last of the falling cosines, float [N], whose limit keeps the promise, bool [N]."""
    return float(falling[np.flatnonzero(keeps)[-1]]) if keeps.any() else np.inf
