"""The methods that CleanNet is compared with, by name, on the rows of val.npy.

A module of its own because compare_methods.py tells what is measured and shown, and this what each method gets to see.
"""
import functools
import os
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.svm import SVC
from tqdm import tqdm

from util.lib import arrays, label_noise_methods, metrics, neighbours
from util.lib.errors import UserError, warn

FOLDS = 5
NEIGHBOURS = (5, 10, 20, 50)
INVERSE_PENALTIES = (0.001, 0.01, 0.1)  # of the logistic regression, ascending; features standardised
UNLABELLED = 2000  # unverified rows per class, at most, that label propagation gets


class Data:
    """What the methods see: train, val, and the `path`, `features` and given class `ids` of all.npy.

    `rows` int [n], ascending: the verified rows that are in all.npy, whose scores the methods find. `trained_on` are the indices of the
    training rows of kept classes.
    """

    def __init__(self, data_dir, class_names, heldout_ids):
        def open_array(split, **more):
            path = os.path.join(data_dir, f"{split}.npy")
            return arrays.FeatureArray(path, class_names=class_names, verified=split != "all", **more)

        self.train, self.val, everything = open_array("train"), open_array("val"), open_array("all", grouped=True)
        self.num_classes, self.heldout_ids = len(class_names), heldout_ids
        self.path, self.ids, self._everything = everything.path, everything.class_ids, everything
        # Of a key and its given class: an image may be in several classes, a row of each.
        index_of = {row: i for i, row in enumerate(zip(everything.sample_keys(), self.ids.tolist()))}
        index = [
            np.array([index_of.get(row, -1) for row in zip(part.sample_keys(), part.class_ids.tolist())], np.int64)
            for part in (self.train, self.val)
        ]
        self.rows = np.unique(np.concatenate([part[part >= 0] for part in index]))
        self._places = [np.where(part >= 0, np.searchsorted(self.rows, part), -1) for part in index]  # of (train, val) in rows
        missing = int(np.sum(index[1] < 0))
        if missing:
            warn(
                f"{missing} of {self.val.num_rows} validation rows are not in all.npy with their class; methods that need them there "
                "take their labels for correct"
            )
        self.trained_on = np.flatnonzero(~np.isin(self.train.class_ids, heldout_ids))

    @functools.cached_property
    def _loaded(self):
        """The features of all.npy in memory, log(1 + x) where all rows allow it, and whether they do."""
        features = np.array(self._everything.features)
        log = all(np.min(part) > -1 for part in (features, np.array(self.train.features), np.array(self.val.features)))
        return np.log1p(features, out=features) if log else features, log

    @property
    def features(self):
        """float32 [N, D], read when a method first asks for them."""
        return self._loaded[0]

    @property
    def log(self):
        """Whether every feature allows log(1 + x), which `features` then are."""
        return self._loaded[1]

    def verified(self, scores):
        """Scores of the rows of (train, val) from those of `rows`, float [n]; the highest for a row that is not in all.npy."""
        return [np.append(scores, scores.max(initial=0))[places] for places in self._places]

    def auroc(self, scores):
        """The AUROC of scores of `rows`, float [n], on the training rows of kept classes: settings are chosen by it."""
        found = self.verified(scores)[0][self.trained_on]
        return metrics.auroc(found, self.train.labels[self.trained_on] == 1)[0]

    def tuned(self, candidates):
        """The best setting on the training rows, and its validation scores. candidates: {setting: scores of `rows`, float [n]}."""
        setting = max(candidates, key=lambda setting: self.auroc(candidates[setting]))
        return setting, self.verified(candidates[setting])[1]


def class_mean_scores(data, seed):
    """Cosine to the mean of the given class."""
    unit = neighbours.unit_rows(data.features)
    sums = np.zeros((data.num_classes, unit.shape[1]), np.float32)
    for c, part in label_noise_methods.class_slices(data.ids):
        sums[c] = unit[part].sum(axis=0)
    cosines = (unit[data.rows] * neighbours.unit_rows(sums)[data.ids[data.rows]]).sum(axis=1)
    return {"cosine to the class mean": data.verified(cosines)[1]}


def neighbour_scores(data, seed):
    """Share of the k nearest other rows (cosine) that were given the same class."""
    most = min(max(NEIGHBOURS), len(data.ids) - 1)
    agree = nearest_ids(data, data.rows, most) == data.ids[data.rows][:, None]
    k, votes = data.tuned({k: agree[:, :k].mean(axis=1) for k in NEIGHBOURS if k <= most or k == min(NEIGHBOURS)})
    return {f"{k}-nearest-neighbour vote": votes}


def nearest_ids(data, rows, most):
    """The given classes of the nearest rows of all.npy: rows int [n] -> int [n, most]."""
    unit = neighbours.unit_rows(data.features)
    return data.ids[neighbours.nearest(unit, rows, np.arange(len(unit)), most)]


def simifeat_scores(data, seed):
    """SimiFeat's vote and rank, and its verdicts by noise rates, which some more rows tell."""
    rows, few_classes = data.rows, data.num_classes <= label_noise_methods.NOISE_CLASSES
    if few_classes:
        more = np.random.default_rng(seed).permutation(len(data.ids))[: label_noise_methods.NOISE_ROWS]
        rows = np.union1d(rows, more)
    given, found = data.ids[rows], nearest_ids(data, rows, min(label_noise_methods.HISTOGRAM, len(data.ids) - 1))
    vote, rank = label_noise_methods.simifeat(found, given)
    scores = {"SimiFeat, vote": vote, "SimiFeat, rank": rank}
    if few_classes:
        scores["SimiFeat, rank with its noise rates"] = label_noise_methods.below_noise_rates(rank, found, given, data.num_classes)
    else:
        warn(f"SimiFeat's noise rates are left out: {data.num_classes} classes are more than {label_noise_methods.NOISE_CLASSES}")
    asked = np.searchsorted(rows, data.rows)
    return {name: data.verified(of_rows[asked])[1] for name, of_rows in scores.items()}


def selfclean_scores(data, seed):
    """SelfClean's distance ratio."""
    unit = neighbours.unit_rows(data.features)
    return {"SelfClean": data.verified(label_noise_methods.distance_ratio(unit, data.ids, data.rows))[1]}


def fine_scores(data, seed):
    """FINE's alignment with the first singular vector of the class."""
    unit = neighbours.unit_rows(data.features)
    return {"FINE": data.verified(label_noise_methods.fine(unit, data.ids, data.rows))[1]}


def reconstruction_scores(data, seed):
    """The ratio of reconstruction errors by a PCA per class."""
    ratios = label_noise_methods.reconstruction_ratios(data.features, data.ids, data.rows, seed)
    return {"reconstruction error ratio": data.tuned(ratios)[1]}


def relation_scores(data, seed):
    """The relation graph."""
    unit = neighbours.unit_rows(data.features)
    return {"relation graph": data.tuned(label_noise_methods.relation_scores(unit, data.ids, data.rows, seed))[1]}


def training_scores(data, seed):
    """AUM, and the averaged margin, of a softmax layer in training."""
    found = label_noise_methods.training_margins(standardised(data), data.ids, data.rows, data.num_classes, seed)
    return {name: data.tuned(scores)[1] for name, scores in zip(("AUM", "in-sample averaged margin"), found)}


def standardised(data):
    """The features with mean 0 and variance 1, float32 [N, D]."""
    return StandardScaler().fit_transform(data.features)


def logistic_scores(data, seed):
    """Self-confidence and margin of cross-validated logistic regression, and what cleanlab makes of its probabilities."""
    probabilities = cross_validated_probabilities(data, seed)
    own = label_noise_methods.self_confidence(probabilities, data.ids)[data.rows]
    margin = label_noise_methods.margin(probabilities[data.rows], data.ids[data.rows])
    scores = {"logistic regression, self-confidence": data.verified(own)[1], "logistic regression, margin": data.verified(margin)[1]}
    return scores | cleanlab_scores(data, probabilities)


def hours_of_logistic(num_rows, img_dim, num_classes):
    """About how many hours the cross-validated logistic regression takes, float. docs/speed.md has what it was measured on."""
    evaluations = FOLDS * len(INVERSE_PENALTIES) * 50  # of the loss: a fit needs dozens
    return 8e-11 * evaluations * num_rows * img_dim * num_classes / 3600


def cross_validated_probabilities(data, seed):
    """Out-of-fold probabilities, float32 [N, C], of logistic regression on the given labels; tuned by self-confidence."""
    num_folds = min(FOLDS, int(np.bincount(data.ids).max()))
    if num_folds < 2 or len(np.unique(data.ids)) < 2:
        raise UserError(f"{data.path}: has too few rows or classes to cross-validate; give --methods=none, or more rows")
    hours = hours_of_logistic(*data.features.shape, data.num_classes)
    if hours > 1:
        others = ",".join(name for name in FAST if name != "logistic")
        warn(f"with {data.num_classes} classes, logistic regression takes about {hours:.0f} hours; leave it out by --methods={others}")
    x = standardised(data)
    folds = list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(x, data.ids))
    weights = [np.zeros((x.shape[1] + 1, data.num_classes), np.float32) for _ in folds]
    best, best_auroc = None, -1
    with tqdm(total=len(INVERSE_PENALTIES) * num_folds, desc="logistic regression", unit="fit", disable=None) as bar:
        for inverse_penalty in INVERSE_PENALTIES:
            probabilities = np.empty((len(x), data.num_classes), np.float32)
            for k, (fit_on, predict) in enumerate(folds):
                chosen = np.isin(np.arange(len(x)), fit_on)
                weights[k] = label_noise_methods.fit_logistic(x, data.ids, chosen, inverse_penalty, weights[k])
                probabilities[predict] = label_noise_methods.class_probabilities(x, predict, weights[k])
                bar.update()
            auroc = data.auroc(label_noise_methods.self_confidence(probabilities, data.ids)[data.rows])
            if best is None or auroc > best_auroc:
                best, best_auroc = probabilities, auroc
    return best


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
        found[f"cleanlab, {method.replace('_', ' ')}"] = data.verified(scores[data.rows])[1]
    for filter_by in ("prune_by_class", "prune_by_noise_rate", "both", "confident_learning", "predicted_neq_given"):
        issues = find_label_issues(data.ids, probabilities, filter_by=filter_by, n_jobs=1)
        found[f"cleanlab filter, {filter_by.replace('_', ' ')}"] = data.verified(1.0 - issues[data.rows])[1]
    return found


def supervised_scores(data, seed):
    """The paper's baselines: one classifier per class, of its verified rows; classes without both kinds are trusted."""
    folds = 3

    def grid(estimator, parameters, few):
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return estimator if few < folds else GridSearchCV(estimator, parameters, cv=splits, scoring="roc_auc")

    makers = {
        "k-nearest neighbours on verified rows": lambda few, _: grid(
            KNeighborsClassifier(n_neighbors=1, metric="cosine"), {"n_neighbors": [n for n in (1, 3, 5, 9) if n <= few] or [1]}, few
        ),
        "SVM on verified rows": lambda few, _: grid(SVC(), {"C": [0.1, 1, 10]}, few),
        "MLP on verified rows": lambda few, _: MLPClassifier((128,), alpha=1e-2, max_iter=200, random_state=seed),
        "label propagation": lambda _, rows: LabelPropagation(kernel="knn", n_neighbors=min(10, rows), max_iter=200),
        "label spreading": lambda _, rows: LabelSpreading(kernel="knn", n_neighbors=min(10, rows), max_iter=200),
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
                everything = np.concatenate([x, unlabelled])
                model = make(few, len(everything)).fit(everything, np.concatenate([labels, np.full(len(unlabelled), -1)]))
            else:
                model = make(few, len(x)).fit(x, labels)
            if hasattr(model, "decision_function"):
                found = 1 / (1 + np.exp(-model.decision_function(x_val)))
            else:
                found = np.nan_to_num(model.predict_proba(x_val)[:, list(model.classes_).index(1)], nan=0.5)
            scores[name][targets] = found
    return scores


SLOW = {"supervised": supervised_scores}
FAST = {
    "mean": class_mean_scores, "neighbours": neighbour_scores, "simifeat": simifeat_scores, "selfclean": selfclean_scores,
    "fine": fine_scores, "reconstruction": reconstruction_scores, "relations": relation_scores, "training": training_scores,
    "logistic": logistic_scores,
}


def named(names):
    """The methods that some names ask for, {name: function of Data and seed -> {method: float [N] of val.npy}}.

    Args:
        names: of methods; also fast (all but the slow ones), all, none. Raises UserError for another.
    """
    known = FAST | SLOW
    groups = {"fast": FAST, "all": known, "none": {}} | {name: {name: method} for name, method in known.items()}
    for name in names:
        if name not in groups:
            raise UserError(f"--methods={','.join(names)}: {name[:40]!r} is none of {', '.join(groups)}")
    asked = {chosen for name in names for chosen in groups[name]}
    return {name: method for name, method in known.items() if name in asked}


def scores_of(methods, data, seed):
    """Validation scores of some methods of named(), {method: float [N]}."""
    if methods and len(data.ids) < 2:
        raise UserError(f"{data.path}: has one row, and the other methods compare rows; give --methods=none, or more rows")
    warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations are enough to rank by
    warnings.filterwarnings("ignore", module="sklearn")  # of classes with a row or two
    scores = {}
    for name, method in (bar := tqdm(methods.items(), desc="methods", unit="group", disable=None)):
        bar.set_postfix_str(name)
        scores |= method(data, seed)
    return scores
