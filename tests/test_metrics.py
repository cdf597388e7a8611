"""util/lib/metrics.py: thresholds and error rates by hand and against a search; the schema of an evaluation."""
import numpy as np
import pytest

from util.lib import metrics

pytestmark = pytest.mark.check


def test_threshold_by_hand():
    scores = np.float32([0.9, 0.8, 0.3, 0.2, 0.7, 0.6])
    labels = np.array([1, 1, 0, 0, 1, 0])
    class_ids = np.array([0, 0, 0, 0, 2, 2])
    assert metrics.best_threshold(scores, labels, class_ids) == pytest.approx(0.65)
    assert metrics.average_error_rate(scores >= 0.65, labels, class_ids) == 0
    # Class 0 errs on 1 of 4 rows, class 2 on 1 of 2; class 1 has none.
    assert metrics.average_error_rate(scores >= 0.25, labels, class_ids) == pytest.approx((0.25 + 0.5) / 2)


def test_best_threshold_equals_a_search():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = rng.integers(1, 40)
        scores = np.round(rng.normal(size=n), 1).astype(np.float32)
        labels, class_ids = rng.integers(0, 2, n), rng.integers(0, 4, n)
        found = metrics.average_error_rate(scores >= metrics.best_threshold(scores, labels, class_ids), labels, class_ids)
        edges = np.concatenate([[-9], np.unique(scores) + 0.05, [9]])
        assert found == pytest.approx(min(metrics.average_error_rate(scores >= t, labels, class_ids) for t in edges))


def test_cross_fitting_does_not_see_its_own_half():
    """Scores without any information: the error of a threshold chosen on the same rows would look better than chance."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        labels, scores = rng.permutation(np.arange(40) % 2), rng.normal(size=40)
        decisions = metrics.cross_fitted_decisions(scores, labels, np.zeros(40, int))
        errors.append(np.mean(metrics.wrong_decisions(decisions, labels)))
    assert np.mean(errors) > 0.48


def test_many_splits_differ_less_than_single_ones_do(monkeypatch):
    """Other rows in the halves move a measure of 60 rows by less than half as much."""
    rng = np.random.default_rng(5)
    labels, ids = rng.integers(0, 2, 60), np.arange(60) % 3
    scores, spread = labels + 1.5 * rng.normal(size=60), {}
    for splits in (1, 10):
        monkeypatch.setattr(metrics, "SPLITS", splits)
        errors = []
        for _ in range(50):
            order = rng.permutation(60)
            errors.append(metrics.evaluate(scores[order], labels[order], ids[order], 0.1)["all"]["chosen"]["average_error_rate"])
        spread[splits] = np.std(errors)
    assert 0 < spread[10] < spread[1] / 2


def test_measures_of_decisions_in_many_splits_are_those_of_all_splits_together():
    rng = np.random.default_rng(6)
    splits, labels, ids = rng.integers(0, 2, (4, 30)) == 1, rng.integers(0, 2, 30), np.arange(30) % 3
    correct = np.tile(labels == 1, (4, 1))
    found = metrics.evaluate_group(rng.normal(size=30), labels, ids, {"x": splits.mean(axis=0)})["x"]
    assert found == pytest.approx({
        "average_error_rate": np.mean([np.mean(splits[:, ids == c] != correct[:, ids == c]) for c in range(3)]),
        "accuracy": np.mean(splits == correct), "precision": np.mean(~correct[~splits]), "recall": np.mean(~splits[~correct]),
    })


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_cross_fitting_includes_the_choice_of_the_checkpoint(threshold):
    """Thirty checkpoints without any information: the best of them on these rows looks better than chance on them."""
    rng = np.random.default_rng(2)
    plain, honest = [], []
    for _ in range(60):
        labels, ids = rng.permutation(np.arange(60) % 2), np.zeros(60, int)
        choice = metrics.Choice(np.float32(rng.normal(size=(30, 60))), 0, threshold)
        best = choice.best_on(np.ones(60, bool), labels, ids)
        for errors, chosen in ((plain, None), (honest, choice)):
            errors.append(np.mean(metrics.wrong_decisions(metrics.cross_fitted_decisions(best, labels, ids, choice=chosen), labels)))
    assert np.mean(plain) < 0.46
    assert 0.48 < np.mean(honest) < 0.52


def test_one_checkpoint_or_many_alike_change_nothing():
    rng = np.random.default_rng(4)
    labels, ids = rng.integers(0, 2, 70), np.arange(70) % 3
    scores = np.where(np.arange(70) == 5, np.nan, labels + rng.normal(size=70))
    for copies in (1, 4):
        found = metrics.evaluate(scores, labels, ids, 0.1, [2], metrics.Choice(np.stack([scores] * copies), 0, None))
        assert found == metrics.evaluate(scores, labels, ids, 0.1, [2])


def test_rows_that_do_not_choose_are_decided_at_the_threshold_of_all_that_do():
    rng = np.random.default_rng(3)
    labels, class_ids = rng.integers(0, 2, 90), np.arange(90) % 3
    scores = labels + rng.normal(size=90)
    kept = class_ids != 2
    decisions = metrics.cross_fitted_decisions(scores, labels, class_ids, choose_on=kept)
    threshold = metrics.best_threshold(scores[kept], labels[kept], class_ids[kept])
    np.testing.assert_array_equal(decisions[~kept], scores[~kept] >= threshold)
    changed = np.where(kept, labels, 1 - labels)  # which change nothing, having no say
    np.testing.assert_array_equal(metrics.cross_fitted_decisions(scores, changed, class_ids, choose_on=kept)[~kept], decisions[~kept])
    first = kept & (metrics.split_evenly(2, labels, class_ids) == 0)
    assert metrics.best_threshold(scores[first], labels[first], class_ids[first]) != threshold


@pytest.mark.parametrize("rows_per_class", [2, 3, 4])
def test_halves_are_alike_where_classes_have_few_rows(rows_per_class):
    """Each class is split evenly, and mislabeled rows, of which a class has one at most, are as many in both halves."""
    class_ids = np.repeat(np.arange(1000), rows_per_class)
    labels = (np.arange(len(class_ids)) % (2 * rows_per_class) > 0).astype(int)
    half = metrics.split_evenly(2, labels, class_ids)
    sizes = np.bincount(class_ids[half == 0])
    assert set(sizes) <= {rows_per_class // 2, -(-rows_per_class // 2)}
    mislabeled = [int((labels[half == part] == 0).sum()) for part in (0, 1)]
    assert sum(mislabeled) == 500
    assert min(mislabeled) > 200


MEASURES = {"average_error_rate", "accuracy", "precision", "recall"}
GROUP = {"rows", "mislabeled", "auroc", "average_precision", "trusting_every_label", "fixed"}


def evaluate(scores, labels, class_ids, **options):
    return metrics.evaluate(np.float32(scores), np.array(labels), np.array(class_ids), 0.1, **options)


def test_an_evaluation_has_the_documented_keys():
    """Those of docs/formats.md, without held-out classes and with them."""
    rows = [0.9, 0.2, np.nan, -0.3, 0.4, 0.6], [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 2]
    for heldout_ids, groups in (((), {"all"}), ((1, 2), {"all", "kept", "heldout"})):
        found = evaluate(*rows, heldout_ids=heldout_ids)
        assert found.keys() == {"threshold", "chosen_threshold", "rows_without_score", *groups}
        assert (found["threshold"], found["rows_without_score"]) == (0.1, 1)
        for group in groups:
            assert found[group].keys() == {*GROUP, "chosen"}
            assert found[group]["fixed"].keys() == found[group]["chosen"].keys() == MEASURES
    counts = [(found[group]["rows"], found[group]["mislabeled"]) for group in ("kept", "heldout")]
    assert counts == [(2, 1), (3, 2)]


def test_an_evaluation_by_hand():
    """At 0.1, of class 0 one of 2 decisions is wrong, of class 1 none of 2; all four are taken for correct but one."""
    found = evaluate([0.9, 0.2, -0.3, 0.4], [1, 0, 0, 1], [0, 0, 1, 1])["all"]
    assert found["fixed"] == {"average_error_rate": 0.25, "accuracy": 0.75, "precision": 1.0, "recall": 0.5}
    assert (found["trusting_every_label"], found["auroc"], found["average_precision"]) == (0.5, 1.0, 1.0)


def test_undefined_measures_are_none():
    one_kind = evaluate([0.9, 0.2], [1, 1], [0, 1])["all"]
    assert one_kind["auroc"] is one_kind["average_precision"] is None
    assert one_kind["fixed"]["precision"] is one_kind["fixed"]["recall"] is None
    assert one_kind["fixed"]["accuracy"] == 1
    empty = evaluate([0.9, 0.2], [1, 0], [0, 1], heldout_ids=[2])["heldout"]
    assert empty["rows"] == empty["mislabeled"] == 0
    assert set(empty["fixed"].values()) == set(empty["chosen"].values()) == {None}
    assert empty["trusting_every_label"] is empty["auroc"] is None
    nothing_chooses = evaluate([0.9, 0.2], [1, 0], [2, 2], heldout_ids=[2])
    assert nothing_chooses["chosen_threshold"] is None
    assert nothing_chooses["heldout"].keys() == GROUP


def test_mean_cosine_loss_is_the_models():
    """Of rows with a cosine, against model.cosine_loss; None for none."""
    import model

    cosines, labels = np.float32([0.5, 0.5, 0.05, -0.3, np.nan]), np.array([1, 0, 0, 1, 1])
    expected = model.cosine_loss(cosines[:4], np.float32(labels[:4]), 5.0).numpy().mean()
    assert metrics.mean_cosine_loss(cosines, labels, 5.0) == pytest.approx(expected)
    assert metrics.mean_cosine_loss(cosines[4:], labels[4:], 5.0) is None


@pytest.mark.parametrize("score", ["cosine", "probability"])
def test_estimated_threshold_parts_two_groups(score):
    """30 % around -2, 70 % around 3 (of a probability its logits): near the middle, and no probability above the cap."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(-2, 0.5, 301), rng.normal(3, 0.5, 703)])
    found = metrics.estimate_threshold(np.float32(1 / (1 + np.exp(-values)) if score == "probability" else values), score)
    if score == "cosine":
        assert -1 < found < 2
    else:
        assert found == metrics.MOST_PROBABLE
        low = metrics.estimate_threshold(np.float32(1 / (1 + np.exp(-(values - 4)))), score)
        assert -5 < np.log(low / (1 - low)) < -2


def test_estimated_threshold_by_hand():
    assert metrics.estimate_threshold(np.float32([0.9, 0.1, 0.8, 0.2, 0.85]), "margin") == pytest.approx(0.5)
