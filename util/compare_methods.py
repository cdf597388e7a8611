"""Compares CleanNet with other methods on the verified validation rows of your own data.

    python util/compare_methods.py --data_dir=data --checkpoint_dirs=runs/digits --output_dir=runs/comparison

Every method scores the rows of val.npy, and is measured as a validation is: its threshold is cross-fitted, and kept classes alone
choose it. Settings of the other methods are chosen by AUROC on the verified training rows. Writes comparison.json and
comparison.png, and prints a table. cleanlab is compared if it is installed, and any table of scores by --score_files.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, class_list, command, figures, locks, metrics, other_methods, paths, report, run_folder, score_table, scoring
from util.lib.errors import UserError, warn
from util.lib.key_index import rows_in_table

# Input.
flags.DEFINE_string("data_dir", None, "Folder of train.npy, val.npy, all.npy and classes.txt.", required=True)
flags.DEFINE_list("checkpoint_dirs", [], "Folders of training runs to compare, separated by commas.")
flags.DEFINE_list("score_files", [], "Tables of scores to compare, separated by commas; each must have all rows of val.npy, by key.")
flags.DEFINE_string("heldout_class_list", None, "Classes to measure apart. Lines of class name, tab, 1 (keep) or 0 (hold out).")
flags.DEFINE_string(
    "checkpoint", "best", "The checkpoint of each run: best, latest or the number of a step. The choice of the best is cross-fitted too."
)
# Methods.
flags.DEFINE_list(
    "methods", ["fast"],
    f"The other methods to compare, separated by commas: {', '.join(other_methods.FAST)}, or the slow {', '.join(other_methods.SLOW)}; "
    "fast: all but the slow ones; all; none.",
)
flags.DEFINE_bool("only_cleannet", False, "The same as --methods=none: compare training runs and tables alone, which saves minutes.")
flags.DEFINE_integer("seed", 1, "Seed of the folds and of the other methods.", lower_bound=0, upper_bound=2**32 - 1)
# Output.
flags.DEFINE_string("output_dir", None, "Folder for comparison.json and comparison.png.", required=True)


def short_names(files):
    """A name for each of some paths: its last part, or the whole path where two have the same."""
    bases = [os.path.basename(os.path.normpath(path)) for path in files]
    return [base if bases.count(base) == 1 else path for path, base in zip(files, bases)]


def cleannet_scores(data, folder, checkpoint):
    """Scores by a checkpoint of a run (best, latest or a step), and the run; prints which checkpoint it is."""
    run = scoring.open_run(folder, checkpoint, threshold=metrics.FIXED_THRESHOLD)
    print(run.about(data.val))
    if run.shape["img_dim"] != data.val.img_dim:
        raise UserError(f"{data.val.path}: features of {data.val.img_dim} numbers, but {folder} was trained with {run.shape['img_dim']}")
    if run.shape["embed_norm"] == "log" and np.min(np.array(data.val.features)) <= -1:
        raise UserError(f"{data.val.path}: has features of -1 or less, which {folder}, trained with --embed_norm=log, cannot score")
    return run.make_scorer(compare_classes=True).score(data.val.features, data.val.class_ids).by(run.score), run


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
    """Draws a bar per method and group of classes: its average error rate with its interval, the lowest on top; CleanNet in blue.

    Args:
        evaluations: {method: evaluation whose `chosen` decisions perhaps have an `interval`}. path: of the PNG.
    """
    groups = groups_of(evaluations)
    names = sorted(evaluations, key=lambda name: evaluations[name]["all"]["chosen"]["average_error_rate"])
    figure, axes = figures.figure(4 + 3.5 * len(groups), 1 + 0.27 * len(names), columns=len(groups))
    places = np.arange(len(names))[::-1]
    for i, (group, axis) in enumerate(zip(groups, np.atleast_1d(axes))):
        for place, name in zip(places, names):
            chosen = evaluations[name][group]["chosen"]
            if chosen["average_error_rate"] is None:
                continue
            error, (low, high) = 100 * chosen["average_error_rate"], 100 * np.array(chosen["interval"])
            axis.barh(place, error, 0.7, color=figures.BLUE if name.startswith("CleanNet ") else figures.GREY)
            axis.plot([low, high], [place, place], color="black", linewidth=1)
            axis.text(max(error, high) + 0.3, place, f"{error:.1f}", va="center", fontsize=8)
        axis.set_yticks(places, names if i == 0 else [""] * len(names), fontsize=8)
        axis.set(title=f"{group} classes", xlabel="average error rate, %, with 95 % interval")
        axis.margins(x=0.1, y=0.01)
    figures.save_png(figure, path)


def scores_of_runs(data, folders, checkpoint):
    """Validation scores of training runs, {method: float [N]}, and the metrics.Choice of each that has one.

    A method is named by its folder, in full where two have one name.
    """
    command.import_tensorflow()
    scores, choices = {}, {}
    for folder, label in zip(folders, short_names(folders)):
        found, run = cleannet_scores(data, folder, checkpoint)
        name, choice = f"CleanNet {label} ({run.score})", run.choice(data.val)
        # A class without references has no score; its rows are trusted, as the other methods do.
        scores[name] = np.nan_to_num(found, nan=1.0)
        if choice and choice.explains(found):
            choices[name] = choice._replace(scores=np.nan_to_num(choice.scores, nan=1.0))
    return scores, choices


def scores_of_tables(val, class_names, files):
    """Validation scores in tables, {method: float [N]}: of each table the column that decided its verdicts.

    A row of val.npy that a table lacks is an error, since methods are compared on the same rows. One without a score (nan) is trusted.
    """
    scores = {}
    for path, label in zip(files, short_names(files)):
        table = score_table.read_table(path)
        if table.calibrated:
            warn(f"{path}: was calibrated; if by rows of {val.path}, it looks too good here: combine_scores.py prints what is cross-fitted")
        rows = rows_in_table(val, class_names, table.key, table.class_name, path)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            key = val.sample_keys()[missing[0]]
            raise UserError(f'{path}: lacks {len(missing)} of {len(rows)} rows of {val.path}, such as "{key[:80]}"; score all rows of it')
        found = table.score[rows]
        if not np.isfinite(found).any():
            raise UserError(f"{path}: none of the rows of {val.path} has a score; score them again")
        scores[f"scores {label}"] = np.nan_to_num(found, nan=np.nanmax(found))
    return scores


def evaluate(scores, data, choice):
    """The evaluation of scores of val.npy, float [N], finite, whose `chosen` decisions have an `interval`.

    Args:
        data: other_methods.Data. choice: metrics.Choice of the checkpoint, or None.
    """
    columns = data.val.labels, data.val.class_ids
    decided = metrics.decide(scores.astype(np.float64), *columns, metrics.FIXED_THRESHOLD, data.heldout_ids, choice)
    found = metrics.evaluate(scores, *columns, metrics.FIXED_THRESHOLD, data.heldout_ids, decided=decided)
    for group, interval in report.error_intervals(decided[0]["chosen"], *columns, data.heldout_ids).items():
        found[group]["chosen"]["interval"] = interval
    return found


def main():
    opt = flags.FLAGS
    class_path = os.path.join(opt.data_dir, "classes.txt")
    names = class_list.load(class_path)
    heldout_ids = class_list.heldout_ids(opt.heldout_class_list, names)
    methods = {} if opt.only_cleannet else other_methods.named(opt.methods)
    if not methods and not opt.checkpoint_dirs and not opt.score_files:
        raise UserError("no --methods, --checkpoint_dirs or --score_files: this compares nothing; give the folders of training runs")
    for folder in opt.checkpoint_dirs:
        class_list.require_beside(folder, names, class_path)
    outputs = {name: os.path.join(opt.output_dir, name) for name in ("comparison.json", "comparison.png")}
    inputs = {name: os.path.join(opt.data_dir, name) for name in run_folder.DATA_FILES}
    inputs |= {f"table {path}": path for path in opt.score_files} | {"--heldout_class_list": opt.heldout_class_list}
    paths.check_distinct(outputs, inputs)
    atomic.check_writable(outputs.values())
    locks.Lock(os.path.join(opt.output_dir, "comparison"))  # of both, until the end of the command
    data = other_methods.Data(opt.data_dir, names, heldout_ids)
    labels, class_ids = data.val.labels, data.val.class_ids
    if len(np.unique(labels[~np.isin(class_ids, heldout_ids)])) < 2:
        raise UserError(f"{data.val.path}: all verified rows are of one kind, expected correct and mislabeled ones; verify more")
    scores = {"trusting every label": np.ones(data.val.num_rows)}
    scores |= scores_of_tables(data.val, names, opt.score_files)
    scores |= other_methods.scores_of(methods, data, opt.seed)
    choices = {}
    if opt.checkpoint_dirs:
        of_runs, choices = scores_of_runs(data, opt.checkpoint_dirs, opt.checkpoint)
        scores |= of_runs
    evaluations = {name: evaluate(values, data, choices.get(name)) for name, values in scores.items()}
    atomic.write_json(
        os.path.join(opt.output_dir, "comparison.json"), {"rows": data.val.num_rows, "methods": evaluations}
    )
    draw(evaluations, os.path.join(opt.output_dir, "comparison.png"))
    print(table(evaluations))
    print(f"{opt.output_dir}: comparison.json, comparison.png")


if __name__ == "__main__":
    command.run(main)
