"""From which cosine on a mislabeled row is taken for an image of its nearest class: chosen so that a share of the new classes is right.

A module of its own because export_weights.py tells what becomes of each row, and this which rows get another class. Cosines are to the
best class other than the given one. How well these limits keep their promise is in docs/results.md.
"""
import math

import numpy as np
from scipy import special

from util.lib import calibration


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


def least_rows(precision):
    """How many rows it takes at least for a promise, an int: with one wrong row more, the promised share of them can be right."""
    return math.ceil(round(1 / (1 - precision), 6)) - 1


def limit_by_decisions(cosines, is_right, precision, of_all):
    """The lowest limit at which a share `precision` of the rows that reach it is right, by two estimates: of their nearest class.

    One is a logistic curve of the cosine, fitted to what people decided. The other is the share of the decided rows that reach the limit.
    Alone, that would find the luckiest of many limits, and the curve would go on rising where the share does not.

    Args:
        cosines: float [n], of rows taken for mislabeled that people decided. is_right: bool [n]. precision: float.
        of_all: float [N], the cosines of all rows taken for mislabeled.

    Returns:
        float, one of `of_all`; infinite where no limit keeps the promise. One wrong row is added, at the highest cosine.
    """
    if len(cosines) < least_rows(precision):
        return np.inf
    centre, deviation = cosines.mean(), max(cosines.std(), 1e-6)
    slope, intercept = calibration.fit_map((np.append(cosines, cosines.max()) - centre) / deviation, np.append(is_right, False))
    falling, rows = np.sort(of_all)[::-1], np.arange(1, len(of_all) + 1)
    fitted = np.cumsum(special.expit(slope * (falling - centre) / deviation + intercept)) >= precision * rows
    reached, right = (len(part) - np.searchsorted(np.sort(part), falling) for part in (cosines, cosines[is_right]))
    counted = right >= precision * (reached + 1)
    last_of_equals = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    return _lowest(falling, fitted & counted & last_of_equals & (falling >= cosines.min()))


def _lowest(falling, keeps):
    """The last of the falling cosines, float [N], whose limit keeps the promise, bool [N]."""
    return float(falling[np.flatnonzero(keeps)[-1]]) if keeps.any() else np.inf
