"""util/lib/validation.py: which checkpoint is the best, what is logged, and the line about a validation."""
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import IMG_DIM, NUM_REF

import model
from util.lib import validation

pytestmark = pytest.mark.check


class Log:
    """Keeps what is logged."""

    def __init__(self):
        self.logged = {}

    def scalars(self, split, step, values):
        self.logged[split, step] = values

    def score_histograms(self, step, score, scores, labels):
        self.logged[score, step] = len(scores)


def evaluation(step, **errors):
    """An evaluation whose groups have these error rates, and 1 minus them as accuracy."""
    groups = {
        group: {name: {"average_error_rate": error, "accuracy": 1 - error} for name in ("fixed", "chosen")}
        for group, error in errors.items()
    }
    return {"step": step, "threshold": 0.1, "chosen_threshold": 0.25, **groups}


@pytest.fixture
def make():
    """A function that makes a Validator of 3 classes, of which `heldout_ids` are held out, and its log."""
    rng = np.random.default_rng(0)
    references = rng.random((3, NUM_REF, IMG_DIM), np.float32)
    val = SimpleNamespace(
        features=rng.random((31, IMG_DIM), np.float32), class_ids=np.arange(31, dtype=np.int32) % 3, labels=np.arange(31) // 3 % 2
    )

    def made(threshold=0.1, heldout_ids=(), score="cosine"):
        data = SimpleNamespace(references=references, val=val, unverified=None, heldout_ids=list(heldout_ids))
        log = Log()
        return validation.Validator(
            model.CleanNet(NUM_REF, IMG_DIM), data, strategy=tf.distribute.get_strategy(), log=log, score=score, temperature=0.1,
            threshold=threshold, by_rows=False, neg_weight=5.0, batch_size=8,
        ), log

    return made


def test_the_first_of_equals_stays_the_best(make, capsys):
    """The same model validated twice, and then against a best one that is worse."""
    validator, _ = make()
    first = validator.validate({"step": 10, "history": [], "best": None, "val_scores": None})
    second = validator.validate({**first, "step": 20})
    assert [entry["step"] for entry in second["history"]] == [10, 20]
    assert first["best"] == second["best"]
    assert second["best"]["step"] == 10
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(best so far)") for line in lines] == [True, False]
    better = validator.validate({**first, "step": 30, "best": {**first["best"], "score": first["best"]["score"] - 0.01}})
    assert better["best"]["step"] == 30


def test_the_scores_of_all_validations_are_kept_or_none(make):
    """A run that an earlier version began kept no scores: those from now on would be of some validations only."""
    validator, _ = make()
    once = validator.validate({"step": 10, "history": [], "best": None, "val_scores": None})
    twice = validator.validate({**once, "step": 20})
    assert twice["val_scores"].shape == (2, 31)
    np.testing.assert_array_equal(twice["val_scores"][0], once["val_scores"][0])
    assert validator.validate({**once, "step": 20, "val_scores": None})["val_scores"] is None


@pytest.mark.parametrize(
    ("threshold", "heldout_ids", "name", "score"),
    [(0.1, (), "fixed accuracy", 0.7), (0.1, (2,), "fixed kept_accuracy", 0.8), (None, (), "chosen average_error_rate", -0.3),
     (None, (2,), "chosen kept_average_error_rate", -0.2)],
)
def test_the_criterion_is_of_kept_classes_and_of_the_leading_decision(threshold, heldout_ids, name, score):
    criterion = validation.criterion_of(threshold, heldout_ids)
    assert str(criterion) == name
    assert criterion.score(evaluation(5, all=0.3, kept=0.2, heldout=0.6)) == pytest.approx(score)


def test_the_line_leads_with_the_decision_that_is_asked_for():
    entry = evaluation(5, all=0.3, kept=0.2, heldout=0.6)
    fixed = "at 0.1: accuracy 0.7000, average error 30.00 % (kept classes 20.00 %, held-out classes 60.00 %)"
    assert validation.line_about(entry, False, "fixed").startswith(f"step 5: validation {fixed}; at the best threshold (0.250): 30.00 %")
    assert validation.line_about(entry, True, "chosen").startswith("step 5: validation at the best threshold (0.250): accuracy 0.7000")
    assert validation.line_about(evaluation(5, all=0.3), True, "fixed").endswith("at the best threshold (0.250): 30.00 % (best so far)")


def test_what_is_logged_is_the_evaluation(make):
    validator, log = make(threshold=None, heldout_ids=(2,), score="probability")
    state = validator.validate({"step": 7, "history": [], "best": None, "val_scores": None})
    (entry,) = state["history"]
    logged = log.logged["val", 7]
    for tag, (group, decision, measure) in {
        "accuracy": ("all", "fixed", "accuracy"), "kept_recall": ("kept", "fixed", "recall"),
        "chosen/heldout_average_error_rate": ("heldout", "chosen", "average_error_rate"),
    }.items():
        assert logged[tag] == entry[group][decision][measure]
    assert logged["loss/supervised"] > 0
    assert log.logged["probability", 7] == 31
    assert state["best"]["criterion"] == "chosen kept_average_error_rate"
    assert state["best"]["threshold"] == entry["chosen_threshold"]
