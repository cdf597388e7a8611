"""Summarises comparisons over seeds: mean and spread of every method, and its difference to one of them.

    python util/summarize_comparisons.py --comparisons=c1/comparison.json,c2/comparison.json,c3/comparison.json \
        --reference="CleanNet recommended (probability)"

A difference has a 95 % interval: that of its mean, paired by seed (Student's t). One seed alone gives no interval.
"""
import os
import re
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import command, json_file
from util.lib.errors import UserError, counted

flags.DEFINE_list(
    "comparisons", None, "Files that compare_methods.py wrote, one per seed, separated by commas.", required=True
)
flags.DEFINE_string("reference", None, "The method that the others are compared with.", required=True)
flags.DEFINE_enum("classes", "all", ["all", "kept", "heldout"], "The classes whose measures are summarised.")


def load(path, group):
    """What the table needs of a comparison.json: {method: {"error" in percent, "auroc" and "average_precision": float or None}}.

    Args:
        path: of the file. group: one of metrics.GROUPS.
    """
    number = json_file.is_number_or_null
    schema = {"auroc": number, "average_precision": number, "chosen": {"average_error_rate": number}}
    methods = json_file.load(
        path, f"a comparison of {group} classes", {"methods": json_file.Each({group: schema})},
        "make it with util/compare_methods.py",
    )["methods"]
    found = {general_name(name): measures_of(evaluation[group]) for name, evaluation in methods.items()}
    if not found or len(found) < len(methods):
        raise UserError(f"{path}: {len(methods)} methods, {len(found)} of them by name; rename one of the runs, and compare again")
    return found


def measures_of(group):
    """The measures in the table, of a group of docs/formats.md, "Evaluations"."""
    error = group["chosen"]["average_error_rate"]
    return {
        "error": None if error is None else 100 * error,
        "auroc": group["auroc"], "average_precision": group["average_precision"],
    }


def general_name(name):
    """A method's name without a setting that was chosen again for every seed."""
    return re.sub(r"^\d+-nearest-neighbour vote", "k-nearest-neighbour vote", name)


def difference(values, reference):
    """The mean difference to the reference and half its 95 % interval. values, reference: float [seeds]."""
    from scipy import stats

    gaps = np.asarray(values) - np.asarray(reference)
    if len(gaps) < 2:
        return float(gaps.mean()), float("nan")
    return float(gaps.mean()), float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))


def table_cells(runs, name, reference):
    """The cells of a method's line: error and AUROC, each with its difference to the reference, and average precision.

    Args:
        runs: a list of load()'s results, one per seed. name, reference: methods.
    """
    cells = []
    for measure, digits in (("error", 2), ("auroc", 4)):
        values, others = ([run[method][measure] for run in runs] for method in (name, reference))
        if None in values:
            cells += ["", ""]
            continue
        gap, half = difference(values, others)
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
        cells.append("" if name == reference else f"{gap:+.{digits}f} ± {half:.{digits}f}")
    precision = [run[name]["average_precision"] for run in runs]
    return [*cells, "" if None in precision else f"{np.mean(precision):.3f}"]


def main():
    opt = flags.FLAGS
    if not opt.comparisons:
        raise UserError("--comparisons: names no file; give those that util/compare_methods.py wrote, separated by commas")
    runs = [load(path, opt.classes) for path in opt.comparisons]
    methods = [name for name in runs[0] if all(name in run for run in runs)]
    if opt.reference not in methods:
        raise UserError(f'--reference="{opt.reference}": not in every comparison, which have: {", ".join(methods)}')
    seeds = counted(len(runs), "seed")
    print(f"| method ({opt.classes} classes, {seeds}) | error, % | to reference | AUROC | to reference | AP |")
    print("|---|---|---|---|---|---|")
    for name in methods:
        print(f"| {name} | {' | '.join(table_cells(runs, name, opt.reference))} |")


if __name__ == "__main__":
    command.run(main)
