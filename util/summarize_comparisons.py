"""Summarises comparisons over seeds: mean and spread of every method, and whether it differs from one of them.

    python util/summarize_comparisons.py --comparisons=c1/comparison.json,c2/comparison.json,c3/comparison.json \
        --reference="CleanNet recommended (probability)"

The interval of a difference is the 95 % interval of its mean, paired by seed (Student's t). With fewer than two seeds there is none.
"""
import json
import os
import re
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import command
from util.lib.errors import UserError, reason

flags.DEFINE_list("comparisons", None, "Files that compare_methods.py wrote, one a seed, by commas.", required=True)
flags.DEFINE_string("reference", None, "The method that the others are compared with.", required=True)
flags.DEFINE_enum("classes", "all", ["all", "kept", "heldout"], "Which classes.")


def load(path, group):
    """{method: {measure: value}} of a comparison.json."""
    try:
        with open(path, encoding="utf-8") as file:
            methods = json.load(file)["methods"]
        return {general_name(name): by_group[group] for name, by_group in methods.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot read: {reason(error)}; make it with util/compare_methods.py") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no comparison of {group} classes ({error}); make it with util/compare_methods.py") from None


def general_name(name):
    """The name without a setting that was chosen anew for every seed."""
    return re.sub(r"^\d+-nearest-neighbour vote", "k-nearest-neighbour vote", name)


def difference(values, reference):
    """Mean difference to the reference and half its 95 % interval, paired by seed. values, reference: float [seeds]."""
    from scipy import stats

    gaps = np.asarray(values) - np.asarray(reference)
    if len(gaps) < 2:
        return float(gaps.mean()), float("nan")
    return float(gaps.mean()), float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))


def main():
    opt = flags.FLAGS
    runs = [load(path, opt.classes) for path in opt.comparisons]
    methods = [name for name in runs[0] if all(name in run for run in runs)]
    if opt.reference not in methods:
        raise UserError(f'--reference="{opt.reference}": not in every comparison, which have: {", ".join(methods)}')
    print(f"| method ({opt.classes} classes, {len(runs)} seeds) | error, % | to reference | AUROC | to reference | AP |")
    print("|---|---|---|---|---|---|")
    for name in methods:
        cells = []
        for measure, digits in (("error", 2), ("auroc", 4)):
            values, reference = ([run[n][measure] for run in runs] for n in (name, opt.reference))
            if None in values:
                cells += ["", ""]
                continue
            gap, half = difference(values, reference)
            spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
            cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
            cells.append("" if name == opt.reference else f"{gap:+.{digits}f} ± {half:.{digits}f}")
        precision = [run[name]["average_precision"] for run in runs]
        cells.append("" if None in precision else f"{np.mean(precision):.3f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    command.run(main)
