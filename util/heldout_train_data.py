"""Removes the verified rows of held-out classes, to measure how well training carries over to these classes.

    python util/heldout_train_data.py --heldout_class_list=data/heldout.tsv --input_file=data/train.tsv \
        --output_file=data/train_heldout.tsv

Input and output are verified sets, compressed if their names end in .gz. The other rows are copied byte for byte, and so is the
header of a .csv.
"""
import os
import sys

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, class_list, command, csv_rows, paths, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string("heldout_class_list", None, "Lines of class name, tab, 1 (keep) or 0 (hold out).", required=True)
flags.DEFINE_string("input_file", None, "Verified rows: tab-separated, or .csv with a header.", required=True)
flags.DEFINE_string("output_file", None, "File for the rows of the other classes.", required=True)


def keep_rows(input_file, heldout, out):
    """Copies the rows whose class is not in the set `heldout` to the binary file `out`.

    Returns:
        (the number of rows kept, the number left out).
    """
    kept, left_out, seen, source = 0, 0, set(), tsv
    if csv_rows.is_csv(input_file):
        source = csv_rows
        _, header = next(tsv.read_lines(input_file, tsv.VERIFIED.columns, "reading the header"), (0, b""))
        out.write(header + b"\n")
    for _, columns, line in source.columns_without_feature(input_file, tsv.VERIFIED, "leaving held-out classes out"):
        name = columns[tsv.VERIFIED.class_name]
        if name in heldout:
            left_out += 1
            seen.add(name)
        else:
            out.write(line + b"\n")
            kept += 1
    unseen = sorted(heldout - seen)
    if unseen:
        warn(
            f"{input_file}: has no row of {len(unseen)} of the {len(heldout)} held-out classes, e.g. {unseen[0]}; "
            "is the name spelt right?"
        )
    return kept, left_out


def main():
    opt = flags.FLAGS
    heldout = class_list.load_heldout(opt.heldout_class_list)
    inputs = {"--input_file": opt.input_file, "--heldout_class_list": opt.heldout_class_list}
    if opt.input_file.endswith(".parquet"):
        raise UserError(f"{opt.input_file}: is not copied; train.py --heldout_class_list leaves the same rows out of any format")
    if csv_rows.is_csv(opt.input_file) != csv_rows.is_csv(opt.output_file):
        raise UserError(f"--output_file={opt.output_file}: expected a name with the suffix of {opt.input_file}, whose lines are copied")
    paths.check_distinct({"--output_file": opt.output_file}, inputs)
    with atomic.whole_file(opt.output_file) as out:
        kept, left_out = keep_rows(opt.input_file, heldout, out)
        if not kept + left_out:
            raise UserError(f"{opt.input_file}: has no rows, expected {tsv.VERIFIED.columns}")
        if not kept:
            classes = f"held-out classes ({opt.heldout_class_list})"
            raise UserError(f"{opt.input_file}: all {left_out} rows are of {classes}; keep some classes")
    print(f"{opt.output_file}: {kept} verified rows kept, {left_out} rows of {len(heldout)} held-out classes left out")


if __name__ == "__main__":
    command.run(main)
