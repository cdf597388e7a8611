"""A validation report: every measure with a confidence interval as report.json, and the pictures as one report.html.

A "mislabeled" row is what is looked for: precision, recall and average precision are about finding those.
"""
import base64
import html
import io
import os

import numpy as np
from sklearn import metrics as sk_metrics

from util.lib import atomic, metrics

RESAMPLES = 500  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles, a 95 % interval
MOST_CLASSES = 40  # bars in the picture of the classes


def _bootstrap_weights(class_ids, seed=0):
    """How often each row is drawn in each resample, float32 [RESAMPLES, N]; as many rows of every class as there are."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((RESAMPLES, len(class_ids)), np.float32)
    for c in np.unique(class_ids):
        rows = np.flatnonzero(class_ids == c)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    return weights


def _ranked(weights, correct, scores):
    """Weight of the mislabeled and of the correct rows at each distinct score, ascending. Two float64 [B, distinct]."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    sorted_weights = weights[:, order].astype(np.float64)
    wrong = np.add.reduceat(sorted_weights * ~correct[order], starts, axis=1)
    return wrong, np.add.reduceat(sorted_weights * correct[order], starts, axis=1)


def _resampled_auroc(weights, correct, scores):
    wrong, right = _ranked(weights, correct, scores)
    below = np.cumsum(wrong, axis=1) - wrong / 2  # a tie counts half
    with np.errstate(invalid="ignore"):
        return (right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))


def _resampled_average_precision(weights, correct, scores):
    wrong, right = _ranked(weights, correct, scores)
    found, taken = np.cumsum(wrong, axis=1), np.cumsum(wrong + right, axis=1)  # the lowest scores first
    with np.errstate(invalid="ignore"):
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return (precision * wrong).sum(axis=1) / wrong.sum(axis=1)


def _resampled_share(weights, counted, among):
    with np.errstate(invalid="ignore"):
        return (weights @ (counted & among)) / (weights @ among)


def _resampled_class_error(weights, wrong, class_ids):
    present = np.unique(class_ids)
    errors = [_resampled_share(weights, wrong, class_ids == c) for c in present]
    return np.mean(errors, axis=0)


def _measure(value, resampled):
    """A value with its 95 % interval, as JSON has it."""
    usable = resampled[np.isfinite(resampled)]
    low, high = np.percentile(usable, INTERVAL) if len(usable) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _undefined(reason):
    return {"value": None, "reason": reason}


def _share(weights, counted, among, reason):
    if not among.any():
        return _undefined(reason)
    return _measure(np.mean(counted[among]), _resampled_share(weights, counted, among))


def measure_group(weights, scores, correct, class_ids, decisions):
    """All measures of a group of rows.

    Args:
        weights: float32 [RESAMPLES, N]. scores: float [N]. correct: bool [N], the label is correct. class_ids: int [N].
        decisions: {"fixed" or "chosen": bool [N], True = taken for correct}.

    Returns:
        A dict of JSON.
    """
    if not len(scores):
        names = ("auroc", "average_precision", "trusting_every_label")
        return {"rows": 0, "mislabeled": 0} | {name: _undefined("no verified rows") for name in names}
    result = {"rows": len(scores), "mislabeled": int((~correct).sum())}
    if correct.all() or not correct.any():
        one_kind = _undefined(f"all verified rows are {'correct' if correct.all() else 'mislabeled'}")
        result |= {"auroc": one_kind, "average_precision": one_kind}
    else:
        result["auroc"] = _measure(sk_metrics.roc_auc_score(correct, scores), _resampled_auroc(weights, correct, scores))
        precision = sk_metrics.average_precision_score(~correct, -scores)
        result["average_precision"] = _measure(precision, _resampled_average_precision(weights, correct, scores))
    trusting = metrics.average_error_rate(np.ones(len(scores), bool), correct, class_ids)
    result["trusting_every_label"] = _measure(trusting, _resampled_class_error(weights, ~correct, class_ids))
    for name, taken_for_correct in decisions.items():
        wrong = taken_for_correct != correct
        result[name] = {
            "average_error_rate": _measure(
                metrics.average_error_rate(taken_for_correct, correct, class_ids), _resampled_class_error(weights, wrong, class_ids)
            ),
            "accuracy": _share(weights, ~wrong, np.ones(len(wrong), bool), ""),
            "precision": _share(weights, ~correct, ~taken_for_correct, "no row is taken for mislabeled"),
            "recall": _share(weights, ~taken_for_correct, ~correct, "no verified row is mislabeled"),
        }
    return result


def measure(scores, labels, class_ids, class_names, *, threshold, heldout_ids=(), score="cosine"):
    """The contents of report.json. Rows without a score (NaN) are left out and counted."""
    scored = np.isfinite(scores)
    scores, correct, class_ids = scores[scored].astype(np.float64), labels[scored] == 1, class_ids[scored]
    heldout = np.isin(class_ids, list(heldout_ids))
    decisions = {"fixed": scores >= threshold}
    thresholds = {"fixed": threshold, "chosen": None}
    if (~heldout).any():
        labels = correct.astype(int)
        thresholds["chosen"] = metrics.best_threshold(scores[~heldout], labels[~heldout], class_ids[~heldout])
        decisions["chosen"] = metrics.cross_fitted_decisions(scores, labels, class_ids, choose_on=~heldout)
    weights = _bootstrap_weights(class_ids)

    def group(rows):
        decided = {name: values[rows] for name, values in decisions.items()}
        return measure_group(weights[:, rows], scores[rows], correct[rows], class_ids[rows], decided)

    report = {
        "score": score, "thresholds": thresholds, "rows_without_score": int((~scored).sum()),
        "interval": f"95 %, bootstrap of {RESAMPLES} resamples within classes",
        "chosen_threshold": "fixed: decided at the given threshold. chosen: each half of the rows is decided at the threshold that is "
        "best on the other half, rows of held-out classes at thresholds.chosen, the best on all the others",
        "all": group(np.ones(len(scores), bool)),
    }
    if len(heldout_ids):
        report |= {"kept": group(~heldout), "heldout": group(heldout)}
    report["classes"] = {name: group(class_ids == c) for c, name in enumerate(class_names)}
    return report


def _figure(width=7.0, height=3.6, columns=1):
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a dollar in a class name is a dollar
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")


def _png(figure):
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def draw_distribution(scores, correct, report):
    """Histogram of the scores of correct and of mislabeled rows, with the thresholds."""
    figure, axis = _figure()
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 41)
    axis.hist([scores[correct], scores[~correct]], bins, stacked=True, color=["#2f6db3", "#d1495b"], label=["correct", "mislabeled"])
    for (name, value), style in zip(report["thresholds"].items(), ("--", "-")):
        if value is not None:
            axis.axvline(value, color="black", linestyle=style, label=f"threshold, {name}: {value:.3f}")
    axis.set_xlabel(report["score"])
    axis.set_ylabel("verified rows")
    axis.legend()
    return figure


def draw_curves(scores, correct, report):
    """Precision-recall and ROC curve of finding the mislabeled."""
    figure, (left, right) = _figure(columns=2)
    if not correct.all() and correct.any():
        precision, recall, _ = sk_metrics.precision_recall_curve(~correct, -scores)
        left.step(recall, precision, where="post", color="#d1495b", label=f"AP {report['all']['average_precision']['value']:.3f}")
        false_positive, true_positive, _ = sk_metrics.roc_curve(~correct, -scores)
        right.plot(false_positive, true_positive, color="#d1495b", label=f"AUROC {report['all']['auroc']['value']:.3f}")
    left.axhline(np.mean(~correct), color="gray", linestyle=":", label="at random")
    right.plot([0, 1], [0, 1], color="gray", linestyle=":", label="at random")
    left.set(xlabel="recall of the mislabeled", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="correct rows taken for mislabeled", ylabel="mislabeled rows found", xlim=(0, 1), ylim=(0, 1.02))
    left.legend(loc="lower left")
    right.legend(loc="lower right")
    return figure


def draw_classes(report):
    """Error rate of each class at the chosen threshold against trusting every label; the worst MOST_CLASSES."""
    decided = "chosen" if report["thresholds"]["chosen"] is not None else "fixed"
    rows = [
        (group[decided]["average_error_rate"]["value"], group["trusting_every_label"]["value"], name)
        for name, group in report["classes"].items() if group["rows"]
    ]
    rows = sorted(rows, reverse=True)[:MOST_CLASSES][::-1]
    figure, axis = _figure(7, 1.2 + 0.28 * len(rows))
    places = np.arange(len(rows))
    axis.barh(places + 0.2, [100 * row[1] for row in rows], 0.38, color="#b8c0cc", label="trusting every label")
    axis.barh(places - 0.2, [100 * row[0] for row in rows], 0.38, color="#2f6db3", label=f"CleanNet, {decided} threshold")
    axis.set_yticks(places, [row[2][:30] for row in rows])
    axis.set_xlabel("error rate, %")
    axis.legend(loc="lower right")
    return figure


def draw_effort(scores, correct):
    """Share of the mislabeled that is found when a share of the rows is checked, worst first, against checking at random."""
    figure, axis = _figure()
    found = np.cumsum(~correct[np.argsort(scores, kind="stable")]) / max(1, np.sum(~correct))
    share = np.arange(1, len(scores) + 1) / len(scores)
    axis.plot(100 * share, 100 * found, color="#2f6db3", label="worst score first")
    axis.plot([0, 100], [0, 100], color="gray", linestyle=":", label="at random")
    axis.plot([0, 100 * np.mean(~correct), 100], [0, 100, 100], color="#3c8a3a", linestyle="--", label="a perfect order")
    axis.set(xlabel="rows checked, %", ylabel="mislabeled rows found, %", xlim=(0, 100), ylim=(0, 102))
    axis.legend(loc="lower right")
    return figure


STYLE = """body{font:16px/1.45 system-ui,sans-serif;color:#1d2733;max-width:60rem;margin:1rem auto;padding:0 1rem}
img{max-width:100%;height:auto}table{border-collapse:collapse;font-size:.9rem}td,th{padding:.2rem .6rem;text-align:right;
border-bottom:1px solid #dde2ea}td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}.note{color:#555;font-size:.9rem}"""


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


def render(report, pictures):
    """report.html: one file, nothing fetched. pictures: list of (title, explanation, PNG as base64)."""
    groups = {"all classes": report["all"]}
    groups |= {what: report[group] for group, what in (("kept", "kept classes"), ("heldout", "held-out classes")) if group in report}
    fixed, chosen = report["thresholds"]["fixed"], report["thresholds"]["chosen"]
    head = (
        "<tr><th></th><th>rows</th><th>mislabeled</th><th>trusting every label</th>"
        + "".join(f"<th>error, {t}</th><th>precision, {t}</th><th>recall, {t}</th>" for t in ("fixed", "chosen"))
        + "<th>AUROC</th><th>AP</th></tr>"
    )
    best = "none, no class is kept" if chosen is None else f"{chosen:.4f}"
    images = "".join(
        f'<h2>{title}</h2><p>{text}</p><img alt="{title}" src="data:image/png;base64,{data}">' for title, text, data in pictures
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>CleanNet validation</title><style>{STYLE}</style></head><body><h1>CleanNet validation</h1>"
        f"<p>Score: {report['score']}. Fixed threshold {fixed:g}; best on these rows: {best}. Errors are averages over classes, in %; "
        "those at the chosen threshold are cross-fitted: chosen on one half of the rows, measured on the other "
        "(held-out classes: chosen on all kept rows).</p>"
        f'<div class="wide"><table>{head}{"".join(_row(name, group) for name, group in groups.items())}</table></div>{images}'
        f'<h2>Each class</h2><div class="wide"><table>{head}'
        f'{"".join(_row(name, group) for name, group in report["classes"].items())}</table></div>'
        f'<p class="note">{report["rows_without_score"]} rows have no score. A dash is undefined; hover for the reason, and over a '
        f"number for its interval ({report['interval']}).</p></body></html>"
    )


def write(folder, scores, labels, class_ids, class_names, *, threshold, heldout_ids=(), score="cosine"):
    """Writes report.json and report.html. scores: float [N]. labels, class_ids: int [N]."""
    report = measure(scores, labels, class_ids, class_names, threshold=threshold, heldout_ids=heldout_ids, score=score)
    scored = np.isfinite(scores)
    scores, correct = scores[scored].astype(np.float64), labels[scored] == 1
    pictures = [
        ("Distribution of the score", "Rows left of the threshold are taken for mislabeled.", draw_distribution(scores, correct, report)),
        ("Finding the mislabeled", "Precision and recall, and the ROC curve.", draw_curves(scores, correct, report)),
        ("Effort", "How many of the mislabeled are found when a share of the images is checked.", draw_effort(scores, correct)),
        ("Error rate by class", f"The worst {MOST_CLASSES} classes at most.", draw_classes(report)),
    ]
    atomic.write_json(os.path.join(folder, "report.json"), report)
    page = render(report, [(title, text, _png(figure)) for title, text, figure in pictures])
    atomic.write_text(os.path.join(folder, "report.html"), page)
