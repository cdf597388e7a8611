"""util/lib/classifier_report.py: counts, measures and intervals of a test, against hand-worked numbers."""
import numpy as np
import pytest

from util.lib import classifier_report

NAMES = [f"class {i}" for i in range(7)]


def test_counts():
    """Three rows of class 2, found as 2, found second and found sixth; one of class 6 found as 0; in two blocks."""
    scores = np.float32([
        [1, 2, 9, 3, 4, 5, 0], [1, 2, 8, 3, 4, 9, 0], [9, 8, 2, 7, 6, 5, 0], [9, 0, 0, 0, 0, 0, 8],
    ])
    confusion, in_top = classifier_report.count([scores[:3], scores[3:]], np.array([2, 2, 2, 6]), 7)
    expected = np.zeros((7, 7), int)
    expected[2, [2, 5, 0]], expected[6, 0] = 1, 1
    assert confusion.tolist() == expected.tolist()
    assert in_top.tolist() == [0, 0, 2, 0, 0, 0, 1]
    report = classifier_report.measure(confusion, in_top, NAMES)
    assert report["top_1"]["value"] == 1 / 4
    assert report["top_5"]["value"] == 3 / 4
    assert report["mean_over_classes"]["value"] == pytest.approx((1 / 3 + 0) / 2)
    assert report["classes"]["class 6"] == {"rows": 1, "top_1": {"value": 0, "low": 0, "high": 0}}
    assert report["classes"]["class 0"] == {"rows": 0, "top_1": {"value": None, "reason": "no rows"}}


def test_the_interval_is_that_of_a_binomial():
    confusion = np.diag([800, 0, 0, 0, 0, 0, 0])
    confusion[0, 1] = 200
    top = classifier_report.measure(confusion, np.diag(confusion), NAMES)["top_1"]
    deviation = (0.8 * 0.2 / 1000) ** 0.5
    assert top["low"] == pytest.approx(0.8 - 1.96 * deviation, abs=0.006)
    assert top["high"] == pytest.approx(0.8 + 1.96 * deviation, abs=0.006)


def test_the_matrix_of_many_classes_has_no_zeros():
    confusion = np.zeros((1001, 1001), int)
    confusion[3, 5], confusion[3, 1000], confusion[1000, 1000] = 2, 1, 7
    names = [f"class {i}" for i in range(1001)]
    found = classifier_report.measure(confusion, np.diag(confusion), names)
    assert found["confusion"] == {"class 3": {"class 5": 2, "class 1000": 1}, "class 1000": {"class 1000": 7}}
    assert found["top_1"]["value"] == 7 / 10
    one_less = classifier_report.measure(confusion[1:, 1:], np.diag(confusion)[1:], names[1:])
    assert one_less["confusion"] == confusion[1:, 1:].tolist()


@pytest.mark.parametrize("num_classes", [1, 7, 130])
def test_the_picture_holds_at_most_a_hundred_classes(tmp_path, num_classes):
    import cv2

    confusion = np.diag(np.arange(num_classes) + 1)
    classifier_report.draw(confusion, [f"$class {i}" for i in range(num_classes)], str(tmp_path / "c.png"))
    height, width, _ = cv2.imread(str(tmp_path / "c.png")).shape
    assert 300 < height < width < 2500
