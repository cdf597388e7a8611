"""From a run folder to scores: opens a run with all that scoring needs, and scores blocks of rows.

    run = scoring.open_run("runs/digits", checkpoint="best")
    scores = run.make_scorer().score(features, class_ids)
"""
import os
from typing import NamedTuple

import numpy as np

from util.lib import arrays, class_list, run_folder, tsv
from util.lib.errors import UserError


class OpenRun(NamedTuple):
    """A run to score with, checked, before TensorFlow is imported.

    folder: str. step: int, of the checkpoint. class_names: list of str. references: float32 [C, R, D]. shape, settings: dict, of
    run.json. score: one of score_table.SCORES. threshold: float, score from which a label counts as correct. estimated: whether it
    was estimated from scores alone, without verified rows.
    """

    folder: str
    step: int
    class_names: list
    references: np.ndarray
    shape: dict
    settings: dict
    score: str
    threshold: float
    estimated: bool = False

    def make_parser(self):
        """A tsv.Parser of rows to score: of the run's classes and width, with features that its normalisation allows."""
        return tsv.Parser(
            tsv.UNVERIFIED, self.class_names, width=self.shape["img_dim"], width_from=f"img_dim of {self.folder}",
            minimum=-1 if self.shape["embed_norm"] == "log" else None,
        )

    def make_scorer(self, **options):
        """Imports TensorFlow and restores the checkpoint. options: batch_size and compare_classes of Scorer. Returns a Scorer."""
        import model
        from util.lib.scorer import Scorer

        net = model.CleanNet(self.shape["num_ref"], self.shape["img_dim"], self.shape["embed_norm"])
        run_folder.restore(self.folder, self.step, net)
        class_embeddings = run_folder.load_class_embeddings(
            self.folder, self.step, self.settings, (self.shape["num_class"], model.E)
        )
        return Scorer(
            net, self.references, temperature=self.settings["contrast_temperature"], class_embeddings=class_embeddings, **options
        )


def open_run(folder, checkpoint="best", score=None, threshold=None):
    """Opens a run for scoring.

    Args:
        folder: the --checkpoint_dir of the training. checkpoint: `best`, `latest` or the number of a step.
        score: one of score_table.SCORES, or None: the score that the run was trained for.
        threshold: float, or None: the one that was best on the run's validation rows, or without such rows was estimated.

    Returns:
        OpenRun. Raises UserError where the folder holds no such run, or is damaged.
    """
    run = run_folder.load_run(folder)
    shape, settings = run["shape"], run["settings"]
    score = score or settings["score"]
    if threshold is None and score != settings["score"]:
        raise UserError(
            f"--val_sim_thres=auto: {folder} keeps a threshold for the {settings['score']}, not for --score={score}; "
            "leave --score out, or give a number"
        )
    names = class_list.load(os.path.join(folder, "classes.txt"))
    references = load_references(folder, shape, len(names))
    run_folder.check_unaltered(folder, run, names, references)
    if score != "cosine" and arrays.classes_with_references(references).sum() < 2:
        raise UserError(f"--score={score} compares classes, and {folder} has only one with references; give --score=cosine")
    step = run_folder.pick_step(folder, checkpoint)
    estimated = False
    if threshold is None:
        threshold, estimated = run_folder.auto_threshold(folder, run_folder.load_state(folder, step))
    return OpenRun(folder, step, names, references, shape, settings, score, threshold, estimated)


def load_references(folder, shape, num_classes):
    """The ref.npy of a folder, float32 [C, R, D], checked against the shape of a run."""
    return arrays.load_references(
        os.path.join(folder, "ref.npy"), num_classes=num_classes, num_ref=shape["num_ref"], img_dim=shape["img_dim"],
        embed_norm=shape["embed_norm"],
    )
