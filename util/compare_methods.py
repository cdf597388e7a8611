"""Compares CleanNet with other methods on the verified validation rows of your own data.

    python util/compare_methods.py --data_dir=data --checkpoint_dirs=runs/digits --output_dir=runs/comparison

Every method scores the rows of val.npy, and is measured as a validation is: its threshold is cross-fitted, and kept classes alone
choose it. Settings of the other methods are chosen by AUROC on the verified training rows. Writes comparison.json and
comparison.png, and prints a table. cleanlab is compared if it is installed.
"""
import os
import sys
import warnings

import numpy as np
from absl import flags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.svm import SVC
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, figures, locks, metrics, neighbours, paths, run_folder, scoring
from util.lib.errors import UserError, warn

flags.DEFINE_string("data_dir", None, "Folder of train.npy, val.npy, all.npy and classes.txt.", required=True)
flags.DEFINE_list("checkpoint_dirs", [], "Folders of training runs to compare, separated by commas. None: the other methods only.")
flags.DEFINE_string("heldout_class_list", None, "Classes to measure apart. Lines of class name, tab, 1 (keep) or 0 (hold out).")
flags.DEFINE_string("output_dir", None, "Folder for comparison.json and comparison.png.", required=True)
flags.DEFINE_bool("only_cleannet", False, "Compare training runs only, which saves minutes.")
flags.DEFINE_integer("seed", 1, "Seed of the folds and of the other methods.", lower_bound=0, upper_bound=2**32 - 1)

FOLDS = 5
NEIGHBOURS = (5, 10, 20, 50)
INVERSE_PENALTIES = (0.001, 0.01, 0.1)  # of the logistic regression; features standardised
UNLABELLED = 2000  # unverified rows per class, at most, that label propagation gets


def best_setting(candidates, labels, rows):
    """The setting with the highest AUROC on some rows. candidates: {setting: float [N]}. rows: int, indices."""
    return max(candidates, key=lambda setting: metrics.auroc(candidates[setting][rows], labels[rows] == 1)[0])


class Data:
    """What the methods see: train, val, and the `features` and given class `ids` of all.npy.

    `index` {"train" or "val": int [N]} is where the verified rows are in all.npy, -1 where they are not. `trained_on` are the
    indices of the training rows of kept classes. `log`: whether every feature allows log(1 + x).
    """

    def __init__(self, data_dir, class_names, heldout_ids):
        def open_array(split, **more):
            path = os.path.join(data_dir, f"{split}.npy")
            return arrays.FeatureArray(path, class_names=class_names, verified=split != "all", **more)

        self.train, self.val, everything = open_array("train"), open_array("val"), open_array("all", grouped=True)
        self.num_classes, self.heldout_ids = len(class_names), heldout_ids
        self.ids = everything.class_ids
        raw = [np.array(part.features) for part in (everything, self.train, self.val)]
        self.log = all(features.min() > -1 for features in raw)
        self.features = neighbours.prepared(raw[0], self.log)
        index_of = {key: i for i, key in enumerate(everything.sample_keys())}
        self.index = {
            name: np.array([index_of.get(key, -1) for key in part.sample_keys()])
            for name, part in (("train", self.train), ("val", self.val))
        }
        missing = int(np.sum(self.index["val"] < 0))
        if missing:
            warn(
                f"{missing} of {self.val.num_rows} validation rows are not in all.npy; methods that need them there take their "
                "labels for correct"
            )
        self.trained_on = np.flatnonzero(~np.isin(self.train.class_ids, heldout_ids))

    def verified(self, per_row):
        """Scores of the rows of (train, val) from those of every row of all.npy, float [N]; the highest for a missing row."""
        return [np.where(index >= 0, per_row[np.maximum(index, 0)], per_row.max()) for index in self.index.values()]

    def tuned(self, candidates):
        """The best setting on the training rows, and its validation scores. candidates: {setting: scores of all.npy, float [N]}."""
        on_train = {setting: self.verified(scores)[0] for setting, scores in candidates.items()}
        setting = best_setting(on_train, self.train.labels, self.trained_on)
        return setting, self.verified(candidates[setting])[1]


def class_mean_scores(data):
    """Cosine to the mean of the given class."""
    unit = neighbours.unit_rows(data.features)
    sums = np.zeros((data.num_classes, unit.shape[1]), np.float32)
    np.add.at(sums, data.ids, unit)
    return {"cosine to the class mean": data.verified((unit * neighbours.unit_rows(sums)[data.ids]).sum(axis=1))[1]}


def neighbour_scores(data):
    """Share of the k nearest other rows (cosine) that were given the same class."""
    unit = neighbours.unit_rows(data.features)
    rows = np.unique(np.concatenate([index[index >= 0] for index in data.index.values()]))
    most = min(max(NEIGHBOURS), len(unit) - 1)
    share = {k: np.ones(len(unit)) for k in NEIGHBOURS if k <= most or k == min(NEIGHBOURS)}
    agree = data.ids[neighbours.nearest(unit, rows, np.arange(len(unit)), most)] == data.ids[rows][:, None]
    for k in share:
        share[k][rows] = agree[:, :k].mean(axis=1)
    k, scores = data.tuned(share)
    return {f"{k}-nearest-neighbour vote": scores}


def cross_validated_probabilities(data, seed):
    """Out-of-fold probabilities, float [N, C], of logistic regression on the given labels; tuned by self-confidence."""
    num_folds = min(FOLDS, int(np.bincount(data.ids).max()))
    if num_folds < 2 or len(np.unique(data.ids)) < 2:
        raise UserError(f"{data.val.path}: all.npy has too few rows or classes to cross-validate; give --only_cleannet, or more rows")
    folds = list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(data.features, data.ids))
    candidates = {}
    bar = tqdm(total=len(INVERSE_PENALTIES) * num_folds, desc="logistic regression", unit="fit", disable=None)
    with bar:
        for penalty in INVERSE_PENALTIES:
            probabilities = np.zeros((len(data.ids), data.num_classes))
            for fit_on, predict in folds:
                classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200))
                classifier.fit(data.features[fit_on], data.ids[fit_on])
                probabilities[np.ix_(predict, classifier[-1].classes_)] = classifier.predict_proba(data.features[predict])
                bar.update()
            candidates[penalty] = probabilities
    penalty, _ = data.tuned({p: self_confidence(probabilities, data.ids) for p, probabilities in candidates.items()})
    return candidates[penalty]


def self_confidence(probabilities, ids):
    """The probability of the given class, [N]."""
    return probabilities[np.arange(len(ids)), ids]


def logistic_scores(data, probabilities):
    """Self-confidence, and its margin to the most probable other class, from out-of-fold probabilities [N, C]."""
    own = self_confidence(probabilities, data.ids)
    others = probabilities.copy()
    others[np.arange(len(own)), data.ids] = -1
    return {
        "logistic regression, self-confidence": data.verified(own)[1],
        "logistic regression, margin": data.verified(own - others.max(axis=1))[1],
    }


def cleanlab_scores(data, probabilities):
    """cleanlab's label quality scores, and its filters as scores of 0 (an issue) and 1 (none)."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        warn("cleanlab is not installed, so it is left out: pip install cleanlab")
        return {}
    found = {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        scores = get_label_quality_scores(data.ids, probabilities, method=method)
        found[f"cleanlab, {method.replace('_', ' ')}"] = data.verified(scores)[1]
    for filter_by in ("prune_by_class", "prune_by_noise_rate", "both", "confident_learning", "predicted_neq_given"):
        issues = find_label_issues(data.ids, probabilities, filter_by=filter_by, n_jobs=1)
        found[f"cleanlab filter, {filter_by.replace('_', ' ')}"] = data.verified(1.0 - issues)[1]
    return found


def supervised_scores(data, seed):
    """The paper's baselines: one classifier per class, of its verified rows; classes without both kinds are trusted."""
    folds = 3

    def grid(estimator, parameters, few):
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return estimator if few < folds else GridSearchCV(estimator, parameters, cv=splits, scoring="roc_auc")

    makers = {
        "k-nearest neighbours on verified rows": lambda few: grid(
            KNeighborsClassifier(n_neighbors=1, metric="cosine"), {"n_neighbors": [n for n in (1, 3, 5, 9) if n <= few] or [1]}, few
        ),
        "SVM on verified rows": lambda few: grid(SVC(), {"C": [0.1, 1, 10]}, few),
        "MLP on verified rows": lambda few: MLPClassifier((128,), alpha=1e-2, max_iter=200, random_state=seed),
        "label propagation": lambda few: LabelPropagation(kernel="knn", n_neighbors=10, max_iter=200),
        "label spreading": lambda few: LabelSpreading(kernel="knn", n_neighbors=10, max_iter=200),
    }
    scores = {name: np.ones(data.val.num_rows) for name in makers}
    rng = np.random.default_rng(seed)
    for c in tqdm(range(data.num_classes), desc="supervised baselines", unit="class", disable=None):
        index = data.trained_on[data.train.class_ids[data.trained_on] == c]
        labels, targets = data.train.labels[index], np.flatnonzero(data.val.class_ids == c)
        few = int(np.bincount(labels, minlength=2).min()) if len(labels) else 0
        if not few or not len(targets) or not (data.ids == c).any():
            continue
        scaler = StandardScaler().fit(data.features[data.ids == c])
        x, x_val = (
            scaler.transform(neighbours.prepared(np.array(array.features[rows]), data.log))
            for array, rows in ((data.train, index), (data.val, targets))
        )
        unlabelled = np.flatnonzero(data.ids == c)
        unlabelled = scaler.transform(data.features[rng.permutation(unlabelled)[:UNLABELLED]])
        for name, make in makers.items():
            if name.startswith("label"):
                model = make(few).fit(np.concatenate([x, unlabelled]), np.concatenate([labels, np.full(len(unlabelled), -1)]))
            else:
                model = make(few).fit(x, labels)
            if hasattr(model, "decision_function"):
                found = 1 / (1 + np.exp(-model.decision_function(x_val)))
            else:
                found = np.nan_to_num(model.predict_proba(x_val)[:, list(model.classes_).index(1)], nan=0.5)
            scores[name][targets] = found
    return scores


def cleannet_scores(data, folder):
    """Scores by a run's latest checkpoint, and what they are. Its best one was chosen on the rows that are measured here."""
    run = scoring.open_run(folder, "latest", threshold=metrics.FIXED_THRESHOLD)
    if run.shape["img_dim"] != data.val.img_dim:
        raise UserError(f"{data.val.path}: features of {data.val.img_dim} numbers, but {folder} was trained with {run.shape['img_dim']}")
    if run.shape["embed_norm"] == "log" and not data.log:
        raise UserError(f"{data.val.path}: has features of -1 or less, which {folder}, trained with --embed_norm=log, cannot score")
    return run.make_scorer(compare_classes=True).score(data.val.features, data.val.class_ids), run.score


def groups_of(evaluations):
    """The groups of classes that were measured: all, and perhaps kept and heldout. evaluations: {method: evaluation}."""
    return [group for group in metrics.GROUPS if group in next(iter(evaluations.values()))]


def table(evaluations):
    """The evaluations of {method: evaluation} as text, one line per method."""
    groups, width = groups_of(evaluations), max(map(len, evaluations))
    lines = [" " * width + "".join(f"  {group:>8} error %   AUROC      AP" for group in groups)]
    for name, evaluation in evaluations.items():
        cells = ""
        for group in (evaluation[group] for group in groups):
            error = group["chosen"]["average_error_rate"]
            cells += f"{'' if error is None else f'{100 * error:.2f}':>18}"
            cells += "".join(f"{'' if group[m] is None else f'{group[m]:.4f}':>8}" for m in ("auroc", "average_precision"))
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def draw(evaluations, path):
    """Draws a bar per method and group of classes: its average error rate. evaluations: {method: evaluation}."""
    names, groups = list(evaluations)[::-1], groups_of(evaluations)
    figure, axis = figures.figure(9, 1 + 0.3 * len(names) * max(1, len(groups) / 2))
    for i, group in enumerate(groups):
        height = 0.8 / len(groups)
        errors = [100 * (evaluations[name][group]["chosen"]["average_error_rate"] or 0) for name in names]
        bars = axis.barh(np.arange(len(names)) + 0.4 - height * (i + 0.5), errors, height, label=group)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("average error rate over classes, %, threshold cross-fitted")
    if len(groups) > 1:
        axis.legend(title="classes")
    figures.save_png(figure, path)


def scores_of_others(data, seed):
    """Validation scores of all methods but CleanNet, {method: float [N]}."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations are enough to rank by
    scores = class_mean_scores(data) | neighbour_scores(data) | supervised_scores(data, seed)
    probabilities = cross_validated_probabilities(data, seed)
    return scores | logistic_scores(data, probabilities) | cleanlab_scores(data, probabilities)


def scores_of_runs(data, folders):
    """Validation scores of training runs, {method: float [N]}, each named by its folder, in full where two have one name."""
    command.import_tensorflow()
    bases = [os.path.basename(os.path.normpath(folder)) for folder in folders]
    scores = {}
    for folder, base in zip(folders, bases):
        found, kind = cleannet_scores(data, folder)
        # A class without references has no score; its rows are trusted, as the other methods do.
        label = base if bases.count(base) == 1 else folder
        scores[f"CleanNet {label} ({kind})"] = np.nan_to_num(found.by(kind), nan=1.0)
    return scores


def main():
    opt = flags.FLAGS
    class_path = os.path.join(opt.data_dir, "classes.txt")
    names = class_list.load(class_path)
    heldout_ids = class_list.heldout_ids(opt.heldout_class_list, names)
    if opt.only_cleannet and not opt.checkpoint_dirs:
        raise UserError("--only_cleannet without --checkpoint_dirs compares nothing; give the folders of training runs")
    for folder in opt.checkpoint_dirs:
        class_list.require_beside(folder, names, class_path)
    outputs = {name: os.path.join(opt.output_dir, name) for name in ("comparison.json", "comparison.png")}
    inputs = {name: os.path.join(opt.data_dir, name) for name in run_folder.DATA_FILES}
    paths.check_distinct(outputs, inputs | {"--heldout_class_list": opt.heldout_class_list})
    atomic.check_writable(outputs.values())
    locks.Lock(os.path.join(opt.output_dir, "comparison"))  # of both, until the end of the command
    data = Data(opt.data_dir, names, heldout_ids)
    labels, class_ids = data.val.labels, data.val.class_ids
    if len(np.unique(labels[~np.isin(class_ids, heldout_ids)])) < 2:
        raise UserError(f"{data.val.path}: all verified rows are of one kind, expected correct and mislabeled ones; verify more")
    scores = {"trusting every label": np.ones(data.val.num_rows)}
    if not opt.only_cleannet:
        scores |= scores_of_others(data, opt.seed)
    if opt.checkpoint_dirs:
        scores |= scores_of_runs(data, opt.checkpoint_dirs)
    evaluations = {
        name: metrics.evaluate(values, labels, class_ids, metrics.FIXED_THRESHOLD, heldout_ids) for name, values in scores.items()
    }
    atomic.write_json(
        os.path.join(opt.output_dir, "comparison.json"), {"rows": data.val.num_rows, "methods": evaluations}
    )
    draw(evaluations, os.path.join(opt.output_dir, "comparison.png"))
    print(table(evaluations))
    print(f"{opt.output_dir}: comparison.json, comparison.png")


if __name__ == "__main__":
    command.run(main)
