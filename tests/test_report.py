"""util/lib/report.py: report.json against independent computations, on classes uneven, of one row, and of correct rows only."""
import itertools
import json
import re

import cv2
import numpy as np
import pytest
from sklearn import metrics as sk

from util.lib import metrics, report

pytestmark = pytest.mark.check

NAMES = ["large", "small", "one row", "only correct", "no rows", "held out"]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    ids = np.repeat([0, 1, 2, 3, 5], [150, 23, 1, 17, 31])
    labels = rng.integers(0, 2, len(ids))
    labels[ids == 3] = 1
    scores = np.round(rng.normal(size=len(ids)) * 0.3 + 0.3 * labels, 2).astype(np.float32)  # rounded: ties
    scores[7] = np.nan  # a row without a score
    return scores, labels, ids


@pytest.fixture(scope="module")
def measured(rows):
    scores, labels, ids = rows
    return report.measure(scores, labels, ids, NAMES, threshold=0.1, heldout_ids=[5])


def groups(measured):
    return {"all": measured["all"], "kept": measured["kept"], "heldout": measured["heldout"], **measured["classes"]}


def members(ids, group):
    if group in NAMES:
        return ids == NAMES.index(group)
    return {"all": ids >= 0, "kept": ids != 5, "heldout": ids == 5}[group]


@pytest.mark.parametrize("group", ["all", "kept", "heldout", *NAMES])
def test_measures_equal_an_independent_computation(rows, measured, group):
    scores, labels, ids = (column[np.isfinite(rows[0])] for column in rows)
    decisions = {
        "fixed": scores >= 0.1, "chosen": metrics.cross_fitted_decisions(scores.astype(float), labels, ids, choose_on=ids != 5)
    }
    chosen = members(ids, group)
    found = groups(measured)[group]
    assert found["rows"] == chosen.sum()
    if group == "no rows":
        assert found["auroc"] == {"value": None, "reason": "no verified rows"}
        return
    y, s = labels[chosen], scores[chosen]
    assert found["mislabeled"] == np.sum(y == 0)
    assert found["trusting_every_label"]["value"] == pytest.approx(np.mean([np.mean(y[ids[chosen] == c] == 0) for c in set(ids[chosen])]))
    if len(set(y)) == 2:
        assert found["auroc"]["value"] == pytest.approx(sk.roc_auc_score(y, s))
        assert found["average_precision"]["value"] == pytest.approx(sk.average_precision_score(1 - y, -s))
    else:
        assert found["auroc"]["value"] is None
        assert found["auroc"]["reason"].startswith("all verified rows are")
    for name, decided in decisions.items():
        d = np.float64(decided[chosen])
        wrong = np.abs(d - (y == 1))
        by_class = [np.mean(wrong[ids[chosen] == c]) for c in set(ids[chosen])]
        assert found[name]["average_error_rate"]["value"] == pytest.approx(np.mean(by_class))
        truth, flagged, weights = np.tile(y == 0, 2), np.repeat([False, True], len(y)), np.concatenate([d, 1.0 - d])
        assert found[name]["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, flagged, sample_weight=weights))
        for measure, function, defined in (("precision", sk.precision_score, (d < 1).any()), ("recall", sk.recall_score, (y == 0).any())):
            if defined:
                assert found[name][measure]["value"] == pytest.approx(function(truth, flagged, sample_weight=weights))
            else:
                assert found[name][measure]["value"] is None
                assert found[name][measure]["reason"]


def test_resampled_measures_equal_scikit_learn_on_repeated_rows(rows):
    """The bootstrap's own AUROC and average precision, with weights, against scikit-learn's on rows repeated as often."""
    scores, labels, ids = (column[np.isfinite(rows[0])] for column in rows)
    weights = report._bootstrap_weights(ids)[:5]
    auroc, precision = metrics.auroc(scores, labels == 1, weights), metrics.average_precision(scores, labels == 1, weights)
    for b in range(5):
        repeated = np.repeat(np.arange(len(ids)), weights[b].astype(int))
        assert [np.sum(ids[repeated] == c) for c in range(6)] == [np.sum(ids == c) for c in range(6)]
        assert auroc[b] == pytest.approx(sk.roc_auc_score(labels[repeated], scores[repeated]))
        assert precision[b] == pytest.approx(sk.average_precision_score(1 - labels[repeated], -scores[repeated]))


def test_intervals_hold_the_value_and_shrink_with_rows(rows, measured):
    for group in ("all", "large"):
        interval = groups(measured)[group]["auroc"]
        assert interval["low"] < interval["value"] < interval["high"]
    wide, narrow = groups(measured)["small"]["fixed"]["accuracy"], measured["all"]["fixed"]["accuracy"]
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]


def test_the_lowest_scores(rows):
    """Precision among the N lowest, for the N that there are, with an interval that holds it."""
    scores, labels, _ = (column[np.isfinite(rows[0])] for column in rows)
    found = report.lowest(scores.astype(float), labels == 1)
    assert [entry["rows"] for entry in found] == [10, 30, 100]  # of 221
    order = np.argsort(scores, kind="stable")
    for entry in found:
        precision = entry["precision"]
        assert precision["value"] == pytest.approx(np.mean(labels[order[: entry["rows"]]] == 0))
        assert precision["low"] < precision["value"] < precision["high"]
        assert entry["share"] == pytest.approx(entry["rows"] / 221)
    sure = report.lowest(np.arange(30.0), np.zeros(30, bool))[0]["precision"]
    assert (sure["value"], sure["high"]) == (1, 1)
    assert 0.6 < sure["low"] < 0.8


def test_reliability_is_drawn_of_probabilities(rows, tmp_path):
    scores, labels, ids = rows
    for score, drawn in (("probability", True), ("cosine", False)):
        chance = 1 / (1 + np.exp(-5 * scores))
        report.write(str(tmp_path / score), chance, labels, ids, NAMES, threshold=0.1, heldout_ids=[5], score=score)
        page = (tmp_path / score / "report.html").read_text()
        assert ("<h2>Reliability</h2>" in page) == drawn
        assert "<h2>The lowest scores</h2>" in page


def test_thumbnails_are_few_escaped_and_of_the_right_rows(tmp_path):
    """200 rows whose keys and classes are scripts; one has an image, one names a file outside the folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (folder / "<b>0", tmp_path / "outside"):
        cv2.imwrite(f"{path}.png", np.zeros((9, 5, 3), np.uint8))
    keys = [f"<b>{i}.png" for i in range(200)]
    keys[1] = "../outside.png"
    scores, labels, ids = np.linspace(-1, 1, 200), np.arange(200) % 2, np.zeros(200, int)
    scores[5] = np.nan
    report.write(
        str(tmp_path / "report"), scores, labels, ids, ["<script>alert(1)</script>"], threshold=0.1,
        pictured=report.Pictured(keys, str(folder)),
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<b>0" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<figure>") == 2 * report.MOST_IMAGES
    assert page.count("data:image/jpeg") == 1
    lowest = page[page.index("Lowest scores") : page.index("Nearest to the threshold")]
    assert [f"&lt;b&gt;{i}.png" in lowest for i in (0, 5, 24, 25)] == [True, False, True, False]
    near = page[page.index("Nearest to the threshold") :]
    chosen = report.measure(scores, labels, ids, ["x"], threshold=0.1)["thresholds"]["chosen"]
    assert f"&lt;b&gt;{int(np.nanargmin(np.abs(scores - chosen)))}.png" in near


def test_the_page_of_many_classes_lists_the_worst_ones(tmp_path):
    """Class c has c wrong decisions of 131 rows; the table has the last 100 classes, the worst first, and report.json has all."""
    count = 131
    ids, place = np.divmod(np.arange(count**2), count)
    names = [f"class {c:03d}" for c in range(count)]
    labels = (place >= ids).astype(int)
    report.write(str(tmp_path), np.ones(len(ids), np.float32), labels, ids, names, threshold=0.5, heldout_ids=range(count))
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<td>(class \d+)</td>", page) == names[:30:-1]
    assert "The 100 worst of 131 classes" in page
    assert list(json.loads((tmp_path / "report.json").read_text())["classes"]) == names


def test_pictures_of_many_rows_and_classes_are_readable():
    """41 classes whose labels are all wrong: no legend covers a bar; and no number below a picture of 13,000 rows touches another."""
    count = 41
    ids, labels = np.repeat(np.arange(count), 320), np.zeros(320 * count, int)
    names = [f"class {c}" for c in range(count)]
    measured = report.measure(np.ones(len(ids)), labels, ids, names, threshold=0.5)
    figure = report.draw_classes(measured)
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].get_window_extent())
    figure = report.draw_effort(np.linspace(0, 1, len(ids)), labels == 1, measured)
    figure.draw_without_rendering()
    ticks = [label.get_window_extent() for label in figure.axes[1].get_xticklabels() if label.get_text()]
    assert len(ticks) >= 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ticks))
