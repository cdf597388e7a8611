"""Turns scores into what the training of a classifier takes: a weight per row, or a cleaned list.

    python util/export_weights.py --score_file=runs/scores.tsv --output_file=runs/weights.npy \
        --list_file=runs/cleaned.tsv

The weights (paper, section 3.4) are soft, max(0, score), or hard, 1 if the label is taken for correct and else 0. The
cleaned list has a header and a line per row, the worst first: key, given and suggested class, action (keep, relabel or recheck),
score and reason. It needs a table, written by inference.py --output_format=tsv. With --decisions a person's decision on a row
beats its score; such a row may also be dropped. With --relabel_precision that share of the new classes is promised to be right, and
mislabeled rows that are like no class are dropped.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, csv_rows, decisions, paths, relabelling, sample_weights, score_table
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import rows_of_verified

flags.DEFINE_string("score_file", None, "Output of inference.py, in any of its formats.", required=True)
flags.DEFINE_enum("score", None, score_table.SCORES, "Column of a table to use. By default the score that decided its verdicts.")
flags.DEFINE_enum(
    "weights", "soft", ["soft", "hard"], "soft: max(0, score). hard: 1 for scores at or above val_sim_thres, else 0."
)
flags.DEFINE_float(
    "val_sim_thres", 0.1,
    "Score at or above which a label is taken for correct. If not given, the verdicts of a table decide.",
)
flags.DEFINE_float(
    "relabel_cosine", 0.5, "Cosine to another class at or above which a mislabeled row is relabelled as that class."
)
flags.DEFINE_float(
    "relabel_precision", None,
    "Share of the relabelled rows whose new class is to be right, such as 0.9: chooses relabel_cosine on --val_npy, or else on "
    "--decisions. The other mislabeled rows are dropped.",
)
flags.DEFINE_string(
    "val_npy", None, "For --relabel_precision: verified rows, among those with scores, with their keys and classes.txt beside."
)
flags.DEFINE_string("decisions", None, "Decisions of verify_images.py, which beat the scores of their rows.")
flags.DEFINE_string("output_file", None, "Weights, one per row: .npy (float32) or text, .gz too.")
flags.DEFINE_string("list_file", None, "The cleaned list, with a header: tab-separated, or .csv; .gz too.")


def decided_rows(path, table):
    """What people decided about the rows of a table: {(key, given class): decisions.Resolved}. path: of a decisions file."""
    resolved = decisions.load(path).resolve()
    found = {row: resolved[row] for row in zip(table.key, table.class_name) if row in resolved}
    if not found:
        raise UserError(f"{path}: decides no row of the scores; give the decisions on these rows, with the same keys and classes")
    if len(found) < len(resolved):
        warn(f"{path}: {counted(len(resolved) - len(found), 'decision')} on rows that have no score, left out")
    return found


def decided_weights(weights, table, decided):
    """The weights, float32 [N], with 1 for rows that people found correct and 0 for those they found mislabeled."""
    labels = [decided[row].label if row in decided else -1 for row in zip(table.key, table.class_name)]
    return np.where(np.array(labels) < 0, weights, np.float32(labels))


def decided_action(given, found):
    """(suggested class, action, reason) of a row that people decided. given: its class. found: decisions.Resolved."""
    reason = f"decided by {', '.join(found.authors)}"
    if found.label == 0 and found.right_class:
        return found.right_class, "relabel", reason
    return given, {1: "keep", 0: "drop", -1: "recheck"}[found.label], reason


def absent_cosines(score_file, val_npy, precision):
    """The cosines to the best class but the given one of the rows that are verified correct, float64 [V]."""
    names = class_list.load(os.path.join(os.path.dirname(val_npy), "classes.txt"))
    val = arrays.FeatureArray(val_npy, class_names=names, verified=True)
    columns, _ = score_table.read_columns(score_file)
    rows, known = rows_of_verified(val, names, columns, score_file)
    found = (columns["cosine"] - columns["margin"])[rows[val.labels[known] == 1]]
    found = found[np.isfinite(found)]
    least = relabelling.least_rows(precision)
    if len(found) < least:
        raise UserError(
            f"{val_npy}: {counted(len(found), 'row')} verified correct with a cosine in {score_file}, expected at least {least} for "
            f"--relabel_precision={precision:g}; verify more, or promise less"
        )
    return found


def choose_limit(table, is_correct, decided, *, score_file, val_npy, precision):
    """The cosine from which mislabeled rows are relabelled, and what it promises, a text. Where no cosine will do: infinite, and warns.

    Args:
        is_correct: bool [N]. decided: as in cleaned_rows. val_npy: path, or None: the decisions choose.
    """
    row_of = list(zip(table.key, table.class_name))
    other = np.array([nearest != given for nearest, given in zip(table.nearest_class, table.class_name)])
    asked = ~is_correct & other & np.isfinite(table.nearest_cosine)
    is_decided = np.array([row in decided and decided[row].label >= 0 for row in row_of])
    if val_npy:
        absent, source = absent_cosines(score_file, val_npy, precision), f"the rows verified correct in {val_npy}"
        limit = relabelling.limit_by_absence(absent, table.nearest_cosine[asked & ~is_decided], precision)
    else:
        rows = np.flatnonzero(asked & is_decided)
        is_right = np.array([decided[row_of[i]].right_class == table.nearest_class[i] for i in rows], bool)
        limit = relabelling.limit_by_decisions(table.nearest_cosine[rows], is_right, precision, table.nearest_cosine[asked])
        source = counted(len(rows), "decision")
    if np.isinf(limit):
        warn(f"{score_file}: no cosine keeps the promise of --relabel_precision={precision:g}, so no row is relabelled; promise less")
        return limit, ""
    return limit, f"relabelled from cosine {limit:.4g} on: {100 * precision:g} % of the new classes right, by {source}"


def cleaned_rows(table, is_correct, decided, *, relabel_cosine, otherwise):
    """The rows of a score_table.ScoreTable as tuples of sample_weights.LIST_COLUMNS, the lowest score first.

    Args:
        is_correct: bool [N]. decided: {(key, given class): decisions.Resolved}. relabel_cosine, otherwise: as in suggestion.
    """
    rows = zip(table.key, table.class_name, table.score, is_correct, table.nearest_class, table.nearest_cosine)
    found = []
    for key, given, score, correct, nearest, cosine in rows:
        if (key, given) in decided:
            suggested, action, reason = decided_action(given, decided[key, given])
        else:
            action, reason = suggestion(score, correct, nearest == given, cosine, relabel_cosine, otherwise)
            suggested = nearest if action == "relabel" else given
        found.append((key, given, suggested, action, score, reason))
    return [found[i] for i in np.argsort(table.score, kind="stable")]  # NaN comes last


def suggestion(score, correct, is_nearest, cosine, relabel_cosine, otherwise):
    """What to do with a row, and why, two texts.

    Args:
        score: float, NaN for none. correct: the label is taken for correct. is_nearest: no other class is closer. cosine: to the
            nearest class. relabel_cosine: float, from which a class is close. otherwise: the action where none is.
    """
    if np.isnan(score):
        return "recheck", "the row could not be scored"
    if correct:
        return "keep", "its label is taken for correct"
    if is_nearest:
        return "recheck", f"a low score, though no other class is closer (cosine {cosine:.3f})"
    if cosine >= relabel_cosine:
        return "relabel", f"a low score, and cosine {cosine:.3f} to the suggested class"
    return otherwise, f"a low score, and no other class is close (best cosine {cosine:.3f})"


def write_list(path, rows):
    """Writes the cleaned list. rows: list of tuples of sample_weights.LIST_COLUMNS."""
    lines = [(*row[:4], f"{row[4]:.9g}", row[5]) for row in rows]
    atomic.write_text(path, csv_rows.to_text(path, [sample_weights.LIST_COLUMNS, *lines]))


def check_flags(*, output_file, list_file, precision, val_npy, decisions_given, cosine_given):
    """Raises UserError where flags contradict each other. precision: float, or None."""
    if not output_file and not list_file:
        raise UserError("nothing to write: give --output_file for weights, --list_file for the cleaned list, or both")
    if precision is None:
        if val_npy:
            raise UserError("--val_npy is for --relabel_precision; give both, or leave it out")
        return
    if not 0 < precision < 1:
        raise UserError(f"--relabel_precision={precision:g}: expected a share between 0 and 1, such as 0.9")
    if not list_file or cosine_given:
        raise UserError("--relabel_precision chooses the --relabel_cosine of a --list_file; give a list, and not the cosine")
    if not val_npy and not decisions_given:
        raise UserError("--relabel_precision learns from verified rows; give --val_npy, or --decisions with right classes")


def main():
    opt = flags.FLAGS
    check_flags(
        output_file=opt.output_file, list_file=opt.list_file, precision=opt.relabel_precision, val_npy=opt.val_npy,
        decisions_given=bool(opt.decisions), cosine_given=opt["relabel_cosine"].present,
    )
    outputs = {"--output_file": opt.output_file, "--list_file": opt.list_file}
    inputs = {"--score_file": opt.score_file, "--decisions": opt.decisions}
    if opt.val_npy:
        inputs |= arrays.files_of("--val_npy", opt.val_npy) | {"its class list": os.path.join(os.path.dirname(opt.val_npy), "classes.txt")}
    paths.check_distinct(outputs, inputs)
    table = score_table.read(opt.score_file, opt.score)
    if (opt.list_file or opt.decisions) and table.nearest_class is None:
        needs = "the list needs" if opt.list_file else "--decisions need"
        raise UserError(
            f"{opt.score_file}: has scores only, {needs} classes; run inference.py with --output_format=tsv"
        )
    decided = decided_rows(opt.decisions, table) if opt.decisions else {}
    missing = int(np.isnan(table.score).sum())
    if missing:
        rows = f"{counted(missing, 'row')} {'has' if missing == 1 else 'have'} no score"
        warn(f"{opt.score_file}: {rows}: weight 0, and recheck in the list")
    is_correct = sample_weights.taken_for_correct(table, command.given(opt, "val_sim_thres"))
    relabel_cosine, promise = opt.relabel_cosine, ""
    if opt.relabel_precision is not None:
        relabel_cosine, promise = choose_limit(
            table, is_correct, decided, score_file=opt.score_file, val_npy=opt.val_npy, precision=opt.relabel_precision
        )
    atomic.check_writable(outputs.values())
    if opt.output_file:
        weights = sample_weights.of_scores(table.score, opt.weights, is_correct)
        if decided:
            weights = decided_weights(weights, table, decided)
        sample_weights.write(opt.output_file, weights)
        print(f"{opt.output_file}: {len(weights)} {opt.weights} weights, {int((weights == 0).sum())} of them 0")
    if opt.list_file:
        otherwise = "recheck" if opt.relabel_precision is None else "drop"
        rows = cleaned_rows(table, is_correct, decided, relabel_cosine=relabel_cosine, otherwise=otherwise)
        write_list(opt.list_file, rows)
        if promise:
            print(f"{opt.list_file}: {promise}")
        actions = [row[3] for row in rows]
        shown = ("keep", "relabel", "recheck", *(["drop"] if decided or otherwise == "drop" else []))
        print(f"{opt.list_file}: {len(rows)} rows: {', '.join(f'{actions.count(action)} {action}' for action in shown)}")


if __name__ == "__main__":
    command.run(main)
