"""How good a classifier is on rows whose class is known: its accuracies with intervals as JSON, and its confusions as a picture.

A module of its own because train_classifier.py need not know how a test is counted and drawn.
"""
import os

import numpy as np

from util.lib import atomic, figures

RESAMPLES = 500  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles, a 95 % interval
TOP = 5
MOST_CLASSES = 100  # in the picture: those with the lowest accuracy
MOST_SQUARE = 1000  # classes up to which test.json holds the whole matrix; that of 5,000 would be 226 MB, nearly all zeros
MOST_WRITTEN = 20  # classes up to which the picture holds its numbers


def count(blocks, class_ids, num_classes):
    """Counts what a classifier finds.

    Args:
        blocks: iterable of probabilities, float32 [n, C], together of N rows. class_ids: int [N], the true classes.

    Returns:
        (int64 [C, C], rows by true and by most probable class; int64 [C], rows by true class with it among the TOP most probable).
    """
    confusion, in_top = np.zeros((num_classes, num_classes), np.int64), np.zeros(num_classes, np.int64)
    done = 0
    for block in blocks:
        true = class_ids[done : done + len(block)]
        done += len(block)
        np.add.at(confusion, (true, block.argmax(axis=1)), 1)
        rank = (block > block[np.arange(len(block)), true][:, None]).sum(axis=1)
        np.add.at(in_top, true[rank < TOP], 1)
    return confusion, in_top


def measure(confusion, in_top, class_names):
    """The contents of test.json. Arguments of count()."""
    rng, rows = np.random.default_rng(0), confusion.sum(axis=1)
    tested = rows > 0

    def resampled(hits):
        """Hits by class in each resample of as many rows within each class, int [RESAMPLES, C]: binomial."""
        return rng.binomial(rows, hits / np.maximum(rows, 1), (RESAMPLES, len(rows)))

    def with_interval(value, resamples):
        low, high = np.percentile(resamples, INTERVAL)
        return {"value": float(value), "low": float(low), "high": float(high)}

    hits = np.diag(confusion)
    by_class = resampled(hits)[:, tested] / rows[tested]
    weights = rows[tested] / rows.sum()
    top = {"value": None, "reason": f"{len(rows)} classes"}
    if len(rows) > TOP:
        top = with_interval(in_top.sum() / rows.sum(), resampled(in_top).sum(axis=1) / rows.sum())
    accuracy = dict(zip(np.flatnonzero(tested), by_class.T))
    return {
        "rows": int(rows.sum()), "interval": f"95 %, bootstrap of {RESAMPLES} resamples within classes",
        "top_1": with_interval(hits.sum() / rows.sum(), by_class @ weights), f"top_{TOP}": top,
        "mean_over_classes": with_interval((hits[tested] / rows[tested]).mean(), by_class.mean(axis=1)),
        "classes": {
            name: {
                "rows": int(rows[c]),
                "top_1": with_interval(hits[c] / rows[c], accuracy[c]) if tested[c] else {"value": None, "reason": "no rows"},
            }
            for c, name in enumerate(class_names)
        },
        "confusion": confusion.tolist() if len(rows) <= MOST_SQUARE else _without_zeros(confusion, class_names),
    }


def _without_zeros(confusion, class_names):
    """A confusion matrix as {true class: {class found: rows}}, without what was never found."""
    pairs = {}
    for true, found in np.argwhere(confusion).tolist():
        pairs.setdefault(class_names[true], {})[class_names[found]] = int(confusion[true, found])
    return pairs


def draw(confusion, class_names, path):
    """Writes the confusion matrix as a PNG: the share of each true class that is taken for each class. confusion: of count()."""
    rows = confusion.sum(axis=1)
    tested = shown = np.flatnonzero(rows)
    if len(tested) > MOST_CLASSES:
        accuracy = np.diag(confusion)[tested] / rows[tested]
        shown = np.sort(tested[np.argsort(accuracy, kind="stable")[:MOST_CLASSES]])
    shares = confusion[np.ix_(shown, shown)] / rows[shown][:, None]
    names, size = [class_names[c][:20] for c in shown], 3 + 0.12 * len(shown) + 0.28 * min(len(shown), 10)
    figure, axis = figures.figure(size + 1, size)
    font = 9 if len(shown) <= MOST_WRITTEN else 6
    # Colours by the square root, so that rare confusions show.
    image = axis.imshow(100 * shares, cmap="Blues", norm=figures.pyplot().matplotlib.colors.PowerNorm(0.5, 0, 100))
    axis.set_xticks(range(len(shown)), names, rotation=90, fontsize=font)
    axis.set_yticks(range(len(shown)), names, fontsize=font)
    axis.set(xlabel="class found", ylabel="true class")
    if len(shown) < len(tested):
        axis.set_title(f"The {len(shown)} of {len(tested)} classes with the lowest accuracy")
    figure.colorbar(image, label="share of the true class, %", shrink=0.8)
    if len(shown) <= MOST_WRITTEN:
        for i, j in np.ndindex(len(shown), len(shown)):
            share = round(100 * shares[i, j])
            if share:
                axis.text(j, i, str(share), ha="center", va="center", fontsize=8, color="white" if share > 30 else "black")
    figures.save_png(figure, path)


def paths_in(folder):
    """The files that write() writes in a folder: test.json and confusion.png."""
    return [os.path.join(folder, name) for name in ("test.json", "confusion.png")]


def write(folder, confusion, in_top, class_names):
    """Writes test.json and confusion.png into a folder. Arguments of count(). Returns the contents of test.json."""
    report_path, picture_path = paths_in(folder)
    report = measure(confusion, in_top, class_names)
    draw(confusion, class_names, picture_path)
    atomic.write_json(report_path, report)
    return report
