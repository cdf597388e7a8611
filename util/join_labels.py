"""Joins decisions with features: writes the verified rows that train.py reads, train.npy or val.npy, with their keys.

    python util/join_labels.py --decisions=verified.tsv --features=data/all.npy --split=train --output_dir=data

A decision belongs to the row of the same key and class. Rows on which people disagree, or that nobody could decide, are
left out. Where several decisions files are given, all count.
"""
import os
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import array_writer, arrays, atomic, class_list, command, decisions, paths, tsv
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import keys_of_verified_rows
from util.lib.rows import RowReader

flags.DEFINE_list("decisions", None, "Decisions files of verify_images.py, separated by commas.", required=True)
flags.DEFINE_list(
    "leave_out", [],
    "Files of verified rows, such as data/val.npy, whose keys are left out: .npy with its keys, text with keys in column 1, or CSV.",
)
flags.DEFINE_string("features", None, "All rows: all.npy with its keys, or text (key, [url,] class name, feature); .gz too.", required=True)
flags.DEFINE_string("class_list", None, "Class list, one name per line. By default the classes.txt beside the features.")
flags.DEFINE_enum("split", None, ["train", "val"], "Which array to write: rows to train on, or rows to validate on.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for the array; it is created.", required=True)

BLOCK = 1000  # rows of an array that are read together


class Join:
    """Picks the decided rows out of all rows.

    Args:
        labels: {(key, class name): 1 or 0}. class_names: list of str. source: where the features come from, for messages.
    """

    def __init__(self, labels, class_names, source):
        self._labels, self._class_names, self._source = labels, class_names, source
        self._keys = {}  # {key: the classes that were decided for it}
        for key, name in labels:
            self._keys.setdefault(key, set()).add(name)
        self._seen, self._repeated, self._other_class = set(), 0, {}
        self.num_correct = 0  # of the rows given so far

    def pick(self, keys, class_ids):
        """Which of some rows were decided and not picked before: int [n], indices. keys: list of str. class_ids: int32 [N]."""
        picked = []
        for i, key in enumerate(keys):
            if key not in self._keys:
                continue
            row = key, self._class_names[class_ids[i]]
            if row not in self._labels:
                self._other_class[key] = row[1]
            elif row in self._seen:
                self._repeated += 1
            else:
                self._seen.add(row)
                picked.append(i)
        return np.array(picked, int)

    def block(self, keys, class_ids, features):
        """The tsv.Block of picked rows. features: float32 [n, D]."""
        labels = [self._labels[key, self._class_names[c]] for key, c in zip(keys, class_ids)]
        self.num_correct += sum(labels)
        return tsv.Block(keys, class_ids, np.array(labels, np.int32), np.arange(len(keys)), features, [], len(keys), 0)

    def warn(self):
        """Says which decisions had no row, and which rows were there twice. Raises UserError where no decision had one."""
        lost = [row for row in self._labels if row not in self._seen]
        changed = [(key, name) for key, name in lost if key in self._other_class]
        missing = [(key, name) for key, name in lost if key not in self._other_class]
        texts = []
        if changed:
            key, name = changed[0]
            found = f'"{key}" was decided as {name} and is {self._other_class[key]} there'
            texts.append(f"{counted(len(changed), 'decided row')} with another class, e.g. {found}; decide these anew, as that class")
        if missing:
            key, name = missing[0]
            texts.append(f'no features of {counted(len(missing), "decided row")}, e.g. "{key}"; extract them, or check the keys')
        if not self._seen:
            raise UserError(f"{self._source}: {'; '.join(texts)}")
        if self._repeated:
            texts.append(f"{counted(self._repeated, 'row')} with the key and class of an earlier one; the first is taken, give keys once")
        for text in texts:
            warn(f"{self._source}: {text}")


def load_labels(decision_paths, leave_out):
    """What decisions files say together: {(key, class name): 1 or 0}, without unclear rows and the keys in the files to leave out.

    Says in a line what there is.
    """
    tally, names = decisions.Tally(), ", ".join(decision_paths)
    for path in decision_paths:
        tally.merge(decisions.load(path))
    resolved = tally.resolve()
    labels = {row: found.label for row, found in resolved.items() if found.label >= 0}
    if not labels:
        raise UserError(f"{names}: no row is decided as correct or mislabeled; verify some first")
    print(f"{names}: {decisions.in_words(resolved)}")
    for path in leave_out:
        known, before = set(keys_of_verified_rows(path)), len(labels)
        labels = {row: label for row, label in labels.items() if row[0] not in known}
        print(f"{path}: {before - len(labels)} of them left out")
        if not labels:
            raise UserError(f"{path}: has all decided rows, so none is left; verify others")
    return labels


def blocks_of_array(path, class_names, join):
    """Yields tsv.Blocks of the decided rows of all.npy, whose features alone are read."""
    array = arrays.FeatureArray(path, class_names=class_names, verified=False)
    keys = array.sample_keys()
    rows = join.pick(keys, array.class_ids)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        yield join.block([keys[i] for i in part], array.class_ids[part], array.features[part])
    join.warn()


def blocks_of_text(path, class_names, join):
    """Yields tsv.Blocks of the decided rows of a text file."""
    for block in RowReader(tsv.TextRows(path, tsv.Parser(tsv.UNVERIFIED, class_names), description="joining")):
        rows = join.pick(block.keys, block.class_ids)
        if len(rows):
            yield join.block([block.keys[i] for i in rows], block.class_ids[rows], block.features[rows])
    join.warn()


def main():
    opt = flags.FLAGS
    if not opt.decisions:
        raise UserError("--decisions: names no file; expected files of verify_images.py")
    beside = os.path.join(os.path.dirname(opt.features), "classes.txt")
    class_names = class_list.load(opt.class_list or beside)
    is_array = opt.features.endswith(".npy")
    if is_array:
        class_list.require_beside(os.path.dirname(opt.features), class_names, opt.class_list or beside)
    path = os.path.join(opt.output_dir, f"{opt.split}.npy")
    inputs = {"--features": opt.features, "--class_list": opt.class_list} | {f"--decisions {name}": name for name in opt.decisions}
    inputs |= {f"--leave_out {name}": name for name in opt.leave_out}
    outputs = arrays.files_of("the array", path)
    paths.check_distinct(outputs, inputs)
    join = Join(load_labels(opt.decisions, opt.leave_out), class_names, opt.features)
    atomic.make_folder(opt.output_dir)
    class_list.check_beside(opt.output_dir, class_names, opt.class_list or beside)
    atomic.check_writable(outputs.values())
    blocks = (blocks_of_array if is_array else blocks_of_text)(opt.features, class_names, join)
    num_rows = array_writer.write(blocks, path, class_names, grouped=False, verified=True, source=opt.features)
    print(f"{path}: {num_rows} verified rows, {join.num_correct} correct and {num_rows - join.num_correct} mislabeled")


if __name__ == "__main__":
    command.run(main)
