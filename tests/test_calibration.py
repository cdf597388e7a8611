"""util/lib/calibration.py: maps and shifts against the ones that made the labels, few rows and many, and the error by hand."""
import numpy as np
import pytest
from scipy import special

from util.lib import calibration

pytestmark = pytest.mark.check


def made(num_rows, slope, shifts, seed=0):
    """Rows whose labels are correct with the sigmoid of slope x + the shift of their class: x, labels, class ids."""
    rng = np.random.default_rng(seed)
    x, ids = rng.normal(0, 2, num_rows), rng.integers(len(shifts), size=num_rows)
    return x, (rng.random(num_rows) < special.expit(slope * x + np.asarray(shifts)[ids])).astype(int), ids


def test_the_map_is_found():
    x, labels, _ = made(20011, 0.5, [1.5])
    assert calibration.fit_map(x, labels == 1) == pytest.approx((0.5, 1.5), abs=0.06)
    twice = calibration.fit_map(np.r_[x, x], np.r_[labels, labels] == 1)
    assert calibration.fit_map(x, labels == 1, np.full(len(x), 2)) == pytest.approx(twice, abs=1e-4)


@pytest.mark.parametrize("labels", [np.ones(13), np.zeros(13), np.arange(13) > 6])
def test_the_map_is_finite_where_rows_are_told_apart(labels):
    slope, intercept = calibration.fit_map(np.linspace(-6, 6, 13), labels == 1)
    assert np.isfinite([slope, intercept]).all()
    assert slope > 0


def test_shifts_are_those_of_the_classes_where_rows_are_many():
    """Also where they are so many, and so far from each other, that all else is as good as impossible."""
    shifts = np.array([-4.0, 0, 0, 4.0])
    x, labels, ids = made(20011, 1, shifts)
    found = calibration.shift_posterior(x, labels == 1, ids, 4) @ calibration.SHIFTS
    assert found == pytest.approx(shifts, abs=0.15)


def test_shifts_are_drawn_together_where_rows_are_few():
    x, labels, ids = made(70, 1, np.full(7, 1.0), seed=1)
    posterior = calibration.shift_posterior(x, labels == 1, ids, 8)  # the last class has no row
    found = posterior @ calibration.SHIFTS
    assert posterior.sum(axis=1) == pytest.approx(np.ones(8))
    assert found[7] == pytest.approx(found[:7].mean(), abs=0.15)
    assert np.ptp(found[:7]) < 1
    variance = posterior @ calibration.SHIFTS**2 - found**2
    assert variance[7] > variance[:7].max()


def test_cross_fitted_rows_do_not_see_themselves():
    """Those of a held-out class are calibrated by all the others, and shifted by their own scores."""
    x, labels, ids = made(211, 1, [0, 1, 2])
    p, kept = special.expit(x), ids != 2
    found = calibration.cross_fitted(p, labels, ids, 3, heldout_ids=[2])
    every = calibration.Calibration.fit(p[kept], labels[kept], ids[kept], 3, [2], p[~kept]).apply(p, ids)
    np.testing.assert_allclose(found[~kept], every[~kept])
    assert (found[kept] != every[kept]).all()


def test_the_share_of_another_group_of_rows():
    """Logits that are right where half of the labels are correct: among rows where 20 % are, the shift is log(0.2 / 0.8)."""
    rng = np.random.default_rng(0)
    correct = rng.random(20000) < 0.2
    x = rng.normal(np.where(correct, 1, -1) * 2, 2)  # two normal groups, whose log odds of even groups are x itself
    assert calibration.prior_shift(x, 0.5) == pytest.approx(np.log(0.2 / 0.8), abs=0.06)


def test_the_error_by_hand():
    p = np.repeat([0.2, 0.9], [50, 50])
    correct = np.r_[np.arange(50) % 10 < 4, np.arange(50) % 10 < 9]  # of the bins of ten rows 0.4 and 0.9
    assert calibration.error(p, correct) == pytest.approx(0.1)
    assert calibration.error(np.full(7, 0.25), np.arange(7) < 0) == pytest.approx(0.25)
