"""What a training writes for TensorBoard: scalars, histograms of the scores, the flags, and embeddings for the projector tab.

A module of its own because train.py need not know the formats that TensorBoard reads.
"""
import functools
import json
import os

import numpy as np
import tensorflow as tf

from util.lib import atomic
from util.lib.errors import UserError, warn

KINDS = {1: "correct", 0: "mislabeled"}


def open_log(log_dir, flag_values, chief):
    """The log of a training: a TensorBoardLog, or NoLog where this process is not the chief or log_dir cannot be written."""
    if not chief:
        return NoLog()
    try:
        return TensorBoardLog(log_dir, flag_values)
    except (UserError, OSError, ValueError, tf.errors.OpError) as error:
        warn(f"--log_dir={log_dir}: {_in_short(error)}; training goes on without summaries")
        return NoLog()


def _in_short(error):
    return " ".join(str(getattr(error, "message", error)).split())[:200]


def _or_warn(write):
    """Makes a method of TensorBoardLog warn, once, and write nothing more, where it cannot write: the training is worth more."""

    @functools.wraps(write)
    def method(self, *arguments):
        if self.failed:
            return
        try:
            write(self, *arguments)
        except (UserError, OSError, ValueError, tf.errors.OpError) as error:
            self.failed = True
            warn(f"{self._folder}: {_in_short(error)}; training goes on without summaries")

    return method


class TensorBoardLog:
    """Writes to log_dir/train and log_dir/val. flag_values: dict, shown in the text tab. failed: whether it gave up."""

    def __init__(self, log_dir, flag_values):
        self.failed = False
        self._folder = os.path.join(log_dir, "val")
        atomic.make_folder(self._folder)
        self._writers = {split: tf.summary.create_file_writer(os.path.join(log_dir, split)) for split in ("train", "val")}
        with self._writers["train"].as_default(step=0):
            lines = "\n".join(f"| {name} | {value} |" for name, value in sorted(flag_values.items()))
            tf.summary.text("flags", f"| flag | value |\n|---|---|\n{lines}")

    @_or_warn
    def scalars(self, split, step, values):
        """Writes one step of scalars. split: train or val. values: {name: number, or None for undefined, which is left out}."""
        with self._writers[split].as_default(step=step):
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(name, value)
        self._writers[split].flush()

    @_or_warn
    def score_histograms(self, step, score, scores, labels):
        """Writes a histogram of scores, float32 [N], per verification label, int [N]. score: what they are called."""
        with self._writers["val"].as_default(step=step):
            for label, kind in KINDS.items():
                chosen = scores[(labels == label) & np.isfinite(scores)]
                if len(chosen):
                    tf.summary.histogram(f"{score}/{kind}", chosen)
        self._writers["val"].flush()

    @_or_warn
    def embeddings(self, class_names, class_embeddings, val, val_embeddings, scores):
        """Writes the embeddings of the classes and of the validation rows for the projector tab.

        Args:
            class_names: list of str. class_embeddings: float32 [C, E]. val: arrays.FeatureArray of val.npy.
            val_embeddings: phi_q, float32 [N, E]. scores: float32 [N].
        """
        described = [("class", name, "", "") for name in class_names]
        for class_id, label, score in zip(val.class_ids, val.labels, scores):
            described.append(("image", class_names[class_id], KINDS[int(label)], f"{score:.3f}"))
        metadata = "kind\tclass\tlabel\tscore\n" + "".join("\t".join(row) + "\n" for row in described)
        atomic.write_text(os.path.join(self._folder, "embeddings_metadata.tsv"), metadata)
        vectors = np.concatenate([class_embeddings, val_embeddings])
        text = "".join("\t".join(f"{x:.6g}" for x in vector) + "\n" for vector in vectors.tolist())
        atomic.write_text(os.path.join(self._folder, "embeddings.tsv"), text)
        config = {"tensor_name": "cleannet", "tensor_path": "embeddings.tsv", "metadata_path": "embeddings_metadata.tsv"}
        lines = "".join(f"  {name}: {json.dumps(value)}\n" for name, value in config.items())
        atomic.write_text(os.path.join(self._folder, "projector_config.pbtxt"), f"embeddings {{\n{lines}}}\n")


class NoLog:
    """Writes nothing: for workers other than the chief."""

    def scalars(self, *_):
        pass

    score_histograms = embeddings = scalars
