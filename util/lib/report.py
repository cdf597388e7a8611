"""A validation report: the evaluation of metrics.py with confidence intervals as report.json, and pictures as report.html.

Precision, recall and average precision are about finding mislabeled rows. A module of its own because inference.py needs the
pictures' libraries only where a report is asked for.
"""
import html
import os
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sk_metrics

from util.lib import arrays, atomic, calibration, figures, images, locks, metrics
from util.lib.errors import UserError

RESAMPLES = 500  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles, a 95 % interval
MOST_CLASSES = 40  # bars in the picture of the classes
MOST_LISTED = 100  # classes in the table of the page; report.json has all
CHECKED = tuple(n * 10**power for power in range(1, 7) for n in (1, 3))  # how many rows a person may have time for
MOST_NAMED = 6  # of these numbers below the picture; more would touch each other
MOST_IMAGES, IMAGE_SIZE = 24, 96  # of a group of thumbnails; pixels of their sides


def files_in(folder):
    """The paths of a report, the data and the page: {name: path}."""
    return {name: os.path.join(folder, name) for name in ("report.json", "report.html")}


def lock(folder):
    """Makes this process the only one that writes a report there, until it ends."""
    return locks.Lock(os.path.join(folder, "report_dir"))  # not the name of a file of it, each of which has a lock of its own


def _bootstrap_weights(class_ids, seed=0):
    """How often each resample draws each row, float32 [RESAMPLES, N]; every class keeps its number of rows."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((RESAMPLES, len(class_ids)), np.float32)
    for rows in filter(len, arrays.rows_by_class(class_ids, int(class_ids.max()) + 1)):
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    return weights


def _resampled_share(weights, hits, among):
    """Mean of `hits` over the rows, weighted by `among`, float [N] both, in each resample: float [RESAMPLES]."""
    with np.errstate(invalid="ignore"):
        return (weights @ (hits * among)) / (weights @ among)


def _resampled_class_error(weights, wrong, class_ids):
    """Mean over classes of the mean of `wrong`, float [N], in each resample: float [RESAMPLES]."""
    order = np.argsort(class_ids, kind="stable")
    _, starts, sizes = np.unique(class_ids[order], return_index=True, return_counts=True)
    return (np.add.reduceat(weights[:, order] * wrong[order], starts, axis=1) / sizes).mean(axis=1)


def _with_interval(value, resample, why_undefined):
    """A measure as report.json holds it. resample: function -> the measure in each resample, float [RESAMPLES]."""
    if value is None:
        return {"value": None, "reason": why_undefined}
    resampled = resample()
    usable = resampled[np.isfinite(resampled)]
    low, high = np.percentile(usable, INTERVAL) if len(usable) else (value, value)
    return {"value": value, "low": float(low), "high": float(high)}


def add_intervals(group, weights, scores, labels, class_ids, decisions):
    """Gives every measure of a group its interval.

    Args:
        group: of metrics.evaluate_group, for the same rows. weights: float32 [RESAMPLES, N]. scores, labels, class_ids: [N].
        decisions: as in metrics.evaluate_group.

    Returns:
        The group with a dict of value, low and high, or of value (None) and reason, in place of each measure.
    """
    correct, nothing = labels == 1, "no verified rows"
    mislabeled = np.float32(~correct)
    one_kind = f"all verified rows are {'correct' if correct.all() else 'mislabeled'}" if len(labels) else nothing
    result = {
        "rows": group["rows"], "mislabeled": group["mislabeled"],
        "auroc": _with_interval(group["auroc"], lambda: metrics.auroc(scores, correct, weights), one_kind),
        "average_precision": _with_interval(
            group["average_precision"], lambda: metrics.average_precision(scores, correct, weights), one_kind
        ),
        "trusting_every_label": _with_interval(
            group["trusting_every_label"], lambda: _resampled_class_error(weights, mislabeled, class_ids), nothing
        ),
    }
    for name, accepted in decisions.items():
        wrong, flagged = np.float32(metrics.wrong_decisions(accepted, labels)), np.float32(1.0 - accepted)
        resamples = {
            "average_error_rate": (lambda wrong=wrong: _resampled_class_error(weights, wrong, class_ids), nothing),
            "accuracy": (lambda wrong=wrong: _resampled_share(weights, 1 - wrong, np.ones_like(wrong)), nothing),
            "precision": (lambda flagged=flagged: _resampled_share(weights, mislabeled, flagged), "no row is taken for mislabeled"),
            "recall": (lambda flagged=flagged: _resampled_share(weights, flagged, mislabeled), "no verified row is mislabeled"),
        }
        result[name] = {
            measure: _with_interval(group[name][measure], resample, why if len(labels) else nothing)
            for measure, (resample, why) in resamples.items()
        }
    return result


def lowest(scores, correct):
    """How many of the N lowest scores are of mislabeled rows, for each N of CHECKED that is at most the number of rows.

    Args:
        scores: float [M], finite. correct: bool [M].

    Returns:
        list of {"rows": N, "share": N / M, "precision": {"value", "low", "high"}}.
    """
    wrong = np.cumsum(~correct[np.argsort(scores, kind="stable")])
    found = []
    for n in (n for n in CHECKED if n <= len(scores)):
        value = float(wrong[n - 1] / n)
        low, high = metrics.wilson_interval(value, n)
        found.append({"rows": n, "share": n / len(scores), "precision": {"value": value, "low": low, "high": high}})
    return found


def error_intervals(decisions, labels, class_ids, heldout_ids=()):
    """The 95 % interval of each group's average error rate: {group: [low, high]}, for groups with rows.

    Args: as in metrics.evaluate_group; int [N]; int [N]; list of int.
    """
    weights, wrong = _bootstrap_weights(class_ids), np.float32(metrics.wrong_decisions(decisions, labels))
    return {
        name: np.percentile(_resampled_class_error(weights[:, rows], wrong[rows], class_ids[rows]), INTERVAL).tolist()
        for name, rows in metrics.group_members(class_ids, heldout_ids).items() if rows.any()
    }


def measure(scores, labels, class_ids, class_names, *, threshold, heldout_ids=(), score="cosine", choice=None):
    """The contents of report.json. Arguments as in write. Rows without a score (NaN) are left out and counted."""
    scored = np.isfinite(scores)
    without_score = int((~scored).sum())
    scores, labels, class_ids = scores[scored].astype(np.float64), labels[scored], class_ids[scored]
    decisions, chosen_threshold = metrics.decide(scores, labels, class_ids, threshold, heldout_ids, choice and choice.of(scored))
    weights = _bootstrap_weights(class_ids)

    def group(rows):
        decided = {name: accepted[rows] for name, accepted in decisions.items()}
        columns = scores[rows], labels[rows], class_ids[rows], decided
        return add_intervals(metrics.evaluate_group(*columns), weights[:, rows], *columns)

    return {
        "score": score, "thresholds": {"fixed": threshold, "chosen": chosen_threshold}, "rows_without_score": without_score,
        "interval": f"95 %, bootstrap of {RESAMPLES} resamples within classes; of lowest, Wilson's",
        "chosen_threshold": "fixed: decided at the given threshold. chosen: each half of the rows is decided at the threshold that is "
        "best on the other half, with the checkpoint that the other half chooses, if these rows chose it; rows of held-out classes at "
        f"thresholds.chosen, the best on all the others; the mean over {metrics.SPLITS} random splits into halves",
        "lowest": lowest(scores, labels == 1),
        **{name: group(rows) for name, rows in metrics.group_members(class_ids, heldout_ids).items()},
        "classes": dict(zip(class_names, map(group, arrays.rows_by_class(class_ids, len(class_names))))),
    }


def draw_distribution(scores, correct, report):
    """Histogram of the scores of correct and of mislabeled rows, with the thresholds."""
    figure, axis = figures.figure(7, 3.6)
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 41)
    axis.hist([scores[correct], scores[~correct]], bins, stacked=True, color=[figures.BLUE, figures.RED], label=["correct", "mislabeled"])
    for (name, value), style in zip(report["thresholds"].items(), ("--", "-")):
        if value is not None:
            axis.axvline(value, color="black", linestyle=style, label=f"threshold, {name}: {value:.3f}")
    axis.set_xlabel(report["score"])
    axis.set_ylabel("verified rows")
    axis.legend()
    return figure


def draw_curves(scores, correct, report):
    """Precision-recall and ROC curve of finding the mislabeled."""
    figure, (left, right) = figures.figure(7, 3.6, columns=2)
    if not correct.all() and correct.any():
        precision, recall, _ = sk_metrics.precision_recall_curve(~correct, -scores)
        left.step(recall, precision, where="post", color=figures.RED, label=f"AP {report['all']['average_precision']['value']:.3f}")
        false_positive, true_positive, _ = sk_metrics.roc_curve(~correct, -scores)
        right.plot(false_positive, true_positive, color=figures.RED, label=f"AUROC {report['all']['auroc']['value']:.3f}")
    left.axhline(np.mean(~correct), color="gray", linestyle=":", label="at random")
    right.plot([0, 1], [0, 1], color="gray", linestyle=":", label="at random")
    left.set(xlabel="recall of the mislabeled", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="correct rows taken for mislabeled", ylabel="mislabeled rows found", xlim=(0, 1), ylim=(0, 1.02))
    left.legend(loc="lower left")
    right.legend(loc="lower right")
    return figure


def worst_classes(report, most):
    """The classes of the highest error rate, the worst first.

    Returns:
        (how rows are decided, fixed or chosen; list of (error rate, that of trusting every label, name)).
    """
    decided = "chosen" if report["thresholds"]["chosen"] is not None else "fixed"
    rows = [
        (group[decided]["average_error_rate"]["value"], group["trusting_every_label"]["value"], name)
        for name, group in report["classes"].items() if group["rows"]
    ]
    return decided, sorted(rows, reverse=True)[:most]


def draw_classes(report):
    """Error rate of each class at the chosen threshold, beside that of trusting every label; the MOST_CLASSES worst."""
    decided, rows = worst_classes(report, MOST_CLASSES)
    rows = rows[::-1]
    figure, axis = figures.figure(7, 1.2 + 0.28 * len(rows))
    y = np.arange(len(rows))
    axis.barh(y + 0.2, [100 * row[1] for row in rows], 0.38, color=figures.GREY, label="trusting every label")
    axis.barh(y - 0.2, [100 * row[0] for row in rows], 0.38, color=figures.BLUE, label=f"CleanNet, {decided} threshold")
    axis.set_yticks(y, [row[2][:30] for row in rows])
    axis.set_xlabel("error rate, %")
    axis.margins(y=0.01)
    figure.legend(loc="outside upper right", ncols=2)  # bars may fill the axes
    return figure


def draw_effort(scores, correct, report):
    """Share of the mislabeled rows that is found when a share of all rows is checked, lowest scores first, and the precision."""
    figure, (axis, precision) = figures.figure(7, 3.6, columns=2)
    found = np.cumsum(~correct[np.argsort(scores, kind="stable")]) / max(1, np.sum(~correct))
    share = np.arange(1, len(scores) + 1) / len(scores)
    axis.plot(100 * share, 100 * found, color=figures.BLUE, label="worst score first")
    axis.plot([0, 100], [0, 100], color="gray", linestyle=":", label="at random")
    axis.plot([0, 100 * np.mean(~correct), 100], [0, 100, 100], color=figures.GREEN, linestyle="--", label="a perfect order")
    axis.set(xlabel="rows checked, %", ylabel="mislabeled rows found, %", xlim=(0, 100), ylim=(0, 102))
    axis.legend(loc="lower right")
    rows = [entry["rows"] for entry in report["lowest"]]
    value, low, high = (100 * np.array([entry["precision"][end] for entry in report["lowest"]]) for end in ("value", "low", "high"))
    precision.errorbar(rows, value, yerr=[value - low, high - value], fmt="o-", color=figures.BLUE, capsize=3)
    precision.axhline(100 * np.mean(~correct), color="gray", linestyle=":", label="at random")
    precision.set(xlabel="rows of the lowest scores", ylabel="of them mislabeled, %", xscale="log", ylim=(0, 105))
    named = rows[:: 1 if len(rows) <= MOST_NAMED else 2]  # all, or the powers of ten
    precision.set_xticks(named, [f"{n:,}" for n in named])
    precision.set_xticks([], minor=True)
    precision.legend(loc="lower left")
    return figure


def draw_reliability(scores, labels, class_ids, heldout_ids):
    """Share of correct rows among rows of like probability, as it is and as combine_scores --calibrate makes it, cross-fitted."""
    figure, axis = figures.figure(7, 3.6)
    kept = ~np.isin(class_ids, list(heldout_ids))
    calibrated = calibration.cross_fitted(scores, labels, class_ids, int(class_ids.max()) + 1, np.unique(class_ids[~kept]))
    for name, values, colour in (("as scored", scores, figures.RED), ("calibrated", calibrated, figures.BLUE)):
        said, true, rows = calibration.bins(values[kept], labels[kept] == 1)
        low, high = np.array([metrics.wilson_interval(share, n) for share, n in zip(true, rows)]).T
        label = f"{name}: calibration error {calibration.error(values[kept], labels[kept] == 1):.3f}"
        axis.errorbar(said, true, yerr=[true - low, high - true], fmt="o-", color=colour, capsize=3, label=label)
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="what it should be")
    axis.set(xlabel="probability", ylabel="share of correct labels", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(loc="lower right")
    return figure


STYLE = """body{font:16px/1.45 system-ui,sans-serif;color:#1d2733;max-width:60rem;margin:1rem auto;padding:0 1rem}
img{max-width:100%;height:auto}table{border-collapse:collapse;font-size:.9rem}td,th{padding:.2rem .6rem;text-align:right;
border-bottom:1px solid #dde2ea}td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}.note{color:#555;font-size:.9rem}
figure{display:inline-block;width:9rem;margin:.3rem;vertical-align:top;font-size:.8rem;overflow-wrap:anywhere}
figure img,figure .none{width:96px;height:96px;border:2px solid;display:block}"""


class Pictured(NamedTuple):
    """Where the images of rows are. keys: list of str [N]. folder: in which a key names an image."""

    keys: list
    folder: str


def picked_rows(scores, threshold):
    """The rows to show, {heading: int array}: those of the lowest scores, and those nearest to the threshold. scores: float [N]."""
    lowest = np.argsort(scores, kind="stable")[:MOST_IMAGES]
    nearest = np.argsort(np.abs(scores - threshold), kind="stable")[:MOST_IMAGES]
    return {"Lowest scores": lowest, "Nearest to the threshold": nearest[np.argsort(scores[nearest], kind="stable")]}


def draw_rows(rows, pictured, scores, labels, names):
    """Thumbnails of some rows as HTML, each with its key, class, score and label.

    Args:
        rows: int, indices. pictured: Pictured. scores, labels: [N]. names: list of str [N], the given class of each row.
    """
    cells = []
    for i in rows:
        pixels = images.thumbnail(images.find(pictured.keys[i], "", pictured.folder), IMAGE_SIZE)
        verified, colour = figures.LABELS[int(labels[i])]
        image = '<span class="none">no image</span>'
        if pixels is not None:
            image = f'<img alt="" style="color:{colour}" src="data:image/jpeg;base64,{images.jpeg_base64(pixels)}">'
        key, name = (html.escape(text[:200]) for text in (pictured.keys[i], names[i]))
        cells.append(f"<figure>{image}<b>{key}</b><br>{name}<br>{scores[i]:.3f}, {verified}</figure>")
    return "".join(cells)


def _cell(measured, percent=True):
    if measured is None or measured["value"] is None:
        return f'<td title="{html.escape((measured or {}).get("reason", "no verified rows"))}">–</td>'
    scale, digits = (100, 1) if percent else (1, 3)
    low, high = (f"{scale * measured[end]:.{digits}f}" for end in ("low", "high"))
    return f'<td title="95 % interval {low} to {high}">{scale * measured["value"]:.{digits}f}</td>'


def _row(name, group):
    cells = [_cell(group.get("trusting_every_label"))]
    for decided in ("fixed", "chosen"):
        cells += [_cell(group.get(decided, {}).get(measure)) for measure in ("average_error_rate", "precision", "recall")]
    cells += [_cell(group.get(measure), percent=False) for measure in ("auroc", "average_precision")]
    return f"<tr><td>{html.escape(name)}</td><td>{group['rows']}</td><td>{group['mislabeled']}</td>{''.join(cells)}</tr>"


def render(report, pictures, thumbnails):
    """report.html: one file, nothing fetched. pictures: list of (title, explanation, PNG as base64). thumbnails: {heading: HTML}."""
    groups = {"all classes": report["all"]}
    groups |= {what: report[group] for group, what in (("kept", "kept classes"), ("heldout", "held-out classes")) if group in report}
    fixed, chosen = report["thresholds"]["fixed"], report["thresholds"]["chosen"]
    head = (
        "<tr><th></th><th>rows</th><th>mislabeled</th><th>trusting every label</th>"
        + "".join(f"<th>error, {t}</th><th>precision, {t}</th><th>recall, {t}</th>" for t in ("fixed", "chosen"))
        + "<th>AUROC</th><th>AP</th></tr>"
    )
    best = "none, no class is kept" if chosen is None else f"{chosen:.4f}"
    checked = "".join(
        f"<tr><td>{entry['rows']}</td><td>{100 * entry['share']:.1f}</td>{_cell(entry['precision'])}"
        f"<td>{100 * entry['precision']['low']:.1f} to {100 * entry['precision']['high']:.1f}</td></tr>" for entry in report["lowest"]
    )
    shown = "".join(f"<h2>{heading}</h2>{cells}" for heading, cells in thumbnails.items()) + "".join(
        f'<h2>{title}</h2><p>{text}</p><img alt="{title}" src="data:image/png;base64,{data}">' for title, text, data in pictures
    )
    classes, heading = report["classes"], "Each class"
    if len(classes) > MOST_LISTED:
        classes = {name: classes[name] for _, _, name in worst_classes(report, MOST_LISTED)[1]}
        heading = f"The {len(classes)} worst of {len(report['classes'])} classes"
    estimate = " (estimated from scores alone)" if report.get("threshold_estimated") else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>CleanNet validation</title><style>{STYLE}</style></head><body><h1>CleanNet validation</h1>"
        f"<p>Score: {report['score']}. Fixed threshold {fixed:g}{estimate}; best on these rows: {best}. "
        "Errors are averages over classes, in %; "
        "those at the chosen threshold are cross-fitted: chosen on one half of the rows, measured on the other, the mean over "
        f"{metrics.SPLITS} splits (held-out classes: chosen on all kept rows).</p>"
        f'<div class="wide"><table>{head}{"".join(_row(name, group) for name, group in groups.items())}</table></div>'
        "<h2>The lowest scores</h2><p>How many labels are wrong among the N lowest of these rows, or among the lowest of all rows, if as "
        "large a share of them is checked.</p><table><tr><th>N</th><th>% of the rows</th><th>mislabeled, %</th><th>95 % interval</th></tr>"
        f"{checked}</table>{shown}"
        f'<h2>{heading}</h2><div class="wide"><table>{head}'
        f'{"".join(_row(name, group) for name, group in classes.items())}</table></div>'
        f'<p class="note">{report["rows_without_score"]} rows have no score. A dash is undefined; hover for the reason, and over a '
        f"number for its interval ({report['interval']}).</p></body></html>"
    )


def write(
    folder, scores, labels, class_ids, class_names, *, threshold, estimated=False, heldout_ids=(), score="cosine", choice=None,
    pictured=None,
):
    """Writes report.json and report.html.

    Args:
        folder: created if it is missing. scores: float [N], NaN for none. labels: int [N], 1 = label correct. class_ids: int [N].
        class_names: list of str. threshold: float, of the fixed decisions. estimated: whether no verified row chose it.
        heldout_ids: ids of the classes to measure apart. score: what the scores are called. choice: metrics.Choice, or None.
        pictured: Pictured, or None: no images.
    """
    if not np.isfinite(scores).any():
        raise UserError(f"{folder}: none of the {len(scores)} rows has a score, so there is nothing to report")
    report = measure(scores, labels, class_ids, class_names, threshold=threshold, heldout_ids=heldout_ids, score=score, choice=choice)
    if estimated:
        report["threshold_estimated"] = True
    thumbnails = {}
    if pictured:
        names, chosen = [class_names[c] for c in class_ids], report["thresholds"]["chosen"]
        for heading, rows in picked_rows(scores, threshold if chosen is None else chosen).items():
            thumbnails[heading] = draw_rows(rows[np.isfinite(scores[rows])], pictured, scores, labels, names)
    scored = np.isfinite(scores)
    scores, correct = scores[scored].astype(np.float64), labels[scored] == 1
    pictures = [
        ("Distribution of the score", "Labels left of the threshold are taken for wrong.", draw_distribution(scores, correct, report)),
        ("Finding the mislabeled", "Precision and recall, and the ROC curve.", draw_curves(scores, correct, report)),
        (
            "Effort", "How many of the mislabeled rows are found when a share of the rows is checked, and how many of the lowest are "
            "mislabeled.", draw_effort(scores, correct, report),
        ),
        ("Error rate by class", f"The {MOST_CLASSES} worst classes at most.", draw_classes(report)),
    ]
    if score == "probability" and not np.isin(class_ids[scored], list(heldout_ids)).all():
        explained = "Of rows with a probability of 0.7, 70 % should be correct. util/combine_scores.py --calibrate does that."
        pictures.insert(1, ("Reliability", explained, draw_reliability(scores, labels[scored], class_ids[scored], heldout_ids)))
    data_path, page_path = files_in(folder).values()
    atomic.write_json(data_path, report)
    page = render(report, [(title, text, figures.png_base64(figure)) for title, text, figure in pictures], thumbnails)
    atomic.write_text(page_path, page)
