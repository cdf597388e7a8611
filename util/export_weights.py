"""Turns scores into what the training of a classifier takes: a weight per row, or a cleaned list.

    python util/export_weights.py --score_file=runs/scores.tsv --output_file=runs/weights.npy \
        --list_file=runs/cleaned.tsv

The weights (paper, section 3.4) are soft, max(0, score), or hard, 1 if the label is taken for correct and else 0. The
cleaned list has a header and a line per row, the worst first: key, given and suggested class, action (keep, relabel or recheck),
score and reason. It needs a table, written by inference.py --output_format=tsv. With --decisions a person's decision on a row
beats its score; such a row may also be dropped.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, command, csv_rows, decisions, paths, sample_weights, score_table
from util.lib.errors import UserError, counted, warn

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


def cleaned_rows(table, is_correct, relabel_cosine, decided):
    """The rows of a score_table.ScoreTable as tuples of sample_weights.LIST_COLUMNS, the lowest score first.

    Args:
        is_correct: bool [N]. decided: {(key, given class): decisions.Resolved}.
    """
    rows = zip(table.key, table.class_name, table.score, is_correct, table.nearest_class, table.nearest_cosine)
    found = []
    for key, given, score, correct, nearest, cosine in rows:
        if (key, given) in decided:
            suggested, action, reason = decided_action(given, decided[key, given])
        else:
            action, reason = suggestion(score, correct, nearest == given, cosine, relabel_cosine)
            suggested = nearest if action == "relabel" else given
        found.append((key, given, suggested, action, score, reason))
    return [found[i] for i in np.argsort(table.score, kind="stable")]  # NaN comes last


def suggestion(score, correct, is_nearest, cosine, relabel_cosine):
    """What to do with a row, and why, two texts.

    Args:
        score: float, NaN for none. correct: the label is taken for correct. is_nearest: no other class is closer. cosine: to the
            nearest class. relabel_cosine: float, from which a class is close.
    """
    if np.isnan(score):
        return "recheck", "the row could not be scored"
    if correct:
        return "keep", "its label is taken for correct"
    if is_nearest:
        return "recheck", f"a low score, though no other class is closer (cosine {cosine:.3f})"
    if cosine >= relabel_cosine:
        return "relabel", f"a low score, and cosine {cosine:.3f} to the suggested class"
    return "recheck", f"a low score, and no other class is close (best cosine {cosine:.3f})"


def write_list(path, rows):
    """Writes the cleaned list. rows: list of tuples of sample_weights.LIST_COLUMNS."""
    lines = [(*row[:4], f"{row[4]:.9g}", row[5]) for row in rows]
    atomic.write_text(path, csv_rows.to_text(path, [sample_weights.LIST_COLUMNS, *lines]))


def main():
    opt = flags.FLAGS
    if not opt.output_file and not opt.list_file:
        raise UserError("nothing to write: give --output_file for weights, --list_file for the cleaned list, or both")
    outputs = {"--output_file": opt.output_file, "--list_file": opt.list_file}
    paths.check_distinct(outputs, {"--score_file": opt.score_file, "--decisions": opt.decisions})
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
    atomic.check_writable(outputs.values())
    if opt.output_file:
        weights = sample_weights.of_scores(table.score, opt.weights, is_correct)
        if decided:
            weights = decided_weights(weights, table, decided)
        sample_weights.write(opt.output_file, weights)
        print(f"{opt.output_file}: {len(weights)} {opt.weights} weights, {int((weights == 0).sum())} of them 0")
    if opt.list_file:
        rows = cleaned_rows(table, is_correct, opt.relabel_cosine, decided)
        write_list(opt.list_file, rows)
        actions = [row[3] for row in rows]
        counts = ", ".join(f"{actions.count(action)} {action}" for action in ("keep", "relabel", "recheck", *(["drop"] if decided else [])))
        print(f"{opt.list_file}: {len(rows)} rows: {counts}")


if __name__ == "__main__":
    command.run(main)
