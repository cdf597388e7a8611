"""Leaves the verified rows of held-out classes out, to measure how well training carries over to them.

    python util/heldout_train_data.py --heldout_class_list=data/heldout.tsv --input_file=data/train.tsv \
        --output_file=data/train_heldout.tsv

Input and output have the columns of a verified set, .gz or plain by their names. Features are copied, not read.
"""
import os
import sys

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, class_list, command, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string("heldout_class_list", None, "Lines of class name, tab, 1 (keep) or 0 (hold out).", required=True)
flags.DEFINE_string("input_file", None, "Verified rows, tab-separated.", required=True)
flags.DEFINE_string("output_file", None, "Where the rows of kept classes go.", required=True)


def keep_rows(input_file, heldout, out):
    """Copies the rows whose class is not in the set `heldout` to a binary file. Returns how many were kept and left out."""
    kept, left_out, seen = 0, 0, set()
    for _, columns, line in tsv.columns_without_feature(input_file, tsv.VERIFIED, "leaving held-out classes out"):
        if columns[tsv.VERIFIED.class_name] in heldout:
            left_out += 1
            seen.add(columns[tsv.VERIFIED.class_name])
        else:
            out.write(line + b"\n")
            kept += 1
    if seen < heldout:
        unseen = sorted(heldout - seen)
        warn(f"{input_file}: no row is of {len(unseen)} of the held-out classes, {unseen[0]} for one; is it spelt right?")
    return kept, left_out


def main():
    opt = flags.FLAGS
    heldout = class_list.load_heldout(opt.heldout_class_list)
    with atomic.whole_file(opt.output_file) as out:
        kept, left_out = keep_rows(opt.input_file, heldout, out)
        if not kept:
            raise UserError(
                f"{opt.input_file}: all {left_out} rows are of held-out classes ({opt.heldout_class_list}); keep some classes"
            )
    print(f"{opt.output_file}: {kept} verified rows kept, {left_out} rows of {len(heldout)} held-out classes left out")


if __name__ == "__main__":
    command.run(main)
