"""How good scores are: error rates, the choice of a threshold, and the one evaluation that all commands report.

A label is taken for correct where the row's score is at or above the threshold. Labels: 1 = label correct, 0 = mislabeled.
"""
from typing import NamedTuple

import numpy as np

from util.lib.errors import counted, warn

FIXED_THRESHOLD = 0.1  # the paper's, also the margin of its loss; reported beside a chosen one
MOST_PROBABLE = 0.15  # probability above which no label is taken for wrong while no row is verified
GROUPS = ("all", "kept", "heldout")  # of classes, in an evaluation; the last two where classes are held out
SPLITS = 10  # random splits into halves, over which a cross-fitted measure is averaged


def mean_cosine_loss(cosines, labels, neg_weight):
    """Mean of L_cos (model.cosine_loss) over the rows that have a cosine: float [N], int [N] -> float, or None for no such row."""
    loss = np.where(labels == 1, 1 - cosines, neg_weight * np.maximum(0, cosines - FIXED_THRESHOLD))
    return float(np.nanmean(loss)) if np.isfinite(loss).any() else None


def wrong_decisions(decisions, labels):
    """How far each decision is from the truth: bool or float [N], as in evaluate_group, and int [N] -> float64 [N], 0 = right."""
    return np.abs(np.asarray(decisions, np.float64) - (labels == 1))


def error_rate_by_class(decisions, labels, class_ids, num_classes):
    """Share of wrong decisions among the rows given each class.

    Args:
        decisions: bool or float [N], as in evaluate_group. labels: int [N]. class_ids: int [N].

    Returns:
        float64 [C], NaN for classes without rows.
    """
    wrong = np.bincount(class_ids, weights=wrong_decisions(decisions, labels), minlength=num_classes)
    rows = np.bincount(class_ids, minlength=num_classes)
    return np.divide(wrong, rows, out=np.full(num_classes, np.nan), where=rows > 0)


def average_error_rate(decisions, labels, class_ids):
    """The paper's metric (section 4.1): the mean over the classes that have rows of their error rates."""
    if not len(labels):
        return float("nan")
    return float(np.nanmean(error_rate_by_class(decisions, labels, class_ids, int(class_ids.max()) + 1)))


def best_threshold(scores, labels, class_ids):
    """The threshold with the lowest average error rate over classes on the given rows.

    Args:
        scores: float [N]. labels: int [N]. class_ids: int [N].

    Returns:
        float, halfway between two scores; the middle one of several that are equally good.
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


def estimate_threshold(scores, score):
    """A threshold from scores alone, for want of verified rows: where two groups of scores part best (docs/choosing.md).

    Otsu's method: the split with the largest variance between the means of the two groups. Probabilities are split by their
    logits, and never above MOST_PROBABLE: where few labels are wrong, the lower group is of images that are hard.

    Args:
        scores: float [N], finite, not all equal. score: one of score_table.SCORES.
    """
    values = np.sort(scores.astype(np.float64))
    if score == "probability":
        values = np.clip(values, 1e-9, 1 - 1e-9)
        values = np.log(values / (1 - values))
    below = np.cumsum(values)[:-1]
    count = np.arange(1, len(values))
    means = below / count, (values.sum() - below) / (len(values) - count)
    i = int(np.argmax(count * (len(values) - count) * (means[1] - means[0]) ** 2))
    threshold = (values[i] + values[i + 1]) / 2
    return float(min(1 / (1 + np.exp(-threshold)), MOST_PROBABLE)) if score == "probability" else float(threshold)


def fdr_threshold(scores, verified_scores, labels, rate):
    """The highest threshold below which at most a share of the rows is expected to be correct; -inf, and a warning, for none.

    Benjamini and Hochberg's rule (1995) on p-values from verified correct rows (Bates et al., 2023), p = (1 + how many of these
    score as low) / (1 + their number), times the share of correct rows. So of N rows, N (1 + c) / (1 + n) below a threshold are
    expected to be correct, where c of the n verified rows are correct and below it.

    Args:
        scores: float [N], of all rows; NaN is left out. verified_scores: float [n], of a random sample of them, finite.
        labels: int [n], 1 = label correct. rate: float, the share.
    """
    scores = np.sort(scores[np.isfinite(scores)].astype(np.float64))
    correct = np.sort(verified_scores[labels == 1].astype(np.float64))
    expected = len(scores) * (1 + np.searchsorted(correct, scores, side="right")) / (1 + len(labels))  # correct ones up to each row
    flagged = np.searchsorted(scores, scores, side="right")  # rows up to each row; equal scores cannot be told apart
    good = np.flatnonzero(expected <= rate * flagged)
    if not len(good):
        by = counted(len(labels), "verified row")
        warn(f"fdr:{rate:g} flags no row, by {by}; verify more rows for validation, or allow a larger share")
        return -np.inf
    last = flagged[good[-1]]
    return float((scores[last - 1] + scores[last]) / 2) if last < len(scores) else float(scores[-1]) + 1


def wilson_interval(share, rows):
    """The 95 % interval of a share that was found among independent rows, by Wilson (1927): float, float -> (low, high)."""
    z = 1.959964
    centre, half = share + z**2 / (2 * rows), z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    low, high = ((centre + side * half) / (1 + z**2 / rows) for side in (-1, 1))
    return float(max(0, min(low, share))), float(min(1, max(high, share)))  # despite rounding


def split_evenly(num_parts, *columns, seed=0):
    """Splits rows at random into parts, each combination of some columns, int [N], as evenly as possible. Returns int [N], the parts.

    Rows are dealt to the parts in turn, group by group, and groups come in random order at each level. In a fixed order, of each two
    rows of a class of which one is mislabeled, that one would go to the first part.
    """
    rng = np.random.default_rng(seed)
    keys = [rng.random(len(columns[0]))]
    for k in range(len(columns)):
        group = np.unique(np.stack(columns[k:]), axis=1, return_inverse=True)[1].ravel()
        keys.append(rng.permutation(group.max(initial=0) + 1)[group])
    order = np.lexsort(keys)
    part = np.empty(len(order), np.int64)
    part[order] = np.arange(len(order)) % num_parts
    return part


class Choice(NamedTuple):
    """What a checkpoint was chosen from, on the very rows that measure it.

    scores: float [K, N], of the rows at each validation. best: int, the validation of the checkpoint. threshold: float, at which the
    most right decisions chose it, or None: the lowest error at the best threshold did.
    """

    scores: np.ndarray
    best: int
    threshold: float | None

    def explains(self, scores):
        """Whether float [N] are the scores of the checkpoint as its validation had them, and not another score or of other references."""
        kept = self.scores[self.best]
        return scores.shape == kept.shape and np.allclose(kept, scores, atol=1e-3, equal_nan=True)

    def of(self, rows):
        """The choice as far as some rows, bool [N], are concerned."""
        return self._replace(scores=self.scores[:, rows])

    def best_on(self, rows, labels, class_ids):
        """The scores of all rows by the checkpoint that some rows would choose, the first of equals: bool [N], int [N] x 2 -> float [N]."""

        def error(scores):
            if self.threshold is not None:
                return np.mean((scores >= self.threshold) != (labels[rows] == 1))
            accepted = scores >= best_threshold(scores, labels[rows], class_ids[rows])
            return average_error_rate(accepted, labels[rows], class_ids[rows])

        scores = self.scores.astype(np.float64)
        return scores[int(np.argmin([error(of_step[rows]) for of_step in scores]))]


def cross_fitted_decisions(scores, labels, class_ids, choose_on=None, choice=None):
    """Decides rows at thresholds that were chosen on other rows, so that their error is unbiased.

    In each of SPLITS random splits, a half of the rows in `choose_on` is decided at the best threshold of the other half: a single
    split of a few hundred rows is a matter of luck. All other rows are decided at the best threshold of all rows in `choose_on`,
    which is the one that inference uses.

    Args:
        scores: float [N]. labels: int [N]. class_ids: int [N].
        choose_on: bool [N], the rows that may choose a threshold (those of kept classes), or None: all.
        choice: a Choice, from which the other half chooses the checkpoint too; None: nothing was chosen on these rows.

    Returns:
        float64 [N], the share of splits in which the row is taken for correct.
    """
    choose_on = np.ones(len(labels), bool) if choose_on is None else choose_on
    of_all = scores >= best_threshold(scores[choose_on], labels[choose_on], class_ids[choose_on])
    decisions = np.tile(of_all, (SPLITS, 1))
    for seed, accepted in enumerate(decisions):
        half = split_evenly(2, labels, class_ids, seed=seed)
        for part in (0, 1):
            decided, other = (half == part) & choose_on, (half != part) & choose_on
            if other.any():
                found = scores if choice is None else choice.best_on(other, labels, class_ids)
                accepted[decided] = found[decided] >= best_threshold(found[other], labels[other], class_ids[other])
    return decisions.mean(axis=0)


def auroc(scores, correct, weights=None):
    """Area under the ROC curve of scores as evidence for a correct label; ties count half.

    Args:
        scores: float [N]. correct: bool [N], the label is correct. weights: float [B, N], of the rows in B samples; None: one, all 1.

    Returns:
        float64 [B], NaN where all rows are of one kind.
    """
    wrong, right = _weight_by_score(scores, correct, weights)
    below = np.cumsum(wrong, axis=1) - wrong / 2
    with np.errstate(invalid="ignore"):
        return (right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))


def average_precision(scores, correct, weights=None):
    """Average precision of finding mislabeled rows, lowest scores first; arguments and result as in auroc."""
    wrong, right = _weight_by_score(scores, correct, weights)
    found, taken = np.cumsum(wrong, axis=1), np.cumsum(wrong + right, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return (precision * wrong).sum(axis=1) / wrong.sum(axis=1)


def _weight_by_score(scores, correct, weights):
    """Weight of the mislabeled and of the correct rows at each distinct score, ascending: float64 [B, distinct] twice."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    weights = np.ones((1, len(scores))) if weights is None else weights[:, order].astype(np.float64)
    correct = correct[order]
    return np.add.reduceat(weights * ~correct, starts, axis=1), np.add.reduceat(weights * correct, starts, axis=1)


def decide(scores, labels, class_ids, threshold, heldout_ids=(), choice=None):
    """Decides which labels are correct, at a threshold that is given and at one that is chosen on these rows.

    Args:
        scores: float [N]. labels: int [N]. class_ids: int [N]. threshold: float.
        heldout_ids: ids of held-out classes, whose rows have no say in the chosen threshold. choice: as in cross_fitted_decisions.

    Returns:
        ({"fixed": bool [N], "chosen": float64 [N]}, the chosen threshold). `chosen` decisions are cross-fitted. Where no row may
        choose, there are none, and the threshold is None.
    """
    kept = ~np.isin(class_ids, list(heldout_ids))
    decisions = {"fixed": scores >= threshold}
    if not kept.any():
        return decisions, None
    decisions["chosen"] = cross_fitted_decisions(scores, labels, class_ids, choose_on=kept, choice=choice)
    return decisions, best_threshold(scores[kept], labels[kept], class_ids[kept])


def evaluate_group(scores, labels, class_ids, decisions):
    """The measures of a group of rows: a group of docs/formats.md, "Evaluations".

    Args:
        scores: float [N]. labels: int [N]. class_ids: int [N].
        decisions: {name: bool [N], True = taken for correct, or float [N], the share of splits in which a row is}.

    Returns:
        A dict of numbers and of a dict per decision. None where a measure is undefined.
    """
    correct = labels == 1
    group = {"rows": len(scores), "mislabeled": int((~correct).sum())}
    both = 0 < group["mislabeled"] < len(scores)
    group["auroc"] = float(auroc(scores, correct)[0]) if both else None
    group["average_precision"] = float(average_precision(scores, correct)[0]) if both else None
    some = len(scores) > 0
    group["trusting_every_label"] = average_error_rate(np.ones(len(scores), bool), labels, class_ids) if some else None
    for name, accepted in decisions.items():
        group[name] = {
            "average_error_rate": average_error_rate(accepted, labels, class_ids) if some else None,
            "accuracy": share(1 - wrong_decisions(accepted, labels)), "precision": share(~correct, 1.0 - accepted),
            "recall": share(1.0 - accepted, ~correct),
        }
    return group


def share(hits, weights=None):
    """The mean of float [N], weighted by float [N] or not; None where all weights are 0, or there are no rows."""
    weights = np.ones(len(hits)) if weights is None else weights
    return float(np.average(hits, weights=weights)) if np.any(weights) else None


def group_members(class_ids, heldout_ids=()):
    """{group: bool [N]} of the rows in each group: `all`, and where classes are held out `kept` and `heldout`."""
    groups = {"all": np.ones(len(class_ids), bool)}
    if len(heldout_ids):
        heldout = np.isin(class_ids, list(heldout_ids))
        groups |= {"kept": ~heldout, "heldout": heldout}
    return groups


def evaluate(scores, labels, class_ids, threshold, heldout_ids=(), choice=None, decided=None):
    """Measures scores: the evaluation of docs/formats.md that training, reports and comparisons share.

    Args:
        scores: float [N]; rows without a score (NaN) are left out and counted. labels: int [N]. class_ids: int [N].
        threshold: float, of the `fixed` decisions. heldout_ids, choice: as in decide.
        decided: what decide gave for these arguments, all of which have a score; None: it is called here.

    Returns:
        A dict: threshold, chosen_threshold, rows_without_score, and an evaluate_group() per group of group_members().
    """
    scored = np.isfinite(scores)
    # float64: NumPy compares float32 with a rounded threshold, which may lie on the other side of a score.
    scores, labels, class_ids = scores[scored].astype(np.float64), labels[scored], class_ids[scored]
    decisions, chosen_threshold = decided or decide(scores, labels, class_ids, threshold, heldout_ids, choice and choice.of(scored))
    groups = {
        name: evaluate_group(
            scores[rows], labels[rows], class_ids[rows], {decision: accepted[rows] for decision, accepted in decisions.items()}
        )
        for name, rows in group_members(class_ids, heldout_ids).items()
    }
    return {
        "threshold": threshold, "chosen_threshold": chosen_threshold, "rows_without_score": int((~scored).sum()), **groups
    }


def errors_in_words(evaluation, decision):
    """The average error rates of an evaluation, of its fixed or chosen decisions: of all classes and, in brackets, of the other groups."""
    rates = {group: evaluation[group][decision]["average_error_rate"] for group in GROUPS if group in evaluation}
    return _by_group({group: None if rate is None else f"{100 * rate:.2f} %" for group, rate in rates.items()})


def auroc_in_words(evaluation):
    """The AUROC of an evaluation: of all classes and, in brackets, of the other groups."""
    found = {group: evaluation[group]["auroc"] for group in GROUPS if group in evaluation}
    return _by_group({group: None if value is None else f"{value:.4f}" for group, value in found.items()})


def _by_group(texts):
    """{group: text, or None for undefined} as one text."""
    words = {"kept": "kept classes", "heldout": "held-out classes"}
    apart = ", ".join(f"{words[group]} {text}" for group, text in texts.items() if group in words and text)
    return f"{texts['all'] or 'undefined'}{f' ({apart})' if apart else ''}"
