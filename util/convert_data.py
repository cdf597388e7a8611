"""Converts rows, in any of the formats of docs/formats.md, to the arrays that the other commands read.

    python util/convert_data.py --split=all --class_list=data/classes.txt --data_path=data/all.tsv --output_dir=data

The split names the columns and the output; in tab-separated text, an image url may stand in column 2 of each:
train, val: key, class name, verification label, feature -> train.npy or val.npy, and its keys
all: key, class name, feature -> all.npy, grouped by class, and all_keys.txt
ref: class name, reference id, feature -> ref.npy
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import array_writer, arrays, atomic, class_list, command, paths, rows, tsv
from util.lib.errors import UserError

flags.DEFINE_enum(
    "split", "val", ["train", "val", "all", "ref"],
    "The rows in data_path: train and val are verified, all are unverified, ref are references.",
)
flags.DEFINE_string(
    "class_list", None, "Text file of one class name per line; the line number, from 0, is the class id.", required=True
)
flags.DEFINE_string(
    "data_path", None,
    "The rows: tab-separated text (.gz too), .csv with a header (.gz too), or .parquet, which may be a pattern or a folder of files.",
)
flags.DEFINE_string("features", None, "Instead of data_path: the features alone, .npy or .npz; table has the rest.")
flags.DEFINE_string("table", None, "With features: .csv or tab-separated, with a header, its rows in the order of the features.")
flags.DEFINE_string("key_column", "key", "Column of the keys, in parquet, CSV or table.")
flags.DEFINE_string("class_column", "class", "Column of the class names, in parquet, CSV or table.")
flags.DEFINE_string("label_column", "label", "Column of the verification labels or reference ids, in parquet, CSV or table.")
flags.DEFINE_string(
    "feature_column", "feature", "Column of the features, in parquet or CSV, or the array of features in a .npz of several."
)
flags.DEFINE_string("output_dir", None, "Folder for the arrays; it is created.", required=True)
flags.DEFINE_integer("num_ref", 32, "References per class; only with --split=ref.", lower_bound=1)
flags.DEFINE_integer("img_dim", None, "Numbers per feature; by default as many as in most of the first 50 rows.", lower_bound=1)
flags.DEFINE_enum(
    "on_bad_row", "error", ["error", "skip"],
    "error: stop at the first bad row. skip: leave bad rows out, count them and list them in <output>.rejected.tsv.",
)
flags.DEFINE_integer("num_workers", 0, "Threads that parse; 0: one per core, at most 8.", lower_bound=0, upper_bound=64)


def make_parser(split, class_names, num_ref, img_dim):
    """The tsv.Parser for the rows of a split. img_dim: numbers per feature; None: as many as in most of the first rows."""
    if split == "ref":
        layout, labels = tsv.REFERENCES, {str(r).encode(): r for r in range(num_ref)}
    elif split == "all":
        layout, labels = tsv.UNVERIFIED, None
    else:
        layout, labels = tsv.VERIFIED, tsv.VERIFICATION_LABELS
    return tsv.Parser(layout, class_names, labels=labels, width=img_dim, width_from="--img_dim" if img_dim else "")


def convert_references(reader, path, class_names, num_ref):
    """Writes ref.npy, float32 [C, num_ref, D], from rows that give each reference once. Returns their number."""
    array, line_of = None, {}
    for block in reader:
        if not block.keys:
            continue
        if array is None:
            array = np.zeros((len(class_names), num_ref, reader.source.parser.width), np.float32)
        for class_id, reference, line, feature in zip(block.class_ids, block.labels, block.lines, block.features):
            if line_of.setdefault((class_id, reference), line) != line:
                raise UserError(
                    f'{reader.source.place(line)}: reference {reference} of class "{class_names[class_id]}" is already in '
                    f"line {line_of[class_id, reference]}; each must be given once"
                )
            array[class_id, reference] = feature
    for class_id, name in enumerate(class_names):
        missing = [r for r in range(num_ref) if (class_id, r) not in line_of]
        if missing:
            raise UserError(
                f'{reader.source.path}: class "{name}" has no reference {missing[0]} ({len(missing)} of {num_ref} are '
                "missing); give every class all of them, or give the right --num_ref"
            )
    array_writer.write_references(path, array, class_names)
    return len(line_of)


def convert_rows(reader, path, class_names, split):
    """Writes the rows of train, val or all as an array with its keys. Returns their number."""
    num_rows = array_writer.write(
        reader, path, class_names, grouped=split == "all", verified=split != "all", source=reader.source.path,
        class_sizes=reader.source.class_sizes() if split == "all" else None,
    )
    if not num_rows:
        raise UserError(f"{reader.source.path}: no rows are left, all {reader.num_dropped} are labelled -1; verify some")
    return num_rows


def main():
    opt = flags.FLAGS
    class_names = class_list.load(opt.class_list)
    if command.given(opt, "num_ref") and opt.split != "ref":
        raise UserError(
            f"--num_ref={opt.num_ref} goes with --split=ref only; for the other splits util/find_reference.py sets it"
        )
    parser = make_parser(opt.split, class_names, opt.num_ref, opt.img_dim)
    path = os.path.join(opt.output_dir, f"{opt.split}.npy")
    if not (opt.data_path or opt.features or opt.table):
        raise UserError("no rows to convert: give --data_path, or --features and --table")
    source = rows.open_source(
        opt.data_path, parser, features=opt.features, table=opt.table, num_workers=opt.num_workers, description=f"converting {opt.split}",
        columns={"key": opt.key_column, "class": opt.class_column, "label": opt.label_column, "feature": opt.feature_column},
    )
    reader = rows.RowReader(source, on_bad_row=opt.on_bad_row, rejected_path=f"{path}.rejected.tsv")
    paths.check_distinct(
        {**arrays.files_of("the array", path), "rejected rows": reader.rejected_path},
        {"--data_path": source.inputs, "--class_list": opt.class_list},
    )
    atomic.make_folder(opt.output_dir)
    class_list.check_beside(opt.output_dir, class_names, opt.class_list)
    if opt.split == "ref":
        num_rows = convert_references(reader, path, class_names, opt.num_ref)
    else:
        num_rows = convert_rows(reader, path, class_names, opt.split)
    left_out = [f"{n} {what}" for n, what in ((reader.num_dropped, "labelled -1"), (reader.num_rejected, "bad")) if n]
    note = f"; left out: {', '.join(left_out)}" if left_out else ""
    print(f"{path}: {num_rows} rows of {parser.width} numbers, {len(class_names)} classes{note}")


if __name__ == "__main__":
    command.run(main)
