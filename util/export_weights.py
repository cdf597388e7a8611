"""Turns scores into what the training of a classifier takes: a weight per row, or a cleaned list.

    python util/export_weights.py --score_file=runs/scores.tsv --output_file=runs/weights.npy \
        --list_file=runs/cleaned.tsv

The weights (paper, section 3.4) are soft, max(0, score), or hard, 1 if the label is taken for correct and else 0. The
cleaned list has a line per row: key, class to use, action (keep, relabel or recheck) and the reason. It needs a table,
written by inference.py --output_format=tsv.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, command, paths, sample_weights, score_table
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
flags.DEFINE_string("output_file", None, "Weights, one per row: .npy (float32) or text, .gz too.")
flags.DEFINE_string("list_file", None, "The cleaned list, tab-separated; .gz too.")


def cleaned_rows(table, is_correct, relabel_cosine):
    """Yields (key, class to use, action, reason) for every row of a score_table.ScoreTable. is_correct: bool [N]."""
    rows = zip(table.key, table.class_name, table.score, is_correct, table.nearest_class, table.nearest_cosine)
    for key, given, score, correct, nearest, cosine in rows:
        if np.isnan(score):
            yield key, given, "recheck", "the row could not be scored"
        elif correct:
            yield key, given, "keep", f"score {score:.3f}"
        elif nearest == given:
            yield key, given, "recheck", f"score {score:.3f}, though no other class is closer (cosine {cosine:.3f})"
        elif cosine >= relabel_cosine:
            yield key, nearest, "relabel", f"score {score:.3f} as {given}, cosine {cosine:.3f} to {nearest}"
        else:
            why = f"and no other class is close (best cosine {cosine:.3f}, {nearest})"
            yield key, given, "recheck", f"score {score:.3f}, {why}"


def main():
    opt = flags.FLAGS
    if not opt.output_file and not opt.list_file:
        raise UserError("nothing to write: give --output_file for weights, --list_file for the cleaned list, or both")
    outputs = {"--output_file": opt.output_file, "--list_file": opt.list_file}
    paths.check_distinct(outputs, {"--score_file": opt.score_file})
    table = score_table.read(opt.score_file, opt.score)
    if opt.list_file and table.nearest_class is None:
        raise UserError(
            f"{opt.score_file}: has scores only, the list needs classes; run inference.py with --output_format=tsv"
        )
    missing = int(np.isnan(table.score).sum())
    if missing:
        rows = f"{counted(missing, 'row')} {'has' if missing == 1 else 'have'} no score"
        warn(f"{opt.score_file}: {rows}: weight 0, and recheck in the list")
    is_correct = sample_weights.taken_for_correct(table, command.given(opt, "val_sim_thres"))
    atomic.check_writable(outputs.values())
    if opt.output_file:
        weights = sample_weights.of_scores(table.score, opt.weights, is_correct)
        sample_weights.write(opt.output_file, weights)
        print(f"{opt.output_file}: {len(weights)} {opt.weights} weights, {int((weights == 0).sum())} of them 0")
    if opt.list_file:
        rows = list(cleaned_rows(table, is_correct, opt.relabel_cosine))
        atomic.write_text(opt.list_file, "".join("\t".join(row) + "\n" for row in rows))
        actions = [row[2] for row in rows]
        counts = ", ".join(f"{actions.count(action)} {action}" for action in ("keep", "relabel", "recheck"))
        print(f"{opt.list_file}: {len(rows)} rows: {counts}")


if __name__ == "__main__":
    command.run(main)
