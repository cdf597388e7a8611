"""Estimates how many labels are wrong, in all and per class, by a verified random sample and the scores of all rows together.

    python util/estimate_noise.py --score_file=runs/scores.tsv --val_npy=data/val.npy --train_npy=data/train.npy \
        --output_file=runs/noise.tsv --picture_file=runs/noise.png

The sample makes the scores' probabilities those of a wrong label. The estimate is their mean over all rows, and what the sample says
it is off by: prediction-powered inference (Angelopoulos et al., Science 2023). docs/deciding.md has the estimator, and its intervals.
"""
import os
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from scipy import special, stats

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, calibration, class_list, command, csv_rows, figures, metrics, paths, score_table
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import rows_of_verified

# Input.
flags.DEFINE_string("score_file", None, "Scores of all rows, a table.", required=True)
flags.DEFINE_string(
    "val_npy", None, "Verified rows, a random sample as choose_rows --for=val takes it, with keys and classes.txt beside.", required=True
)
flags.DEFINE_string("train_npy", None, "Verified rows that the scores were trained on: they count as they are, and are no sample.")
flags.DEFINE_bool("per_class", False, "The sample has a random sample of each class, as choose_rows --per_class takes it.")
# Run.
flags.DEFINE_string("output_file", None, "The estimates, tab-separated or .csv, .gz too.", required=True)
flags.DEFINE_string("picture_file", None, "A picture of them, .png.")

COLUMNS = ("class", "rows", "verified", "mislabeled", "low", "high")
LEAST_VERIFIED = 10  # rows of a sample that says anything
DRAWS = 2000  # of the number of wrong labels in a class
INTERVAL = (2.5, 97.5)  # percentiles
UNLIKELY = 0.001  # probability below which a sample is not taken for a random one
MOST_NAMED = 30  # classes with their names in the picture


class Estimate(NamedTuple):
    """A line of the output. rows, verified: int. mislabeled, low, high: shares, the last two of the 95 % interval."""

    name: str
    rows: int
    verified: int
    mislabeled: float
    low: float
    high: float


class Sample(NamedTuple):
    """A verified random sample of N rows. rows: int [V]. wrong: bool [V]. weights: float64 [V], with a sum of 1."""

    rows: np.ndarray
    wrong: np.ndarray
    weights: np.ndarray


def read_scores(path, names, class_path):
    """The rows of a table that have a score. Returns (columns key and class, probability float64 [N], class ids int [N])."""
    columns, first = score_table.read_columns(path)
    probability = columns["probability"]
    score_table.check_probabilities(probability, path, first)
    id_of, scored = {name: i for i, name in enumerate(names)}, np.isfinite(probability)
    for number, (name, has_score) in enumerate(zip(columns["class"], scored), first):
        if has_score and name not in id_of:
            raise UserError(f'{path}:{number}: class "{name[:40]}" is not in {class_path}{class_list.closest(name, names)}')
    if not scored.all():
        warn(f"{path}: {counted(int((~scored).sum()), 'row')} without a probability: left out")
    table = {name: [columns[name][i] for i in np.flatnonzero(scored)] for name in ("key", "class")}
    return table, probability[scored], np.array([id_of[name] for name in table["class"]], np.int64)


def take_sample(rows, wrong, class_ids, per_class):
    """The Sample of rows that were drawn from all rows, or as many of each class. class_ids: int [N], of all rows."""
    weights = np.ones(len(rows))
    if per_class:
        size, verified = np.bincount(class_ids), np.bincount(class_ids[rows], minlength=class_ids.max() + 1)
        weights = size[class_ids[rows]] / verified[class_ids[rows]]
    return Sample(rows, wrong, weights / weights.sum())


def why_not_random(probability, class_ids, rows, per_class):
    """Why verified rows cannot be a random sample of all rows, in words, or None. probability, class_ids: [N]. rows: int [V]."""
    order = np.lexsort((probability, class_ids))
    size = np.bincount(class_ids)
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order)) - (np.cumsum(size) - size)[class_ids[order]]
    at = np.random.default_rng(0).random(len(rows))  # or rows of small classes would share a few places
    place = (rank[rows] + at) / size[class_ids[rows]]  # of the score within its class: uniform for a random row
    if stats.kstest(place, "uniform").pvalue < UNLIKELY:
        return "their scores are not like those of all rows"
    if not per_class:
        share = size[size > 0] / len(class_ids)
        drawn = np.bincount(class_ids[rows], minlength=len(size))[size > 0]
        # Pearson's statistic. A gamma distribution has its mean and variance also where most classes have few rows.
        statistic, mean = ((drawn - len(rows) * share) ** 2 / (len(rows) * share)).sum(), len(share) - 1
        variance = 2 * mean + ((1 / share).sum() - len(share) ** 2 - 2 * mean) / len(rows)
        if mean and stats.gamma.sf(statistic, mean**2 / variance, scale=variance / mean) < UNLIKELY:
            return "their classes are not as frequent as in all rows"
    return None


def estimate_all(wrong_probability, sample):
    """The share of wrong labels among N rows, with its 95 % interval: float, float, float.

    Args:
        wrong_probability: float64 [N], calibrated on the sample. sample: Sample of these rows.
    """
    off = sample.wrong - wrong_probability[sample.rows]
    mean_off = sample.weights @ off
    share = float(np.clip(wrong_probability.mean() + mean_off, 0, 1))
    # The sample may hold no rare error of the scores, so their own uncertainty is the least. Two rows went into the map.
    observed = (sample.weights**2) @ (off - mean_off) ** 2
    believed = np.mean(wrong_probability * (1 - wrong_probability)) * (sample.weights**2).sum()
    verified = len(sample.rows)
    variance = max(observed, believed) * verified / (verified - 2) * (1 - verified / len(wrong_probability))
    alone = 1 / (sample.weights**2).sum()  # as many independent rows as the sample is worth without the scores
    return share, *metrics.wilson_interval(share, max(share * (1 - share) / max(variance, 1e-12), alone))


def estimate_classes(x, class_ids, sample, num_classes):
    """The number of wrong labels per class, with its 95 % interval: float64 [C, 3].

    Args:
        x: float64 [N], calibrated logits of a correct label. class_ids: int [N]. sample: Sample of these rows.
    """
    posterior = calibration.shift_posterior(x[sample.rows], ~sample.wrong, class_ids[sample.rows], num_classes)
    known = np.bincount(class_ids[sample.rows], weights=sample.wrong, minlength=num_classes)
    verified = np.zeros(len(x), bool)
    verified[sample.rows] = True
    others = np.flatnonzero(~verified)
    others = others[np.argsort(class_ids[others], kind="stable")]
    first = np.searchsorted(class_ids[others], np.arange(num_classes + 1))
    rng, found = np.random.default_rng(0), np.empty((num_classes, 3))
    for c in range(num_classes):
        wrong = special.expit(-(x[others[first[c] : first[c + 1]], None] + calibration.SHIFTS))  # [rows of the class, G]
        expected, variance = wrong.sum(axis=0), (wrong * (1 - wrong)).sum(axis=0)
        shift = rng.choice(len(posterior[c]), DRAWS, p=posterior[c])
        drawn = np.clip(rng.normal(expected[shift], np.sqrt(variance[shift])), 0, len(wrong))
        found[c] = known[c] + np.array([posterior[c] @ expected, *np.percentile(drawn, INTERVAL)])
    return found


def estimate(probability, class_ids, trained, sample, names):
    """The Estimates: of all rows, then of each class that has rows, the highest share first.

    Args:
        probability: float64 [N], of a correct label. class_ids: int [N]. names: list of str [C].
        trained: int8 [N], 1 for a row that is known to be correct, 0 for mislabeled, -1 for the others. sample: Sample of the others.
    """
    others = trained < 0
    x, ids = calibration.logits(probability[others]), class_ids[others]
    slope, intercept = calibration.fit_map(x[sample.rows], ~sample.wrong, sample.weights * len(sample.rows))
    x = slope * x + intercept
    shares = np.array(estimate_all(special.expit(-x), sample))
    counts = estimate_classes(x, ids, sample, len(names))
    rows = np.bincount(class_ids, minlength=len(names))
    known = np.bincount(class_ids[trained == 0], minlength=len(names))
    verified = np.bincount(class_ids[trained >= 0], minlength=len(names)) + np.bincount(ids[sample.rows], minlength=len(names))
    total = (known.sum() + shares * others.sum()) / len(trained)
    found = [
        Estimate(name, int(rows[c]), int(verified[c]), *((known[c] + counts[c]) / rows[c]).tolist())
        for c, name in enumerate(names) if rows[c]
    ]
    found.sort(key=lambda line: -line.mislabeled)
    return [Estimate("all", len(trained), int(verified.sum()), *total.tolist()), *found]


def draw(estimates, path):
    """Writes the picture: the MOST_NAMED classes with the highest shares by name, and a curve of all if there are more."""
    every, *classes = estimates
    named = classes[:MOST_NAMED][::-1]
    more = len(classes) > MOST_NAMED
    figure, axes = figures.figure(11 if more else 7, 1.2 + 0.22 * len(named), columns=1 + more)
    axis, *others = np.atleast_1d(axes)

    def percent(lines):
        return 100 * np.array([line[3:] for line in lines]).T

    share, low, high = percent(named)
    axis.errorbar(share, range(len(named)), xerr=[np.maximum(share - low, 0), np.maximum(high - share, 0)], fmt="o", color=figures.BLUE)
    axis.set_yticks(range(len(named)), [line.name[:30] for line in named])
    axis.set_xlabel("wrong labels, %, with 95 % intervals")
    axis.set_title(f"The {len(named)} classes with the most" if more else "Each class", fontsize="medium")
    axis.axvline(100 * every.mislabeled, color="gray", linestyle=":", label=f"all rows: {100 * every.mislabeled:.1f} %")
    axis.legend(loc="lower right")
    for axis in others:
        share, low, high = percent(classes)
        rank = np.arange(1, len(classes) + 1)
        axis.fill_between(rank, low, high, color=figures.GREY, label="95 % interval of a class")
        axis.plot(rank, share, color=figures.BLUE, label="estimate")
        axis.axhline(100 * every.mislabeled, color="gray", linestyle=":")
        axis.set(xlabel="classes, by their share", ylabel="wrong labels, %", xlim=(1, len(classes)), ylim=(0, None))
        axis.set_title(f"All {len(classes)} classes", fontsize="medium")
        axis.legend(loc="upper right")
    figures.save_png(figure, path)


def main():
    opt = flags.FLAGS
    class_path = os.path.join(os.path.dirname(opt.val_npy), "classes.txt")
    inputs = {"--score_file": opt.score_file, "its class list": class_path} | arrays.files_of("--val_npy", opt.val_npy)
    inputs |= {f"{name} (training)": path for name, path in arrays.files_of("--train_npy", opt.train_npy or "").items() if opt.train_npy}
    outputs = {"--output_file": opt.output_file, "--picture_file": opt.picture_file}
    paths.check_distinct(outputs, inputs)
    names = class_list.load(class_path)
    table, probability, class_ids = read_scores(opt.score_file, names, class_path)
    trained = np.full(len(probability), -1, np.int8)
    if opt.train_npy:
        train = arrays.FeatureArray(opt.train_npy, class_names=names, verified=True)
        rows, found = rows_of_verified(train, names, table, opt.score_file)
        trained[rows] = train.labels[found]
    val = arrays.FeatureArray(opt.val_npy, class_names=names, verified=True)
    rows, found = rows_of_verified(val, names, table, opt.score_file)
    rows, once = np.unique(rows, return_index=True)  # a key that is verified twice is one row
    found, others = found[once], trained < 0
    rows, labels = (np.cumsum(others) - 1)[rows[others[rows]]], val.labels[found[others[rows]]]
    if len(rows) < LEAST_VERIFIED:
        raise UserError(f"{opt.val_npy}: {counted(len(rows), 'row')} with a score, and none of training; verify {LEAST_VERIFIED} at least")
    why = why_not_random(probability[others], class_ids[others], rows, opt.per_class)
    if why:
        warn(f"{opt.val_npy}: is no random sample: {why}; the estimate may be far off. Verify rows of util/choose_rows.py --for=val")
    sample = take_sample(rows, labels == 0, class_ids[others], opt.per_class)
    atomic.check_writable(outputs.values())
    estimates = estimate(probability, class_ids, trained, sample, names)
    lines = [(line.name, *map(str, line[1:3]), *(f"{share:.4f}" for share in line[3:])) for line in estimates]
    atomic.write_text(opt.output_file, csv_rows.to_text(opt.output_file, [COLUMNS, *lines]))
    if opt.picture_file:
        draw(estimates, opt.picture_file)
    low, high = metrics.wilson_interval(sample.weights @ sample.wrong, 1 / (sample.weights**2).sum())
    print(
        f"{opt.output_file}: {100 * estimates[0].mislabeled:.1f} % of {len(probability)} labels are wrong, {100 * estimates[0].low:.1f} to "
        f"{100 * estimates[0].high:.1f} %; by the {len(rows)} verified rows alone {100 * low:.1f} to {100 * high:.1f} %"
    )


if __name__ == "__main__":
    command.run(main)
