"""How good scores are: error rates, and the choice of a threshold.

A row is taken for correct where its score is at or above the threshold. Labels: 1 = label correct, 0 = mislabeled.
"""
import math

import numpy as np

from util.lib.errors import UserError

FIXED_THRESHOLD = 0.1  # the paper's, also the margin inside its loss; what `auto` is compared with


def parse_threshold(text):
    """The value of --val_sim_thres: a float, or None for `auto`."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f'--val_sim_thres={text}: expected a number, e.g. 0.1, or "auto"')
    return value


def mean_cosine_loss(cosines, labels, neg_weight):
    """Mean of L_cos (SPEC.md section 7, model.cosine_loss) over the rows that have a score; float [N], int [N]."""
    loss = np.where(labels == 1, 1 - cosines, neg_weight * np.maximum(0, cosines - FIXED_THRESHOLD))
    return float(np.nanmean(loss)) if np.isfinite(loss).any() else None


def error_rate_by_class(decisions, labels, class_ids, num_classes):
    """Share of wrong decisions among the rows given each class.

    Args:
        decisions: bool [N], True = taken for correct. labels: int [N]. class_ids: int [N].

    Returns:
        float64 [C], NaN for classes without rows.
    """
    wrong = np.bincount(class_ids, weights=decisions != (labels == 1), minlength=num_classes)
    rows = np.bincount(class_ids, minlength=num_classes)
    return np.divide(wrong, rows, out=np.full(num_classes, np.nan), where=rows > 0)


def average_error_rate(decisions, labels, class_ids):
    """The paper's metric (section 4.1): the mean over the classes that have rows of their error rates."""
    if not len(labels):
        return float("nan")
    return float(np.nanmean(error_rate_by_class(decisions, labels, class_ids, int(class_ids.max()) + 1)))


def best_threshold(scores, labels, class_ids):
    """The threshold with the lowest average error rate over classes on these rows.

    Args:
        scores: float [N]. labels: int [N]. class_ids: int [N].

    Returns:
        float, halfway between two scores; of several equally good ones the middle one.
    """
    rows = np.bincount(class_ids)
    weight = 1.0 / (rows[class_ids] * np.count_nonzero(rows))  # of a wrong decision, in the average over classes
    order = np.argsort(scores, kind="stable")
    scores, weight, correct = scores[order].astype(np.float64), weight[order], labels[order] == 1
    # errors[i]: the threshold lies in front of sorted row i, so that rows 0 .. i-1 are taken for mislabeled.
    errors = np.concatenate([[0.0], np.cumsum(np.where(correct, weight, -weight))]) + weight[~correct].sum()
    edges = np.concatenate([[2 * scores[0] - scores[-1] - 1], scores, [2 * scores[-1] - scores[0] + 1]])
    between = np.flatnonzero(np.diff(edges) > 0)  # equal scores cannot be told apart
    best = between[np.flatnonzero(errors[between] <= errors[between].min() + 1e-12)]
    i = best[(len(best) - 1) // 2]
    return float((edges[i] + edges[i + 1]) / 2)


def halves(labels, class_ids, seed=0):
    """Splits rows into two halves with as even a share of every class and label as can be. Returns int [N] of 0 and 1."""
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels, class_ids))
    half = np.empty(len(labels), np.int64)
    half[order] = np.arange(len(labels)) % 2
    return half


def cross_fitted_decisions(scores, labels, class_ids, choose_on=None):
    """Decides rows at thresholds that were chosen on other rows, so that the error is an honest one.

    Each half of the rows that thresholds are chosen on gets the best threshold of the other half; rows that none is chosen on get the
    best threshold of all that one is, which inference would use.

    Args:
        choose_on: bool [N], the rows that thresholds may be chosen on (those of kept classes), or None: all.

    Returns:
        bool [N], True = taken for correct.
    """
    half = halves(labels, class_ids)
    choose_on = np.ones(len(labels), bool) if choose_on is None else choose_on
    decisions = scores >= best_threshold(scores[choose_on], labels[choose_on], class_ids[choose_on])
    for part in (0, 1):
        decided, other = (half == part) & choose_on, (half != part) & choose_on
        if other.any():
            decisions[decided] = scores[decided] >= best_threshold(scores[other], labels[other], class_ids[other])
    return decisions


def evaluate(scores, labels, class_ids, threshold, heldout_ids=()):
    """What a validation reports.

    Args:
        scores: float [N]; rows without a score (NaN) are left out and counted. threshold: float.
        heldout_ids: ids of held-out classes, measured apart; the others alone choose the threshold.

    Returns:
        A dict: threshold, chosen_threshold and, under `fixed` (at threshold) and `chosen` (cross-fitted), `accuracy` and
        `average_error_rate` of all rows; `kept_...` and `heldout_...` where classes are held out. None: undefined.
    """
    scored = np.isfinite(scores)
    scores, labels, class_ids = scores[scored], labels[scored], class_ids[scored]
    heldout = np.isin(class_ids, list(heldout_ids))
    result = {"rows": len(scores), "rows_without_score": int((~scored).sum()), "threshold": threshold}
    groups = {"": np.ones(len(scores), bool)}
    if len(heldout_ids):
        groups |= {"kept_": ~heldout, "heldout_": heldout}
    kept = ~heldout
    chosen = best_threshold(scores[kept], labels[kept], class_ids[kept]) if kept.any() else None
    result["chosen_threshold"] = chosen
    decisions = {"fixed": scores >= threshold}
    if chosen is not None:
        decisions["chosen"] = cross_fitted_decisions(scores, labels, class_ids, choose_on=kept)
    for name, decided in decisions.items():
        result[name] = {}
        for prefix, rows in groups.items():
            some = bool(rows.any())
            accuracy = float(np.mean(decided[rows] == (labels[rows] == 1))) if some else None
            error = average_error_rate(decided[rows], labels[rows], class_ids[rows]) if some else None
            result[name] |= {f"{prefix}accuracy": accuracy, f"{prefix}average_error_rate": error}
    return result
