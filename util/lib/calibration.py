"""Makes a probability mean what it says, by verified rows: a logistic map of its logit (Platt, 1999), and a shift per class.

    calibration = Calibration.fit(probability, labels, class_ids, num_classes)
    calibrated = calibration.apply(probability, class_ids)

The shifts of the classes are drawn from one normal distribution, whose mean and deviation the verified rows tell. So a class with
many verified rows has a shift of its own, and one with few or none that of the others. Held-out classes share a shift of their own.
"""
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from util.lib import metrics

LEAST = 1e-7  # probabilities are taken as at least this far from 0 and 1
BELIEF = 1.0, 1.0, 0.0, 3.0  # before any row is seen: mean and deviation of the slope, then of the intercept
SHIFTS = np.linspace(-6, 6, 121)  # that a class may have, G of them, in logits
MEANS, SPREADS = np.linspace(-1, 1, 21), np.linspace(0.02, 2.5, 26)  # that the shifts of all classes may have
SHARES, ITERATIONS = (0.02, 0.98), 100  # of correct labels that classes may have; steps until an estimate of one rests
EVEN = 0.5  # the calibrated probability from which a label counts as correct
BINS = 10  # of equally many rows, in the calibration error


def logits(probability):
    """log(p / (1 - p)) of probabilities, float [N] -> float64 [N]; NaN stays."""
    return special.logit(np.clip(np.asarray(probability, np.float64), LEAST, 1 - LEAST))


def fit_map(x, correct, weights=None):
    """The slope and the intercept of P(label correct) = sigmoid(slope x + intercept), two floats.

    A weak belief, that x needs no change, keeps both finite where all rows are of one kind, or are told apart without error.

    Args:
        x: float64 [N], logits. correct: bool [N]. weights: float [N], of the rows; None: all 1.
    """
    weights = np.ones(len(x)) if weights is None else weights
    slope_mean, slope_deviation, intercept_mean, intercept_deviation = BELIEF

    def loss(parameters):
        slope, intercept = parameters
        z = slope * x + intercept
        off = (slope - slope_mean) / slope_deviation, (intercept - intercept_mean) / intercept_deviation
        residual = weights * (special.expit(z) - correct)
        value = weights @ (np.logaddexp(0, z) - correct * z) + (off[0] ** 2 + off[1] ** 2) / 2
        return value, np.array([residual @ x + off[0] / slope_deviation, residual.sum() + off[1] / intercept_deviation])

    return tuple(optimize.minimize(loss, (slope_mean, intercept_mean), jac=True, method="BFGS").x.tolist())


def shift_posterior(x, correct, class_ids, num_classes):
    """How probable each of SHIFTS is for each class, after its rows: float64 [C, G].

    Args:
        x: float64 [N], logits of P(label correct). correct: bool [N]. class_ids: int [N]. num_classes: int, C.
    """
    shifted = x[:, None] + SHIFTS  # [N, G]
    log_likelihood = np.zeros((num_classes, len(SHIFTS)))
    np.add.at(log_likelihood, class_ids, -np.logaddexp(0, np.where(correct[:, None], -shifted, shifted)))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    mean, spread = (column.reshape(-1, 1) for column in np.meshgrid(MEANS, SPREADS))
    prior = np.exp(-(((SHIFTS - mean) / spread) ** 2) / 2)  # [P, G], of P pairs of a mean and a spread
    prior = prior / prior.sum(axis=1, keepdims=True) + 1e-300  # no shift is impossible, whatever many rows say
    evidence = likelihood @ prior.T  # [C, P], of each pair from each class
    log_evidence = np.log(evidence).sum(axis=0)
    pairs = np.exp(log_evidence - log_evidence.max())
    posterior = likelihood * ((pairs / evidence) @ prior)
    return posterior / posterior.sum(axis=1, keepdims=True)


def prior_shift(x, share):
    """What to add to logits where another share of labels is correct than where they were fitted: a float.

    The share is estimated from the logits alone, by expectation maximisation (Saerens et al., 2002): it is the mean of the
    probabilities that follow from it.

    Args:
        x: float64 [N], logits of P(label correct), N above 0. share: float, of correct labels where they were fitted.
    """
    before = found = float(np.clip(share, *SHARES))
    for _ in range(ITERATIONS):
        found = float(np.clip(special.expit(x + special.logit(found) - special.logit(before)).mean(), *SHARES))
    return float(special.logit(found) - special.logit(before))


class Calibration(NamedTuple):
    """A map of probabilities that a label is correct. slope, intercept: float. class_shifts: float64 [C], in logits."""

    slope: float
    intercept: float
    class_shifts: np.ndarray

    @classmethod
    def fit(cls, probability, labels, class_ids, num_classes, heldout_ids=(), of_heldout=()):
        """The map that fits verified rows, with one shift for all held-out classes by the share of correct labels among them.

        Args:
            probability: float [N], of rows of kept classes. labels: int [N], 1 = correct. class_ids: int [N]. num_classes: int, C.
            heldout_ids: list of int. of_heldout: float [H], probabilities of their rows, NaN for none, which suggest that share.
        """
        x, correct = logits(probability), labels == 1
        slope, intercept = fit_map(x, correct)
        shifts = shift_posterior(slope * x + intercept, correct, class_ids, num_classes) @ SHIFTS
        others = slope * logits(of_heldout) + intercept
        others = others[np.isfinite(others)]
        shifts[list(heldout_ids)] = prior_shift(others, correct.mean()) if len(others) and len(correct) else 0.0
        return cls(slope, intercept, shifts)

    def apply(self, probability, class_ids):
        """The calibrated probabilities: float [N], int [N] -> float64 [N]; NaN stays."""
        return special.expit(self.slope * logits(probability) + self.intercept + self.class_shifts[class_ids])


def cross_fitted(probability, labels, class_ids, num_classes, heldout_ids=()):
    """Calibrated probabilities of verified rows by maps that saw other rows, so that measures of them are unbiased: float64 [N].

    A half of the rows of kept classes is calibrated by the other half, and those of held-out classes by all of them.
    The arguments are as in Calibration.fit.
    """
    half, found = metrics.split_evenly(2, labels, class_ids), np.empty(len(labels))
    heldout = np.isin(class_ids, list(heldout_ids))
    for mapped, seen in [(heldout, ~heldout), *((~heldout & (half == part), ~heldout & (half != part)) for part in (0, 1))]:
        verified = probability[seen], labels[seen], class_ids[seen]
        calibration = Calibration.fit(*verified, num_classes, heldout_ids, probability[heldout])
        found[mapped] = calibration.apply(probability[mapped], class_ids[mapped])
    return found


def bins(probability, correct):
    """Mean probability, share correct and number of rows of up to BINS bins: float [N], bool [N] -> float64 [B] thrice."""
    parts = [part for part in np.array_split(np.argsort(probability, kind="stable"), BINS) if len(part)]
    return np.array([(probability[part].mean(), correct[part].mean(), len(part)) for part in parts]).T


def error(probability, correct):
    """The expected calibration error: the mean over bins() of how far the probability is from the share correct."""
    said, true, rows = bins(probability, correct)
    return float(np.average(np.abs(said - true), weights=rows))
