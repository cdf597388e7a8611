"""Takes a second look: combines score tables of the same rows, and chooses the threshold of the result on verified rows.

    python util/combine_scores.py --score_files=runs/scores.tsv,runs/classifier.tsv --val_npy=data/val.npy \
        --output_file=runs/combined.tsv

The combined probability is the mean of the tables' probabilities in logits, log(p / (1 - p)). Rows are joined by key. With a single
table the command chooses its threshold.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, metrics, paths, score_table
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import KeyIndex, check_same_class, rows_in_table

flags.DEFINE_list("score_files", None, "Tables of scores, separated by commas.", required=True)
flags.DEFINE_string("val_npy", None, "Verified rows that choose the threshold, with their keys and classes.txt beside.", required=True)
flags.DEFINE_string(
    "heldout_class_list", None, "Classes whose rows have no say in the threshold. Lines of class name, tab, 1 (keep) or 0 (hold out)."
)
flags.DEFINE_string(
    "output_file", None, "Table of the result, in the order of the first table: text, .csv, .gz or .parquet.", required=True
)

LEAST = 1e-7  # probabilities are taken as at least this far from 0 and 1
BLOCK_ROWS = 65536  # that are written at once


def combine(probabilities):
    """The mean of probabilities in logits: float64 [T, N] -> float64 [N]; NaN where one of them is."""
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    return 1 / (1 + np.exp(-np.log(p / (1 - p)).mean(axis=0)))


def read_tables(score_files):
    """Reads tables of the same rows.

    Returns:
        (columns of the first, as score_table.read_columns gives them; probabilities of all in the order of its rows, float64 [T, N]).
    """
    first, probabilities = None, []
    for path in score_files:
        columns, start = score_table.read_columns(path)
        outside = (columns["probability"] < 0) | (columns["probability"] > 1)
        if outside.any():
            row = int(np.argmax(outside))
            raise UserError(f"{path}:{start + row}: probability {columns['probability'][row]:g}, expected 0 to 1; score the rows again")
        if first is None:
            first, index = columns, KeyIndex(columns["key"], path)
        rows = index.rows_of(columns["key"], path)
        check_same_rows(first, score_files[0], columns, path, rows, start)
        in_order = np.empty(len(rows))
        in_order[rows] = columns["probability"]
        probabilities.append(in_order)
    return first, np.stack(probabilities)


def check_same_rows(first, first_path, columns, path, rows, start):
    """Raises UserError unless two tables have the same rows.

    Args:
        rows: int [M], where the keys of the second are in the first, or -1. start: line of the first row of the second, for messages.
    """
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        key = columns["key"][unknown[0]]
        raise UserError(f'{path}:{start + unknown[0]}: the key "{key[:80]}" is not in {first_path}; score the same rows')
    counts = np.bincount(rows, minlength=len(first["key"]))
    if (counts != 1).any():
        row = int(np.argmax(counts != 1))
        times = counted(counts[row], "time")
        raise UserError(f'{path}: has the key "{first["key"][row][:80]}" {times}, {first_path} has it once; score the same rows')
    for number, (row, name) in enumerate(zip(rows.tolist(), columns["class"]), start):
        check_same_class(first["key"][row], name, first["class"][row], f"{path}:{number}", first_path)


def rows_of_val(val, class_names, table, path):
    """Where verified rows are in a table, int [V'], and which they are, int [V']; warns of those that are not. val: arrays.FeatureArray."""
    rows = rows_in_table(val, class_names, table["key"], table["class"], path)
    known = np.flatnonzero(rows >= 0)
    if len(known) < len(rows):
        warn(f"{val.path}: {counted(len(rows) - len(known), 'row')} without a score in {path}: left out")
    if len(np.unique(val.labels[known])) < 2:
        rows_found = counted(len(known), "row")
        raise UserError(f"{val.path}: its {rows_found} with a score are not of both kinds, which a threshold needs; verify more")
    return rows[known], known


def scored_blocks(table, probability, name_ids):
    """Yields score_table.ScoredRows: the rows of a table with another probability. name_ids: {class name: id}."""
    for start in range(0, len(probability), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        given, nearest = (np.array([name_ids[name] for name in table[column][part]], np.int32) for column in ("class", "nearest_class"))
        scores = score_table.Scores(table["cosine"][part], table["margin"][part], probability[part], nearest, table["nearest_cosine"][part])
        yield score_table.ScoredRows(table["key"][part], given, scores)


def line_about(name, evaluation):
    """One line about the validation of a score."""
    group = evaluation["all"]
    auroc = "undefined" if group["auroc"] is None else f"{group['auroc']:.4f}"
    return f"{name}: AUROC {auroc}, average error rate over classes {100 * group['chosen']['average_error_rate']:.2f} % (cross-fitted)"


def main():
    opt = flags.FLAGS
    score_table.check_table_path(opt.output_file)
    class_path = os.path.join(os.path.dirname(opt.val_npy), "classes.txt")
    inputs = {f"table {path}": path for path in opt.score_files} | arrays.files_of("--val_npy", opt.val_npy)
    inputs |= {"its class list": class_path, "--heldout_class_list": opt.heldout_class_list}
    paths.check_distinct({"--output_file": opt.output_file}, inputs)
    names = class_list.load(class_path)
    heldout_ids = class_list.heldout_ids(opt.heldout_class_list, names)
    val = arrays.FeatureArray(opt.val_npy, class_names=names, verified=True)
    table, probabilities = read_tables(opt.score_files)
    combined = combine(probabilities)
    rows, verified = rows_of_val(val, names, table, opt.score_files[0])
    labels, class_ids = val.labels[verified], val.class_ids[verified]
    for name, scores in zip([*opt.score_files, "combined"], [*probabilities, combined]):
        evaluation = metrics.evaluate(scores[rows], labels, class_ids, metrics.FIXED_THRESHOLD, heldout_ids)
        if evaluation["chosen_threshold"] is None:
            raise UserError(f"{opt.val_npy}: no row of a kept class has a score ({name}), to choose a threshold; verify some")
        print(line_about(name, evaluation))
    threshold = evaluation["chosen_threshold"]
    known = sorted({*table["class"], *table["nearest_class"]})
    blocks = scored_blocks(table, combined, {name: i for i, name in enumerate(known)})
    atomic.check_writable([opt.output_file])
    found = score_table.write(opt.output_file, blocks, class_names=known, score="probability", threshold=threshold, table=True)
    print(f"{opt.output_file}: {counted(len(found), 'row')}, {int((found < threshold).sum())} below {threshold:g}")


if __name__ == "__main__":
    command.run(main)
