"""The validations of a training: what they measure, which one is the best, and the lines that they print.

A module of its own because train.py is about the training alone.
"""
import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from util.lib import metrics, run_folder
from util.lib.errors import UserError
from util.lib.scorer import Scorer

SAMPLE = 20_000  # rows of all.npy, at most, whose scores a threshold is estimated from
TAG_PREFIXES = {"all": "", "kept": "kept_", "heldout": "heldout_"}  # of TensorBoard's scalars, by group of classes


class Criterion(NamedTuple):
    """What chooses the best checkpoint: a measure of an evaluation (docs/formats.md), by group and decision."""

    group: str
    decision: str
    measure: str

    def __str__(self):
        return f"{self.decision} {'kept_' if self.group == 'kept' else ''}{self.measure}"

    def score(self, evaluation):
        """The measure of an evaluation, with the sign that makes higher better."""
        value = evaluation[self.group][self.decision][self.measure]
        return -value if self.measure.endswith("error_rate") else value


def criterion_of(threshold, heldout_ids):
    """Right decisions at a fixed threshold, or the error at the chosen one (threshold None), of kept classes alone."""
    measure = ("chosen", "average_error_rate") if threshold is None else ("fixed", "accuracy")
    return Criterion("kept" if heldout_ids else "all", *measure)


def line_about(entry, is_best, decision):
    """One line about a validation. entry: an evaluation with its step. decision: fixed or chosen, which the line begins with."""
    at = {"fixed": f"at {entry['threshold']:g}", "chosen": f"at the best threshold ({entry['chosen_threshold']:.3f})"}
    other = "fixed" if decision == "chosen" else "chosen"
    errors = {name: metrics.errors_in_words(entry, name) for name in at}
    return (
        f"step {entry['step']}: validation {at[decision]}: accuracy {entry['all'][decision]['accuracy']:.4f}, average error "
        f"{errors[decision]}; {at[other]}: {errors[other]}{' (best so far)' if is_best else ''}"
    )


class Validator:
    """Validates the model of a training.

    Args:
        net: model.CleanNet. data: data_loader.TrainingData. strategy: tf.distribute strategy whose replicas share the rows.
        log: tensorboard_log.TensorBoardLog. score: one of score_table.SCORES. temperature: float, of the probability.
        threshold: float, or None: the best on the validation rows leads. by_rows: embed classes by their rows.
        neg_weight: float, of the loss that is logged. batch_size: rows per batch.
    """

    def __init__(self, net, data, *, strategy, log, score, temperature, threshold, by_rows, neg_weight, batch_size):
        self._scorer = Scorer(
            net, data.references, batch_size=batch_size, compare_classes=score != "cosine", temperature=temperature,
            strategy=strategy,
        )
        self._data, self._log = data, log
        self._embed_by = data.unverified if by_rows else None
        self._score, self._neg_weight = score, neg_weight
        self._threshold = metrics.FIXED_THRESHOLD if threshold is None else threshold
        self._criterion = criterion_of(threshold, data.heldout_ids)

    def embed_classes(self):
        """Embeds the classes with the current weights. Returns the embeddings that a checkpoint keeps, as Scorer does."""
        return self._scorer.embed_classes(self._embed_by)

    def validate(self, state):
        """Measures the validation rows, after embed_classes(); prints and logs what it found. Without val.npy it only estimates.

        Args:
            state: dict of step, history (a list of validations), best and val_scores (float32 [validations, N], NaN for a row
                without a score; None before the first, or where an earlier version began the run).

        Returns:
            The state with this validation, which is the best unless an earlier one is as good.
        """
        if self._data.val is None:
            return self._without_validation(state)
        found, scores = self._evaluate(state["step"])
        entry = {"step": state["step"], **found}
        score, best = self._criterion.score(entry), state["best"]
        is_best = best is None or score > best["score"]
        if is_best:
            best = {
                "step": entry["step"], "score": score, "criterion": str(self._criterion), "threshold": entry["chosen_threshold"]
            }
        tqdm.write(line_about(entry, is_best, self._criterion.decision), file=sys.stdout)
        val_scores = state["val_scores"]
        if not state["history"] or val_scores is not None:
            val_scores = np.concatenate([*([] if val_scores is None else [val_scores]), scores[None]])
        return {**state, "history": [*state["history"], entry], "best": best, "val_scores": val_scores}

    def _without_validation(self, state):
        """The state with a threshold estimated from the scores of rows of all.npy; the latest step is the best."""
        array, step = self._data.unverified, state["step"]
        rows = np.linspace(0, array.num_rows - 1, min(array.num_rows, SAMPLE)).astype(np.int64)
        scores = self._scorer.score(array.features[rows], array.class_ids[rows]).by(self._score)
        _check_spread(scores, step)
        scores = scores[np.isfinite(scores)]
        threshold = metrics.estimate_threshold(scores, self._score)
        tqdm.write(
            f"step {step}: no val.npy, so nothing is measured; threshold estimated from the scores alone: {threshold:.4f}, "
            f"with {100 * np.mean(scores < threshold):.1f} % of labels below", file=sys.stdout,
        )
        entry = {"step": step, "estimated_threshold": threshold}
        best = {"step": step, "score": float(step), "criterion": run_folder.NOTHING_VALIDATED, "threshold": threshold}
        return {**state, "history": [*state["history"], entry], "best": best}

    def _evaluate(self, step):
        """The evaluation of the validation rows, and their scores, float32 [N]."""
        val = self._data.val
        all_scores = self._scorer.score(val.features, val.class_ids)
        scores = all_scores.by(self._score)
        _check_spread(scores, step)
        found = metrics.evaluate(scores, val.labels, val.class_ids, self._threshold, self._data.heldout_ids)
        if found["chosen_threshold"] is None:
            raise UserError(f"{val.path}: no row of a kept class with references, so nothing can be validated; verify some")
        self._log.score_histograms(step, self._score, scores, val.labels)
        loss = metrics.mean_cosine_loss(all_scores.cosine, val.labels, self._neg_weight)
        self._log.scalars("val", step, {"loss/supervised": loss, **_scalars(found)})
        return found, scores

    def log_embeddings(self):
        """Logs the embeddings of the classes and of the validation rows, for TensorBoard's projector."""
        val = self._data.val
        if val is None:
            return
        scores = self._scorer.score(val.features, val.class_ids).by(self._score)
        self._log.embeddings(
            self._data.class_names, self._scorer.class_embeddings.numpy(), val, self._scorer.embed(val.features), scores
        )


def _check_spread(scores, step):
    """Raises UserError where all scores are one number. scores: float32 [N], NaN for rows without one."""
    finite = scores[np.isfinite(scores)]
    if len(finite) > 1 and np.ptp(finite) < 1e-6:  # batches of other sizes differ in the last digits
        raise UserError(
            f"step {step}: all {len(finite)} rows have the score {finite[0]:g}, so the model is saturated; train in a "
            "new --checkpoint_dir with a lower --learning_rate, or check the scale of the features"
        )


def _scalars(evaluation):
    """The measures of an evaluation as {TensorBoard's tag: number or None}."""
    return {
        f"{'chosen/' if decision == 'chosen' else ''}{prefix}{measure}": value
        for group, prefix in TAG_PREFIXES.items() if group in evaluation
        for decision in ("fixed", "chosen") for measure, value in evaluation[group].get(decision, {}).items()
    }
