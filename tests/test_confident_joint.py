"""util/lib/confident_joint.py: the shares by hand, and shifts by many rows, few and none."""
import numpy as np
import pytest
from scipy import special

from util.lib import calibration, confident_joint

pytestmark = pytest.mark.check


def test_shares_by_hand():
    """The means of classes 0 and 1 are 0.6 and 0.5. Rows 0 and 1 count for class 0, row 2 for class 1, and row 3 for none. Of
    class 1, row 4 counts as given, though class 0 is as probable, and row 5 for class 0. Class 2 has no row."""
    p = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.4, 0.2], [0.7, 0.7, 0], [0.7, 0.3, 0]], np.float32)
    given = np.array([0, 0, 0, 0, 1, 1])
    blocks = [(0, p[:4]), (4, p[4:])]
    shares, counts = confident_joint.shares_mislabeled(blocks, given, p[np.arange(6), given], 3)
    np.testing.assert_allclose(shares, [1 / 3, 1 / 2, 0])
    assert counts.tolist() == [3, 2, 0]


def test_shares_of_classes_are_below_even():
    """The order within a class stays; a class without rows is left out, and shares of 0 and 1 need no row beyond."""
    rng = np.random.default_rng(0)
    ids, shares = rng.choice([0, 1, 2, 4], 20003), np.array([0.3, 0, 1, 0.5, 0.07])
    p = rng.random(20003)
    p[0] = 1  # a logit without end
    found = confident_joint.shift_classes(p, ids, shares, np.bincount(ids, minlength=5))
    for class_id in (0, 1, 2, 4):
        here = ids == class_id
        assert np.mean(found[here] < calibration.EVEN) == pytest.approx(shares[class_id], abs=0.02)
        assert (np.diff(found[here][np.argsort(p[here])]) >= 0).all()


def test_a_cut_moves_only_as_far_as_rows_tell():
    """Class 0 meets its share, and class 3 too, far away. The shares of classes 1 and 4 are told by ten rows and by none, so one stays in
    between, and the other at the common cut. No row of class 2 lies between its groups."""
    many, two_groups = np.linspace(-4, 4, 2000), np.repeat([-5, 5], [60, 140])
    x, ids = np.r_[many, many, two_groups, many - 12, many], np.repeat([0, 1, 2, 3, 4], [2000, 2000, 200, 2000, 2000])
    shares, counts = np.array([0.4, 0.6, 0.4, 0.3, 0.9]), np.array([2000, 10, 200, 2000, 0])
    found = confident_joint.shift_classes(special.expit(x), ids, shares, counts)
    cuts = (x - special.logit(found.astype(float)))[[0, 2000, 4000, 4200, 6200]]
    common = np.quantile(x, np.mean(shares[ids]))
    assert cuts[0] == pytest.approx(-0.8, abs=0.1)  # 40 % of -4 to 4
    assert common + 0.3 < cuts[1] < 0.7  # 60 % would be at 0.8
    assert cuts[2] == pytest.approx(common, abs=0.001)
    assert cuts[3] == pytest.approx(-13.6, abs=0.2)  # 30 % of -16 to -8
    assert cuts[4] == pytest.approx(common, abs=0.001)
