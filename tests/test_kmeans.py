"""util/lib/kmeans.py: as good as OpenCV's k-means, and right where clusters would be empty."""
import cv2
import numpy as np
import pytest

from util.lib import kmeans

pytestmark = pytest.mark.check


def test_kmeans_is_as_good_as_opencv():
    """Within-class distance against cv2.kmeans with the same settings, over sets with and without clusters."""
    ours = theirs = 0.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        centres = rng.random((20, 31)) * (seed % 3)
        features = np.float32(centres[rng.integers(20, size=400)] + rng.normal(size=(400, 31)) * 0.3)
        cv2.setRNGSeed(seed)
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
        theirs += cv2.kmeans(features, 16, None, criteria, 10, cv2.KMEANS_PP_CENTERS)[0]
        found, distance = kmeans.centres_of(features, 16, seed)
        by_hand = np.square(features[:, None].astype("f8") - found[None]).sum(axis=2).min(axis=1).sum()
        assert distance == pytest.approx(by_hand, rel=1e-4)
        ours += distance
    assert ours <= 1.005 * theirs  # both are the best of ten random starts


def test_kmeans_fills_empty_clusters():
    features = np.float32(np.repeat([[0.0, 1.0], [5.0, 5.0], [9.0, 0.0]], 7, axis=0))  # three distinct rows, five centres
    centres, distance = kmeans.centres_of(features, 5, seed=0)
    assert np.isfinite(centres).all()
    assert distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e20, 1e30])
def test_kmeans_at_any_scale(factor):
    """The same centres. Their order may differ: which of several attempts that found them is the best is a matter of rounding."""
    rng = np.random.default_rng(5)
    features = np.float32(rng.random((7, 31))[rng.integers(7, size=300)] * 3 + rng.normal(size=(300, 31)) * 0.1)
    one, other = (kmeans.centres_of(features * np.float32(scale), 7, seed=1)[0] / np.float32(scale) for scale in (1, factor))
    np.testing.assert_allclose(other[np.argsort(other[:, 0])], one[np.argsort(one[:, 0])], atol=1e-4)


@pytest.mark.parametrize("rows", [41, kmeans.SMALL // 7 + 1])
def test_small_classes_keep_to_one_thread(rows):
    """Of BLAS, as long as their k-means runs; large classes take as many as there were before."""
    def threads():
        return [library["num_threads"] for library in kmeans.BLAS.info() if library["user_api"] == "blas"]

    before, during = threads(), []
    kmeans.references_of_class(np.zeros((rows, 7), np.float32), 5, 1, lambda *_: during.append(threads()))
    assert during == [[1] * len(before) if rows == 41 else before]
    assert threads() == before
