"""Takes a second look: combines score tables of the same rows, and chooses the threshold of the result on verified rows.

    python util/combine_scores.py --score_files=runs/scores.tsv,runs/classifier.tsv --val_npy=data/val.npy \
        --output_file=runs/combined.tsv

The combined probability is the mean of the tables' probabilities in logits, log(p / (1 - p)). Rows are joined by key. With a single
table the command chooses its threshold. --calibrate makes the probability that of a correct label: of rows with 0.7, 70 % are correct.
"""
import os
import sys

import numpy as np
from absl import flags
from scipy import special

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, calibration, class_list, command, images, metrics, paths, score_table
from util.lib.errors import UserError, counted
from util.lib.key_index import KeyIndex, check_same_class, rows_of_verified

flags.DEFINE_list("score_files", None, "Tables of scores, separated by commas.", required=True)
flags.DEFINE_string("val_npy", None, "Verified rows that choose the threshold, with their keys and classes.txt beside.", required=True)
flags.DEFINE_string(
    "heldout_class_list", None, "Classes whose rows have no say in the threshold. Lines of class name, tab, 1 (keep) or 0 (hold out)."
)
flags.DEFINE_list(
    "heldout_score_files", [], "With --calibrate: those of the tables that count in held-out classes. By default all.",
)
flags.DEFINE_bool(
    "calibrate", False, "Map the probability to that of a correct label, with a shift per class, by the verified rows of kept classes."
)
flags.DEFINE_string(
    "val_sim_thres", "auto",
    "Probability from which a label counts as correct. auto: the best on the verified rows, or 0.5 with --calibrate. fdr:0.1: flag as "
    "many rows of kept classes as possible, of which 10 % are expected to be correct at most.",
)
flags.DEFINE_string(
    "output_file", None, "Table of the result, in the order of the first table: text, .csv, .gz or .parquet.", required=True
)
flags.DEFINE_string("report_dir", None, "Folder for report.json and report.html of the result, as those of inference.py --mode=val.")
flags.DEFINE_string("image_dir", None, "With --report_dir: folder in which an image is found by its key; the report shows the worst ones.")

BLOCK_ROWS = 65536  # that are written at once


def combine(probabilities):
    """The mean of probabilities in logits: float64 [T, N] -> float64 [N]; NaN where one of them is."""
    return special.expit(calibration.logits(probabilities).mean(axis=0))


def read_tables(score_files):
    """Reads tables of the same rows.

    Returns:
        (columns of the first, as score_table.read_columns gives them; probabilities of all in the order of its rows, float64 [T, N]).
    """
    first, probabilities = None, []
    for path in score_files:
        columns, start = score_table.read_columns(path)
        score_table.check_probabilities(columns["probability"], path, start)
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


def scored_blocks(table, probability, name_ids):
    """Yields score_table.ScoredRows: the rows of a table with another probability. name_ids: {class name: id}."""
    for start in range(0, len(probability), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        given, nearest = (np.array([name_ids[name] for name in table[column][part]], np.int32) for column in ("class", "nearest_class"))
        scores = score_table.Scores(table["cosine"][part], table["margin"][part], probability[part], nearest, table["nearest_cosine"][part])
        yield score_table.ScoredRows(table["key"][part], given, scores)


def check_flags(*, score_files, heldout_score_files, calibrate, heldout_class_list, output_file, report_dir, image_dir, val_sim_thres):
    """Checks the flags against each other; the arguments are their values."""
    if not score_files or not all(score_files):
        raise UserError(f"--score_files={','.join(score_files)}: names no table, or an empty one; give tables, with commas between them")
    score_table.check_table_path(output_file)
    command.check_report_flags(report_dir, image_dir)
    if report_dir and command.parse_fdr(val_sim_thres):
        raise UserError(f"--val_sim_thres={val_sim_thres} is chosen by all of --val_npy, which the report measures; give auto or a number")
    if heldout_score_files and not (calibrate and heldout_class_list):
        raise UserError("--heldout_score_files needs --calibrate and a --heldout_class_list; give both, or leave it out")
    for path in heldout_score_files:
        if path not in score_files:
            raise UserError(f"--heldout_score_files: {path} is none of --score_files; name some of those")


def check_paths(class_path, *, score_files, val_npy, heldout_class_list, output_file, report_dir, image_dir):
    """Raises UserError where an output is an input or cannot be written."""
    inputs = {f"table {path}": path for path in score_files} | arrays.files_of("--val_npy", val_npy)
    inputs |= {"its class list": class_path, "--heldout_class_list": heldout_class_list}
    outputs = {"--output_file": output_file}
    if report_dir:
        from util.lib import report  # late: its libraries take a second

        outputs |= report.files_in(report_dir)
    paths.check_distinct(outputs, inputs)
    images.check_outputs(outputs, image_dir)
    atomic.check_writable(outputs.values())
    if report_dir:
        report.lock(report_dir)


def line_about(name, evaluation, decision):
    """One line about the validation of a score. decision: which one of the evaluation it reports."""
    error = metrics.errors_in_words(evaluation, decision)
    return f"{name}: AUROC {metrics.auroc_in_words(evaluation)}, average error rate over classes {error} (cross-fitted)"


def print_validation(of_verified, labels, class_ids, heldout_ids):
    """Prints a line per score of verified rows. Returns the threshold chosen on the last of them.

    Args:
        of_verified: {name: float [V]}; a calibrated one is decided at calibration.EVEN. labels, class_ids: int [V]. heldout_ids: list.
    """
    for name, scores in of_verified.items():
        evaluation = metrics.evaluate(scores, labels, class_ids, calibration.EVEN, heldout_ids)
        print(line_about(name, evaluation, "fixed" if name == "calibrated" else "chosen"))
    if "calibrated" in of_verified:
        used = np.isfinite(scores) & ~np.isin(class_ids, heldout_ids)
        before, after = (calibration.error(of_verified[name][used], labels[used] == 1) for name in ("combined", "calibrated"))
        print(f"expected calibration error {before:.4f}, calibrated {after:.4f} (cross-fitted, kept classes)")
    return evaluation["chosen_threshold"]


def calibrate(probability, given_ids, rows, labels, heldout_ids, num_classes):
    """Calibrates probabilities on verified rows of kept classes.

    Args:
        probability: float64 [N], NaN for none. given_ids: int [N], num_classes for a class that is not in the class list.
        rows: int [V], the verified ones. labels: int [V]. heldout_ids: list of int. num_classes: int.

    Returns:
        (float64 [N], calibrated; float64 [V], those of the verified rows cross-fitted). NaN stays.
    """
    scored = np.isfinite(probability[rows])
    cross_fitted = np.full(len(rows), np.nan)
    rows, labels = rows[scored], labels[scored]
    cross_fitted[scored] = calibration.cross_fitted(probability[rows], labels, given_ids[rows], num_classes + 1, heldout_ids)
    heldout = np.isin(given_ids, heldout_ids)
    kept, labels = rows[~heldout[rows]], labels[~heldout[rows]]
    found = calibration.Calibration.fit(
        probability[kept], labels, given_ids[kept], num_classes + 1, heldout_ids, probability[heldout]
    )
    return found.apply(probability, given_ids), cross_fitted


def calibrate_apart(probability, counting, given_ids, rows, labels, heldout_ids, num_classes):
    """Calibrates probabilities; in held-out classes, some tables count alone.

    Args:
        counting: float64 [T, N], probabilities of those tables, of which there may be none. The others, and what returns, are as in
            calibrate.
    """
    known = given_ids, rows, labels, heldout_ids, num_classes
    result, cross_fitted = calibrate(probability, *known)
    if not len(counting):
        return result, cross_fitted
    others, others_cross_fitted = calibrate(combine(counting), *known)
    of_heldout = np.isin(given_ids, heldout_ids)
    return np.where(of_heldout, others, result), np.where(of_heldout[rows], others_cross_fitted, cross_fitted)


def main():
    opt = flags.FLAGS
    rate = command.parse_fdr(opt.val_sim_thres)
    threshold = None if rate else command.parse_threshold(opt.val_sim_thres)
    check_flags(
        score_files=opt.score_files, heldout_score_files=opt.heldout_score_files, calibrate=opt.calibrate, output_file=opt.output_file,
        heldout_class_list=opt.heldout_class_list, report_dir=opt.report_dir, image_dir=opt.image_dir, val_sim_thres=opt.val_sim_thres,
    )
    class_path = os.path.join(os.path.dirname(opt.val_npy), "classes.txt")
    check_paths(class_path, **{
        name: opt[name].value for name in ("score_files", "val_npy", "heldout_class_list", "output_file", "report_dir", "image_dir")
    })
    names = class_list.load(class_path)
    heldout_ids = class_list.heldout_ids(opt.heldout_class_list, names)
    val = arrays.FeatureArray(opt.val_npy, class_names=names, verified=True)
    table, probabilities = read_tables(opt.score_files)
    result = combine(probabilities)
    rows, verified = rows_of_verified(val, names, table, opt.score_files[0])
    labels, class_ids = val.labels[verified], val.class_ids[verified]
    if len(np.unique(labels)) < 2:
        found = counted(len(labels), "row")
        raise UserError(f"{opt.val_npy}: its {found} with a score are not of both kinds, which a threshold needs; verify more")
    of_verified = {**dict(zip(opt.score_files, probabilities[:, rows])), "combined": result[rows]}
    kept = ~np.isin(class_ids, heldout_ids)
    if not (kept & np.isfinite(result[rows])).any():
        raise UserError(f"{opt.val_npy}: no row of a kept class has a score, to choose a threshold; verify some")
    id_of = {name: i for i, name in enumerate(names)}
    given_ids = np.array([id_of.get(name, len(names)) for name in table["class"]])
    if opt.calibrate:
        counting = [opt.score_files.index(path) for path in opt.heldout_score_files]
        known = given_ids, rows, labels, heldout_ids, len(names)
        result, of_verified["calibrated"] = calibrate_apart(result, probabilities[counting], *known)
    chosen = print_validation(of_verified, labels, class_ids, heldout_ids)
    of_result = of_verified["calibrated" if opt.calibrate else "combined"]
    if rate:
        used = kept & np.isfinite(of_result)
        threshold = metrics.fdr_threshold(result[~np.isin(given_ids, heldout_ids)], of_result[used], labels[used], rate)
    elif threshold is None:
        threshold = calibration.EVEN if opt.calibrate else chosen
    known = sorted({*table["class"], *table["nearest_class"]})
    blocks = scored_blocks(table, result, {name: i for i, name in enumerate(known)})
    found = score_table.write(
        opt.output_file, blocks, class_names=known, score="probability", threshold=threshold, calibrated=opt.calibrate, table=True
    )
    print(f"{opt.output_file}: {counted(len(found), 'row')}, {int((found < threshold).sum())} below {threshold:g}")
    if opt.report_dir:
        from util.lib import report  # late, as above

        keys = np.array(val.sample_keys(), object)[verified]
        report.write(
            opt.report_dir, of_result, labels, class_ids, names, threshold=threshold, heldout_ids=heldout_ids, score="probability",
            pictured=report.Pictured(keys, opt.image_dir) if opt.image_dir else None,
        )
        print(f"{opt.report_dir}: report.json, report.html")


if __name__ == "__main__":
    command.run(main)
