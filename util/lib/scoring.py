"""From a run folder to scores: opens a run with all that scoring needs, and scores rows in memory or block by block.

    run = scoring.open_run("runs/digits", checkpoint="best")
    scores = run.score_rows(features, class_ids)
"""
import os
from typing import NamedTuple

import numpy as np

from util.lib import arrays, class_list, command, metrics, run_folder, tsv
from util.lib.errors import UserError


class OpenRun(NamedTuple):
    """A run to score with, checked, before TensorFlow is imported.

    folder: str. step: int, of the checkpoint. class_names: list of str. references: float32 [C, R, D]. shape, settings: dict, of
    run.json. score: one of score_table.SCORES. threshold: float, score from which a label counts as correct. estimated: whether it
    was estimated from scores alone, without verified rows. is_best: whether the checkpoint was picked as the run's best.
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
    is_best: bool = False

    def validated_on(self, val):
        """Whether the rows of an arrays.FeatureArray are the very ones that the run was validated on."""
        return self.settings.get("val.npy") == val.identity()

    def chosen_on(self, val):
        """Whether the checkpoint is the best because of the very rows of an arrays.FeatureArray."""
        return self.is_best and self.validated_on(val)

    def about(self, val=None):
        """The line about the checkpoint that scores; with an arrays.FeatureArray, it says whether these rows chose it."""
        chosen = val is not None and self.chosen_on(val)
        return f"{self.folder}: checkpoint of step {self.step}{', the best by these very rows' * chosen}"

    def choice(self, val):
        """What the checkpoint was chosen from, a metrics.Choice, if the rows of an arrays.FeatureArray chose it.

        Returns:
            None where they did not, or where an earlier version trained and kept no scores of its validations.
        """
        if not self.chosen_on(val):
            return None
        state = run_folder.load_state(self.folder, run_folder.pick_step(self.folder, "latest"))  # it has the later validations too
        kept = run_folder.load_val_scores(self.folder, state, val.num_rows)
        steps = [entry["step"] for entry in state["history"]]
        asked = self.settings.get("val_sim_thres")
        if kept is None or asked is None or self.step not in steps:
            return None
        return metrics.Choice(kept, steps.index(self.step), command.parse_threshold(asked))

    def make_parser(self):
        """A tsv.Parser of rows to score: of the run's classes and width, with features that its normalisation allows."""
        return tsv.Parser(
            tsv.UNVERIFIED, self.class_names, width=self.shape["img_dim"], width_from=f"img_dim of {self.folder}",
            minimum=-1 if self.shape["embed_norm"] == "log" else None,
        )

    def with_references(self, references, class_names=None, source="an array"):
        """The run with other references, float32 [C, R, D], and for other classes if their names are given.

        Args:
            source: where the references come from, for messages. Raises UserError where they do not fit the run.
        """
        names = class_names or self.class_names
        references = np.asarray(references, np.float32)
        if references.ndim != 3:
            raise UserError(f"references of shape {references.shape}, expected (classes, {self.shape['num_ref']}, {self.shape['img_dim']})")
        arrays.check_references(f"the references of {source}", references, num_classes=len(names), **_of_features(self.shape))
        if run_folder.embeds_by_rows(self.settings) and not np.array_equal(references, self.references):
            raise UserError(
                f"{source}: its ref.npy is not that of {self.folder}, a run that embeds classes by their rows and uses no other; "
                "leave --data_dir out, or train with --class_embedding=references"
            )
        return self._replace(references=references, class_names=names)

    def score_rows(self, features, class_ids):
        """Scores rows in memory, with all scores and the nearest class.

        Args:
            features: float [N, D]. class_ids: int [N], indices into class_names.

        Returns:
            score_table.Scores, float32 [N] each. Raises UserError where the rows do not fit the run.
        """
        features, class_ids = np.asarray(features), np.asarray(class_ids)
        if features.ndim != 2 or features.shape[1] != self.shape["img_dim"] or class_ids.shape != features.shape[:1]:
            raise UserError(
                f"features of shape {features.shape} and class ids of shape {class_ids.shape}, expected (rows, "
                f"{self.shape['img_dim']}) for {self.folder}, and (rows,)"
            )
        with np.errstate(over="ignore"):
            features = features.astype(np.float32)
        lowest = -1 if self.shape["embed_norm"] == "log" else -np.inf
        bad = np.argwhere(~(np.isfinite(features) & (features > lowest)))
        if len(bad):
            row, column = bad[0]
            why = f"; {arrays.LOG_NEEDS}" if np.isfinite(features[row, column]) else ", expected finite numbers"
            raise UserError(f"features: row {row} has {features[row, column]} in column {column}{why}")
        if class_ids.dtype.kind not in "iu" or (len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < len(self.class_names)):
            raise UserError(f"class ids: {class_ids.dtype}, expected whole numbers from 0 to {len(self.class_names) - 1}")
        return self.make_scorer(compare_classes=True).score(features, class_ids.astype(np.int32))

    def make_scorer(self, **options):
        """Imports TensorFlow and restores the checkpoint. options: of Scorer. Returns a Scorer."""
        import model
        from util.lib.scorer import Scorer

        net = model.CleanNet(
            self.shape["num_ref"], self.shape["img_dim"], self.shape["embed_norm"], embed_scale=self.shape.get("embed_scale")
        )
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
    return OpenRun(folder, step, names, references, shape, settings, score, threshold, estimated, checkpoint == "best")


def load_references(folder, shape, num_classes):
    """The ref.npy of a folder, float32 [C, R, D], checked against the shape of a run."""
    return arrays.load_references(os.path.join(folder, "ref.npy"), num_classes=num_classes, **_of_features(shape))


def _of_features(shape):
    """What the references of a run have in common, of its shape."""
    return {name: shape[name] for name in ("num_ref", "img_dim", "embed_norm")}
