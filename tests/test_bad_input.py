"""Bad input through the real command lines: one line on stderr, a non-zero exit, no traceback, nothing written or changed.

All cases run once, under coverage; the last test checks that every line that raises a user's error was reached.
"""
import ast
import gzip
import hashlib
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import coverage
import numpy as np
import pyarrow
import pytest
from commands import ROOT, run_command
from conftest import CLASSES
from pyarrow import parquet

from util.lib import metrics

F = ",".join(["0.5"] * 13)  # a good feature
GOOD = f"k0\tramen\t{F}\n"
CONVERT = ["util/convert_data.py", "--split=all", "--class_list=classes.txt", "--data_path=rows.tsv", "--output_dir=out"]
REFERENCE = ["util/find_reference.py", "--class_list=classes.txt", "--input_npy=data/all.npy", "--output_dir=out", "--num_ref=7"]
TRAIN = ["train.py", "--data_dir=data", "--checkpoint_dir=new", "--log_dir=log", "--n_step=2", "--val_interval=2"]
INFER = ["inference.py", "--checkpoint_dir=run", "--image_feature_list=rows.tsv", "--output_file=out/pred.txt"]
HELDOUT = ["util/heldout_train_data.py", "--heldout_class_list=held.tsv", "--input_file=train.tsv", "--output_file=out/train.tsv"]
DRAW = ["util/draw_examples.py", "--score_file=s.txt", "--image_feature_list=rows.tsv", "--output_file=out/x.png"]
EXPORT = ["util/export_weights.py", "--score_file=s.txt", "--output_file=out/w.npy"]
COMPARE = ["util/compare_methods.py", "--data_dir=data", "--output_dir=out"]

CLASSIFY = ["util/train_classifier.py", "--input_npy=data/all.npy", "--output_file=out/c.keras", "--n_epoch=1"]
FOLDS = ["util/train_classifier.py", "--input_npy=data/all.npy", "--folds=2", "--table_file=out/t.tsv", "--n_epoch=1"]
WEIGHTED = [*CLASSIFY, "--weights=soft", "--score_file=s.tsv"]
RELABELLED = [*CLASSIFY, "--relabel", "--list_file=l.tsv"]
TESTED = [*CLASSIFY, "--report_dir=new"]


class Case(NamedTuple):
    """files: {name: text, bytes, or a function of the folder}. message: what stderr must say."""

    name: str
    command: list
    message: str
    files: dict = {}


def text_case(name, row, message, command=CONVERT):
    """A bad second row in a file of rows."""
    return Case(name, command, message, {"rows.tsv": GOOD.encode() + (row if isinstance(row, bytes) else row.encode()) + b"\n"})


def npy(function, name="data/all.npy"):
    """{name: a change of that array}: `function` takes a copy and returns what is to be saved."""
    def change(folder):
        np.save(folder / name, function(np.load(folder / name)))

    return {name: change}


def keep_rows(split, choose):
    """A function of the folder that leaves out rows of an array, and their keys. choose: the array -> bool [N]."""
    def change(folder):
        array, keys = np.load(folder / f"data/{split}.npy"), folder / f"data/{split}_keys.txt"
        kept = choose(array)
        np.save(folder / f"data/{split}.npy", array[kept])
        keys.write_text("".join(key for key, keep in zip(keys.read_text().splitlines(keepends=True), kept) if keep))

    return change


def put(values, index):
    def function(array):
        array[index] = values
        return array

    return function


def truncate(name, size):
    return {name: lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])}


def remove(name):
    def change(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return {name: change}


def edit_json(name, **values):
    def change(folder):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **values}))

    return {name: change}


def damage_checkpoints(folder):
    for path in (folder / "run").glob("step-*/ckpt.data*"):
        path.write_bytes(path.read_bytes()[:100])


def swap_weights(folder):
    """The weights of another shape under this run's name."""
    import tensorflow as tf

    import model

    net = model.CleanNet(7, 14)
    from util.lib import run_folder

    for step in run_folder.steps(folder / "run"):
        state = run_folder.load_state(folder / "run", step)
        velocity = [tf.zeros_like(w.value) for w in net.trainable_variables]
        velocity = [tf.Variable(v) for v in velocity]
        run_folder.save(str(folder / "run"), step, net, velocity, {"history": state["history"], "best": state["best"]})


def poison_weights(folder):
    import tensorflow as tf

    import model
    from util.lib import run_folder

    net = model.CleanNet(7, 13)
    net.query_encoder.encode_1.bias.assign(np.full(256, np.nan, np.float32))
    for step in run_folder.steps(folder / "run"):
        state = run_folder.load_state(folder / "run", step)
        velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
        run_folder.save(str(folder / "run"), step, net, velocity, {"history": state["history"], "best": state["best"]})


def by_rows(change):
    """A run with --class_embedding=rows; `change` of its means, float32 [5, 128]."""
    def write(folder):
        for path in (folder / "run").glob("step-*"):
            np.save(path / "class_embeddings.npy", change(np.ones((5, 128), np.float32)))

    settings = {"score": "cosine", "contrast_temperature": 0.1, "class_embedding": "rows", "heldout_classes": []}
    return {**edit_json("run/run.json", settings=settings), "means": write}


def without(command, *names):
    return [a for a in command if not any(a.startswith(f"--{name}=") for name in names)]


def changed(command, **flags):
    return without(command, *flags) + [f"--{name}={value}" for name, value in flags.items()]


TRAIN_ON = changed(
    TRAIN, checkpoint_dir="run", n_step=70, val_interval=20, log_interval=5, batch_size_sup=8, batch_size_unsup=6, dropout_rate=0.2
)
IMAGES = ["util/extract_features.py", "--image_dir=out", "--output_file=out/x.tsv"]


SMALL_IMAGES = [*IMAGES, "--crop=8", "--resize=8"]


def small_network(folder):
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(inputs)
    x = keras.layers.Dense(2, activation="log_softmax", kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(np.nan), name="log")(x)
    keras.Model(inputs, [x, keras.layers.Reshape((64, 3), name="rows")(inputs)]).save(folder / "m.keras")


def odd_name(folder):
    (folder / "odd" / "c").mkdir(parents=True)
    (folder / "odd" / "c" / "a\tb.png").write_bytes(b"x")


def one_class(folder):
    """Data of one class only."""
    for name, column in (("train", -2), ("val", -2), ("all", -1)):
        keep_rows(name, lambda array, column=column: array[:, column] == 0)(folder)
    np.save(folder / "data/ref.npy", np.load(folder / "data/ref.npy")[:1])
    (folder / "data/classes.txt").write_text("apple pie\n")


def black_image(folder):
    import cv2

    cv2.imwrite(str(folder / "out/a.png"), np.zeros((9, 9, 3), np.uint8))


def vector_network(folder):
    import keras

    keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]).save(folder / "m.keras")


def shared_key(folder):
    """The first row of val.npy has the key of the first row of train.npy."""
    keys = [(folder / f"data/{split}_keys.txt").read_text().splitlines() for split in ("train", "val")]
    (folder / "data/val_keys.txt").write_text("\n".join([keys[0][0], *keys[1][1:]]) + "\n")


def narrow(folder):
    """Features of 12 numbers."""
    for split in ("train", "val", "all"):
        npy(lambda a: a[:, 1:], f"data/{split}.npy")[f"data/{split}.npy"](folder)


def same_rows(folder):
    """Four validation rows, of one feature and one class, half of them labelled as correct."""
    keep_rows("val", lambda a: np.arange(len(a)) < 4)(folder)
    path = folder / "data/val.npy"
    np.save(path, np.concatenate([np.repeat(np.load(path)[:1, :-1], 4, axis=0), np.float32([[0], [1], [0], [1]])], axis=1))


def key_and_class(folder, row):
    """The key and the class of a row of data/all.npy."""
    keys = (folder / "data/all_keys.txt").read_text().splitlines()
    return keys[row], CLASSES[int(np.load(folder / "data/all.npy")[row, -1])]


def scores_of_all(change=lambda key, name: (key, name)):
    """{file: a table of scores of data/all.npy}. change: function of the key and the class of the first row, to what the table has."""
    def write(folder):
        pairs = [key_and_class(folder, row) for row in range(211)]
        lines = ["{}\t{}\t1\t1\t1\tcorrect\tramen\t1\tcosine\n".format(*pair) for pair in [change(*pairs[0]), *pairs[1:]]]
        (folder / "s.tsv").write_text("".join(lines))

    return {"s.tsv": write}


def relabels(name):
    """{file: a cleaned list that relabels the first row of data/all.npy as a class}."""
    def write(folder):
        key, given = key_and_class(folder, 0)
        (folder / "l.tsv").write_text(f"key\tgiven_class\tsuggested_class\taction\n{key}\t{given}\t{name}\trelabel\n")

    return {"l.tsv": write}


def repeated_key(folder):
    """The first row of data/all.npy has the key of the second."""
    keys = (folder / "data/all_keys.txt").read_text().splitlines(keepends=True)
    (folder / "data/all_keys.txt").write_text("".join([keys[1], *keys[1:]]))


def all_mislabeled(folder):
    """A val.npy whose rows are all mislabeled."""
    npy(put(0, (slice(None), 14)), "data/val.npy")["data/val.npy"](folder)


def rows_of_one_fold(folder):
    """Weights of 0 for all rows outside the first of two folds."""
    ids = np.load(folder / "data/all.npy")[:, -1].astype(int)
    np.save(folder / "w.npy", np.float32(metrics.split_evenly(2, ids, seed=1) == 0))


def combined(change):
    """{file: tables a.tsv and b.tsv of data/val.npy}. change: function of the columns of b.tsv's first row, to other ones or None."""
    def write(folder):
        keys = (folder / "data/val_keys.txt").read_text().splitlines()
        rows = [[key, CLASSES[int(c)], "1", "1", f"{i / 70}", "correct", "ramen", "1", "cosine"]
                for i, (key, c) in enumerate(zip(keys, np.load(folder / "data/val.npy")[:, -2]))]
        for name, table in (("a.tsv", rows), ("b.tsv", [change(rows[0]), *rows[1:]])):
            (folder / name).write_text("".join("\t".join(row) + "\n" for row in table if row))

    return {"tables": write}


COMBINE = ["util/combine_scores.py", "--score_files=a.tsv,b.tsv", "--val_npy=data/val.npy", "--output_file=out/c.tsv"]
CLASSIFY_IMAGES = [
    "util/train_classifier.py", "--image_dir=out", "--image_list=l.tsv", "--class_list=classes.txt", "--keras_model=m.keras", "--layer=pool", "--crop=8",
    "--resize=8", "--output_file=new/c.keras", "--batch_size=2", "--n_epoch=1",
]
TWO_IMAGES = {"l.tsv": "a.png\tramen\nb.png\tsushi\n", "m.keras": small_network, "out/a.png": black_image, "out/b.png": lambda folder: None}
METHOD = {"all": {"chosen": {"average_error_rate": 0.1}, "auroc": 0.5, "average_precision": 0.5}}
SUMMARIZE = ["util/summarize_comparisons.py", "--comparisons=c.json", "--reference=x"]
COMPARE_RUN = [*COMPARE, "--checkpoint_dirs=run", "--only_cleannet"]
SCORED = "k\tramen\t1\t1\t1\tcorrect\tramen\t1\t{}\n"  # a row of a table of scores
LONG = "x" * ((16 << 20) + 5)
VERIFIED = changed(CONVERT, split="val")
REFERENCES = changed(CONVERT, split="ref", num_ref=2)
CASES = [
    # Rows of text.
    Case("missing file", changed(CONVERT, data_path="none.tsv"), "none.tsv: cannot read: No such file or directory"),
    Case("folder for a file", changed(CONVERT, data_path="data"), "data: is a folder, expected a tab-separated file"),
    Case("empty file", CONVERT, "rows.tsv: has no rows, expected key, class name, feature", {"rows.tsv": ""}),
    Case("blank lines only", CONVERT, "rows.tsv: has no rows", {"rows.tsv": "\n\r\n\n"}),
    text_case("two columns", "k\tramen", "rows.tsv:2: 2 tab-separated columns, expected 3 (key, class name, feature) or 4"),
    text_case("five columns", f"k\ta\tb\tramen\t{F}", "rows.tsv:2: 5 tab-separated columns"),
    text_case("word in a feature", f"k\tramen\t{F[:-3]}high", 'rows.tsv:2: value 13 of the feature is "high", expected a decimal number'),
    text_case("empty value", f"k\tramen\t,{F[4:]}", "rows.tsv:2: value 1 of the feature is nothing"),
    text_case("empty feature", "k\tramen\t", "rows.tsv:2: value 1 of the feature is nothing"),
    text_case("nan", f"k\tramen\t{F[:-3]}nan", 'value 13 of the feature is "nan"'),
    text_case("infinity", f"k\tramen\tinf{F[3:]}", 'value 1 of the feature is "inf"'),
    text_case("underscore", f"k\tramen\t1_0{F[3:]}", 'value 1 of the feature is "1_0"'),
    text_case("digits of another script", f"k\tramen\t٣{F[3:]}", 'value 1 of the feature is "٣"'),
    text_case("blank in a number", f"k\tramen\t 1{F[3:]}", 'value 1 of the feature is " 1"'),
    text_case("nested list", f"k\tramen\t[1]{F[3:]}", 'value 1 of the feature is "[1]"'),
    text_case("too large for float32", f"k\tramen\t1e39{F[3:]}", "value 1 of the feature is 1e39, too large for a float32"),
    text_case("too large for float64", f"k\tramen\t1e400{F[3:]}", "value 1 of the feature is 1e400, too large"),
    text_case("narrower than before", f"k\tramen\t{F[4:]}", "rows.tsv:2: a feature of 12 values, expected 13 (as in the first rows)"),
    text_case("wider than before", f"k\tramen\t{F},1", "a feature of 14 values, expected 13"),
    Case(
        "not img_dim wide", [*CONVERT, "--img_dim=12"], "rows.tsv:1: a feature of 13 values, expected 12 (--img_dim)", {"rows.tsv": GOOD}
    ),
    text_case("unknown class", f"k\tramen \t{F}", 'class "ramen " is not in the class list (5 classes); the closest is "ramen"'),
    text_case("empty key", f"\tramen\t{F}", "rows.tsv:2: an empty key"),
    text_case("not UTF-8", b"k\xff\tramen\t" + F.encode(), "rows.tsv:2: bytes that are not UTF-8"),
    text_case("NUL byte", f"k\0\tramen\t{F}", "rows.tsv:2: a NUL byte"),
    text_case("line over 16 MB", LONG, "rows.tsv:2: a line longer than 16 MB"),
    Case("three bad rows", CONVERT, "rows.tsv:1: 1 tab-separated column, expected 3 (key, class name, feature) or 4 (with an image url "
         "in column 2) (2 more bad rows among the next 4; --on_bad_row=skip", {"rows.tsv": "x\n" + GOOD + "\ny\n" + GOOD + "z\n"}),
    Case("skipping every row", [*CONVERT, "--on_bad_row=skip"], "none of the 2 rows can be used", {"rows.tsv": "x\ny\n"}),
    Case("truncated gzip", changed(CONVERT, data_path="rows.tsv.gz"), "the gzip data is cut off or damaged",
         {"rows.tsv.gz": gzip.compress(GOOD.encode() * 50)[:-9]}),
    Case("not gzip", changed(CONVERT, data_path="rows.tsv.gz"), "the gzip data is cut off or damaged", {"rows.tsv.gz": GOOD}),
    Case("label 2", VERIFIED, 'rows.tsv:1: verification label "2", expected 1 (correct), 0 (mislabeled) or -1 (invalid)',
         {"rows.tsv": f"k\tramen\t2\t{F}\n"}),
    Case("all labelled -1", VERIFIED, "no rows are left, all 1 are labelled -1", {"rows.tsv": "k\tramen\t-1\tx\n"}),
    Case("reference id out of range", REFERENCES, 'reference id "2", expected 0 to 1', {"rows.tsv": f"ramen\t2\t{F}\n"}),
    Case("reference twice", REFERENCES, 'rows.tsv:2: reference 0 of class "ramen" is already in line 1', {"rows.tsv": f"ramen\t0\t{F}\n" * 2}),
    Case("reference missing", REFERENCES, 'class "apple pie" has no reference 0 (2 of 2 are missing)', {"rows.tsv": f"ramen\t0\t{F}\n"}),
    # Class lists and held-out lists.
    Case("no class list", changed(CONVERT, class_list="none.txt"), "none.txt: cannot read: No such file or directory; expected the class list"),
    Case("empty class list", CONVERT, "classes.txt: the class list is empty", {"classes.txt": "\n"}),
    Case("class twice", CONVERT, 'classes.txt:3: class "a" is already in line 1', {"classes.txt": "a\nb\na\n"}),
    Case("empty class name", CONVERT, "classes.txt:2: an empty class name", {"classes.txt": "a\n\nb\n"}),
    Case("tab in a class name", CONVERT, "classes.txt:1: a tab or NUL in a class name", {"classes.txt": "a\t1\nb\n"}),
    Case("class list not UTF-8", CONVERT, "classes.txt:2: bytes that are not UTF-8", {"classes.txt": b"a\n\xff\n"}),
    Case("another class list beside the output", CONVERT, 'class 1 is "sushi", but "ramen" in out/classes.txt',
         {"classes.txt": "apple pie\nsushi\nramen\n", "rows.tsv": GOOD}),
    Case("held-out value", HELDOUT, 'held.tsv:1: found "ramen\\t2", expected a class name, a tab, and 1', {"held.tsv": "ramen\t2\n"}),
    Case("held-out class twice", HELDOUT, 'held.tsv:2: class "ramen" is in the list twice', {"held.tsv": "ramen\t1\nramen\t0\n"}),
    Case("empty held-out list", HELDOUT, "held.tsv: the held-out list is empty", {"held.tsv": "\n"}),
    Case("held-out class unknown", [*TRAIN, "--heldout_class_list=held.tsv"], 'class "raman" is not in the class list; the closest is "ramen"',
         {"held.tsv": "raman\t0\n"}),
    Case("everything held out", HELDOUT, "rows are of held-out classes (held.tsv); keep some", {"held.tsv": "".join(f"{c}\t0\n" for c in CLASSES)}),
    Case("verified rows with three columns", HELDOUT, "train.tsv:1: 3 tab-separated columns, expected 4", {"train.tsv": GOOD, "held.tsv": "ramen\t0\n"}),
    Case("no verified rows to leave out", HELDOUT, "train.tsv: has no rows", {"train.tsv": "", "held.tsv": "ramen\t0\n"}),
    # Arrays.
    Case("missing array", changed(REFERENCE, input_npy="data/none.npy"), "data/none.npy: cannot read: No such file"),
    Case("array is text", changed(REFERENCE, input_npy="rows.tsv"), "rows.tsv: is not a .npy file", {"rows.tsv": GOOD}),
    Case("truncated array", REFERENCE, "data/all.npy: the array is cut off or empty", truncate("data/all.npy", 500)),
    Case("pickled objects", REFERENCE, "holds pickled objects, which are never loaded",
         {"data/all.npy": lambda folder: np.save(folder / "data/all.npy", np.array([{}], object), allow_pickle=True)}),
    Case("a pickle under the array's name", REFERENCE, "is not a .npy file", {"data/all.npy": pickle.dumps([1])}),
    Case("float64 array", REFERENCE, "found float64 (211, 14), expected rows of a feature", npy(lambda a: a.astype("f8"))),
    Case("array without columns", REFERENCE, "shape (211, 1), expected rows of a feature", npy(lambda a: a[:, :1])),
    Case("wrong number of columns", [*REFERENCE, "--img_dim=12"], "data/all.npy: 14 columns, expected 12 + 1"),
    Case("array without rows", REFERENCE, "data/all.npy: has no rows", npy(lambda a: a[:0])),
    Case("nan in an array", REFERENCE, "data/all.npy: row 5 has nan in column 3, expected finite numbers", npy(put(np.nan, (5, 3)))),
    Case("class id out of range", REFERENCE, "row 210 has 5.0 as its class id, expected a whole number below 5", npy(put(5, (210, 13)))),
    Case("class id with a fraction", REFERENCE, "row 0 has 0.5 as its class id", npy(put(0.5, (0, 13)))),
    Case("rows not grouped", REFERENCE, "row 1 is of class 0 after class 4, expected rows grouped by class id", npy(put(4, (0, 13)))),
    Case("array without keys", REFERENCE, "all_keys.txt: not found beside data/all.npy; the conversion did not finish", remove("data/all_keys.txt")),
    Case("no class list beside the array", REFERENCE, "data/classes.txt: not found; convert the data again", remove("data/classes.txt")),
    Case("class without rows", REFERENCE, 'no rows of 1 class: "tacos"', npy(lambda a: a[a[:, -1] < 4])),
    # Training.
    Case("no data folder", changed(TRAIN, data_dir="none"), "none: no such folder; give the folder of the converted data"),
    Case("references of another class list", TRAIN, "data/ref.npy: 4 classes in an array of shape (4, 7, 13), expected 5",
         npy(lambda a: a[:4], "data/ref.npy")),
    Case("references of another number", [*TRAIN, "--num_ref=6"], "data/ref.npy: 7 references per class in an array of shape (5, 7, 13), expected 6"),
    Case("references of another width", [*TRAIN, "--img_dim=12"], "data/ref.npy: 13 numbers per feature"),
    Case("infinite reference", TRAIN, "data/ref.npy: value inf at [1, 2, 3], expected finite", npy(put(np.inf, (1, 2, 3)), "data/ref.npy")),
    Case("reference below -1", TRAIN, "data/ref.npy: value -2.0 at [1, 2, 3]; --embed_norm=log", npy(put(-2, (1, 2, 3)), "data/ref.npy")),
    Case("feature at -1", TRAIN, "data/train.npy: row 7 has -1.0 in column 4; --embed_norm=log takes log(1 + x), which needs every feature "
         "above -1: train with --embed_norm=l2_norm", npy(put(-1, (7, 4)), "data/train.npy")),
    Case("label in an array", TRAIN, "row 3 has 0.5 as its verification label", npy(put(0.5, (3, 14)), "data/train.npy")),
    Case("val.npy without rows", TRAIN, "data/val.npy: has no rows", npy(lambda a: a[:0], "data/val.npy")),
    Case("verified rows of one kind", TRAIN, "none of the 89 verified rows to train on is labelled 0 (mislabeled)",
         npy(put(1, (slice(None), 14)), "data/train.npy")),
    Case("automatic threshold of one kind", [*TRAIN, "--val_sim_thres=auto"], "data/val.npy: all its rows are labelled 1",
         npy(put(1, (slice(None), 14)), "data/val.npy")),
    Case("empty class in training", TRAIN, "1 class without rows in all.npy or without references: tacos", npy(put(0, 4), "data/ref.npy")),
    Case("threshold is a word", [*TRAIN, "--val_sim_thres=high"], '--val_sim_thres=high: expected a number, e.g. 0.1, or "auto"'),
    Case("means without rows", [*TRAIN, "--class_embedding=rows", "--batch_size_unsup=0"], "which --batch_size_unsup=0 leaves out"),
    Case("infinite flag", [*TRAIN, "--neg_weight=inf"], "--neg_weight=inf: expected a finite number"),
    Case("one class and a margin", [*TRAIN, "--score=margin"], "compare classes, and there is one only",
         {"classes.txt": one_class}),
    Case("only held-out rows in val.npy", [*TRAIN, "--heldout_class_list=held.tsv"], "data/val.npy: no row is of a class that is kept",
         {"held.tsv": "ramen\t0\n", "rows": keep_rows("val", lambda a: a[:, -2] == 1)}),
    Case("resumed where it ended without a validation", [*TRAIN_ON, "--n_step=60"], "is at step 60 already, and was never validated",
         {name: edit_json(f"run/step-{s:08d}/state.json", best=None)[f"run/step-{s:08d}/state.json"] for s, name in ((60, "a"), (40, "b"))}),
    Case("batch that does not divide", [*TRAIN, "--strategy=mirrored", "--logical_cpus=3"],
         "--batch_size_sup=32 does not divide by the 3 replicas; give a multiple of 3"),
    Case("no TF_CONFIG", [*TRAIN, "--strategy=multi_worker"], "TF_CONFIG: expected {"),
    Case("changed setting", changed(TRAIN, checkpoint_dir="run", momentum=0.5), "the run there has"),
    Case("every checkpoint damaged", TRAIN_ON, "none of its checkpoints can be read; move it away to start anew",
         {"run": damage_checkpoints}),
    Case("loss is not finite", [*TRAIN, "--embed_norm=no_norm", "--learning_rate=1e6", "--weight_decay=1e3", "--n_step=50", "--val_interval=50"],
         "is not finite; the likely cause is that features are very large"),
    Case("checkpoint folder is a file", changed(TRAIN, checkpoint_dir="classes.txt/run"), "classes.txt/run: cannot create this folder"),
    # Scoring.
    Case("no run", changed(INFER, checkpoint_dir="none"), "none: no such folder, expected the --checkpoint_dir of a training"),
    Case("folder without a run", changed(INFER, checkpoint_dir="out"), "out: has no run.json"),
    Case("damaged run.json", INFER, "run/run.json: is damaged", {"run/run.json": "{"}),
    Case("run.json is a list", INFER, "run/run.json: it is [] and no JSON object, expected a run's description", {"run/run.json": "[]"}),
    Case("run.json is a folder", INFER, "run/run.json: is a folder, expected a run's description",
         {"run/run.json": lambda folder: ((folder / "run/run.json").unlink(), (folder / "run/run.json").mkdir())}),
    Case("run.json without a shape", INFER, "run/run.json: shape has no num_class, expected a run's description", edit_json("run/run.json", shape={"img_dim": -1})),
    Case("run.json of an unknown score", INFER, "run/run.json: score is 'size', which it cannot be", edit_json("run/run.json", settings={"score": "size"})),
    Case("img_dim contradicts", [*INFER, "--img_dim=12"], "--img_dim=12, but run was trained with img_dim=13"),
    Case("embed_norm contradicts", [*INFER, "--embed_norm=l2norm"], "--embed_norm=l2_norm, but run was trained with embed_norm=log"),
    Case("no checkpoint yet", INFER, "run: has no checkpoint yet", {name: remove(name)[name] for name in [f"run/step-{s:08d}" for s in (20, 40, 60)]}),
    Case("no such step", [*INFER, "--checkpoint=33"], 'has no checkpoint of step "33", only of 20, 40, 60'),
    Case("no best yet", INFER, "run/best.json: not found, no validation has finished", remove("run/best.json")),
    Case("truncated checkpoint", INFER, "cannot be read as the weights of this model", {"run": damage_checkpoints}),
    Case("checkpoint of another shape", INFER, "it is damaged or of another shape", {"run": swap_weights}),
    Case("weights not finite", INFER, "holds weights that are not finite", {"run": poison_weights}),
    Case("means of other classes", INFER, "class_embeddings.npy: found (4, 128), expected means of rows (5, 128)", by_rows(lambda a: a[:4])),
    Case("means not finite", INFER, "class_embeddings.npy: found numbers that are not finite", by_rows(lambda a: a * np.nan)),
    Case("references that means replace", [*INFER, "--data_dir=data"], "data: its ref.npy is not that of run, a run that embeds classes by their rows",
         {**by_rows(lambda a: a), **npy(lambda a: a * 2, "data/ref.npy")}),
    Case("means of rows that were altered", [*INFER, "--checkpoint=60"], "class_embeddings.npy: is damaged (checksum",
         {**by_rows(lambda a: a), **edit_json("run/step-00000060/state.json", class_embeddings="checksum 0"), "rows.tsv": GOOD}),
    Case("state of another step", [*INFER, "--checkpoint=60"], "is not the state of step 60", edit_json("run/step-00000060/state.json", step=5)),
    Case("no threshold yet", [*INFER, "--checkpoint=60", "--val_sim_thres=auto"], "no validation chose a threshold yet",
         {**edit_json("run/step-00000060/state.json", history=[]), "rows.tsv": GOOD}),
    Case("feature below -1 for log", INFER, "rows.tsv:2: value 13 of the feature is -1.5; --embed_norm=log",
         {"rows.tsv": GOOD + f"k\tramen\t{F[:-3]}-1.5\n"}),
    Case("width of the run", INFER, "a feature of 12 values, expected 13 (img_dim of run)", {"rows.tsv": f"k\tramen\t{F[4:]}\n"}),
    Case("val array to score", changed(INFER, image_feature_list="data/val.npy"), "data/val.npy: 15 columns, expected 13 + 1"),
    Case("output is a folder", changed(INFER, output_file="out"), "out: is a folder, expected the name of a file", {"rows.tsv": GOOD}),
    Case("held-out list without val", [*INFER, "--heldout_class_list=held.tsv"], "--heldout_class_list goes with verified rows"),
    Case("list with val", [*INFER, "--mode=val"], "--mode=val scores val.npy of data_dir, not an --image_feature_list"),
    Case("no rows to score", [*INFER, "--num_samples=0"], "--num_samples=0 scores nothing"),
    Case("output over the input", changed(INFER, output_file="rows.tsv"), "output_file=rows.tsv is the same file as image_feature_list=rows.tsv, which it would replace"),
    Case("array of other classes", changed(INFER, image_feature_list="data/all.npy"), 'run/classes.txt:1: class 0 is "apple pie", but "x" in data/classes.txt',
         {"data/classes.txt": "x\nramen\nsushi\nwaffles\ntacos\n"}),
    Case("table as npy", changed(INFER, output_file="x.npy", output_format="tsv"), "x.npy can hold one number per row only"),
    Case("threshold of another score", [*INFER, "--score=margin", "--val_sim_thres=auto"], "keeps a threshold for the cosine, not for --score=margin"),
    # What uses scores.
    Case("no scores", EXPORT, "s.txt: cannot read: No such file or directory; expected the scores"),
    Case("scores with two columns", EXPORT, "s.txt:1: 2 columns, expected 1 or 9", {"s.txt": "1\t2\n"}),
    Case("score is a word", EXPORT, 's.txt:2: "x", expected a score', {"s.txt": "1\nx\n"}),
    Case("one name for two outputs", [*EXPORT, "--list_file=out/w.npy"], "--list_file=out/w.npy is the same file as --output_file=out/w.npy",
         {"s.txt": "k\tramen\t1\t1\t1\tcorrect\tramen\t1\n"}),
    Case("nothing to write", without(EXPORT, "output_file"), "nothing to write: give --output_file", {"s.txt": "1\n"}),
    Case("list of plain scores", [*EXPORT, "--list_file=out/l.tsv"], "has scores only, the list needs classes", {"s.txt": "1\n"}),
    Case("not parquet", changed(EXPORT, score_file="s.parquet"), "s.parquet: is not a parquet file", {"s.parquet": "x" * 100}),
    Case("other parquet", changed(EXPORT, score_file="s.parquet"), "s.parquet: columns a, expected key, class",
         {"s.parquet": lambda folder: parquet.write_table(pyarrow.table({"a": [1]}), folder / "s.parquet")}),
    Case("scores of other rows", DRAW, "s.txt: 2 scores for 1 rows of rows.tsv", {"s.txt": "1\n2\n", "rows.tsv": GOOD}),
    Case("picture over an image", changed(DRAW, image_dir="out", output_file="out/pred.txt"), "is a file of --image_dir", {"s.txt": "1\n", "rows.tsv": GOOD}),
    Case("scores over a checkpoint", changed(INFER, output_file="run/step-00000060/state.json"), "is the same file as run file", {"rows.tsv": GOOD}),
    Case("class to draw", [*DRAW, "--classes=soup"], 'no row of rows.tsv is of class "soup"', {"s.txt": "1\n", "rows.tsv": GOOD}),
    Case("one name for two files", [*DRAW, "--second_score_file=s.txt", "--score_names=F"], "expected a name for each of the 2 score files"),
    Case("comparing nothing", [*COMPARE, "--only_cleannet"], "--only_cleannet without --checkpoint_dirs compares nothing"),
    Case("comparing on one kind", COMPARE, "all verified rows are of one kind", npy(put(1, (slice(None), 14)), "data/val.npy")),
    Case("keys of another number", COMPARE, "all_keys.txt: 1 keys for 211 rows of data/all.npy", {"data/all_keys.txt": "k\n"}),
    Case("summary of no comparison", ["util/summarize_comparisons.py", "--comparisons=none.json", "--reference=x"], "none.json: cannot read: No such"),
    Case("summary of something else", SUMMARIZE, "c.json: it has no methods, expected a comparison of all classes",
         {"c.json": "{}"}),
    Case("summary without the reference", SUMMARIZE, "not in every comparison",
         {"c.json": json.dumps({"methods": {"m": METHOD}})}),
    Case("shares of classes", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=out", "--shares=2"], "--shares=2: expected numbers from 0 to 1"),
    Case("training that fails", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=new", "--shares=0.4", "--seeds=1", "--train_flags=--momentum=x"],
         "training with 0.4 of the classes, seed 1: train.py: error:"),
    # Images.
    Case("no images", [*IMAGES, "--image_dir=out"], "out: no images in folders below it"),
    Case("no image folder", [*IMAGES, "--image_dir=none"], "none: no such folder, expected the images"),
    Case("crop beyond the image", [*IMAGES, "--crop=300"], "--crop=300 is larger than --resize=256"),
    Case("output is a device", changed(EXPORT, output_file="/dev/null"), "/dev/null: is a device or a pipe, which would be replaced", {"s.txt": "1\n"}),
    Case("NUL byte in a verified row", HELDOUT, "train.tsv:1: a NUL byte", {"train.tsv": f"k\0\tramen\t1\t{F}\n", "held.tsv": "ramen\t0\n"}),
    Case("two outputs", [*IMAGES, "--output_dir=out"], "give --output_file for text, or --output_dir"),
    Case("array without a split", changed(without(IMAGES, "output_file"), output_dir="out"), "--output_dir needs --class_list and --split"),
    Case("columns of no list", [*IMAGES, "--list_columns=key,class,label"], "--list_columns describes an --image_list"),
    Case("layer of no model", [*IMAGES, "--layer=pool"], "--layer names a layer of a --keras_model"),
    Case("empty image list", [*IMAGES, "--image_list=l.tsv"], "l.tsv: lists no images", {"l.tsv": "\n\n"}),
    Case("empty key of an image", [*IMAGES, "--image_list=l.tsv"], "l.tsv:1: an empty key", {"l.tsv": "\tramen\n"}),
    Case("name with a tab", changed(IMAGES, image_dir="odd"), "a name that a tab-separated file cannot hold", {"odd": odd_name}),
    Case("crop of another size", [*IMAGES, "--image_list=l.tsv", "--keras_model=m.keras"], "takes images of 8 x 8 pixels, not of --crop=224",
         {"l.tsv": "a\tramen\n", "m.keras": small_network}),
    Case("columns without a key", [*IMAGES, "--list_columns=class"], "--list_columns=class: expected key and class"),
    Case("split without labels", changed(without(IMAGES, "output_file"), output_dir="out", class_list="classes.txt", split="train"),
         "--split=train needs verification labels"),
    Case("image list with a column too many", [*IMAGES, "--image_list=l.tsv"], "l.tsv:1: 3 tab-separated columns, expected 2 (key, class)", {"l.tsv": "a\tb\tramen\n"}),
    Case("label of an image", [*IMAGES, "--image_list=l.tsv", "--list_columns=key,class,label"], 'l.tsv:1: verification label "7"', {"l.tsv": "a\tramen\t7\n"}),
    Case("image of an unknown class", changed(without(IMAGES, "output_file"), output_dir="out", class_list="classes.txt", split="all", image_list="l.tsv"),
         'l.tsv: class "ramem" is not in classes.txt; the closest is "ramen"', {"l.tsv": "a\tramem\n"}),
    Case("unknown application", [*IMAGES, "--image_list=l.tsv", "--model=ResNet5"], "--model=ResNet5: not in keras.applications; the closest is",
         {"l.tsv": "a\tramen\n"}),
    Case("no weights file", [*IMAGES, "--image_list=l.tsv", "--model=MobileNetV2", "--weights=none.h5"], "--model=MobileNetV2 --weights=none.h5",
         {"l.tsv": "a\tramen\n"}),
    Case("old model format", [*IMAGES, "--image_list=l.tsv", "--keras_model=m.h5"], "m.h5: expected a .keras file", {"l.tsv": "a\tramen\n"}),
    Case("damaged model", [*IMAGES, "--image_list=l.tsv", "--keras_model=m.keras"], "m.keras: cannot load this model",
         {"l.tsv": "a\tramen\n", "m.keras": "x"}),
    Case("unknown layer", [*SMALL_IMAGES, "--image_list=l.tsv", "--keras_model=m.keras", "--layer=pol"], 'm.keras: has no layer pol; the closest is "pool"',
         {"l.tsv": "a\tramen\n", "m.keras": small_network}),
    Case("layer of another shape", [*SMALL_IMAGES, "--image_list=l.tsv", "--keras_model=m.keras", "--layer=rows"], "the output of the layer has shape",
         {"l.tsv": "a\tramen\n", "m.keras": small_network}),
    Case("bad image", changed(IMAGES, image_list="l.tsv", keras_model="m.keras", layer="pool", crop=8, resize=8, on_bad_row="error", output_file="new.tsv"),
         "l.tsv:1: a: No such file or directory (--on_bad_row=skip", {"l.tsv": "a\tramen\n", "m.keras": small_network}),
    Case("no good image", changed(IMAGES, image_list="l.tsv", keras_model="m.keras", layer="pool", crop=8, resize=8, output_file="new.tsv"),
         "out: none of the 1 images can be read; the first: No such file", {"l.tsv": "a\tramen\n", "m.keras": small_network}),
    Case("model that gives nan", changed(IMAGES, image_list="l.tsv", keras_model="m.keras", layer="log", crop=8, resize=8, output_file="new.tsv"),
         "the model gives features that are not finite", {"l.tsv": "a.png\tramen\n", "out/a.png": black_image, "m.keras": small_network}),
    Case("too many digits", ["util/make_digits.py", "--output_dir=out", "--num_train=1700"], "need more than the 1797 digits"),
    # Less likely ones.
    Case("table for commas", changed(INFER, output_file="x.csv", output_format="tsv"), "x.csv would get tabs, not commas"),
    Case("a key in two splits", TRAIN, "data/val.npy: 1 row with a key that data/train.npy has too", {"data/val_keys.txt": shared_key}),
    Case("two methods of one name", SUMMARIZE, "c.json: 2 methods, 1 of them by name",
         {"c.json": json.dumps({"methods": {f"{k}-nearest-neighbour vote": METHOD for k in (5, 10)}})}),
    Case("no comparisons", ["util/summarize_comparisons.py", "--comparisons=", "--reference=x"], "--comparisons: names no file"),
    Case("a picture too large", [*DRAW, "--num_examples=50", "--image_size=512", "--max_classes=130"], "a picture of 52650 x 72060 pixels",
         {"s.txt": "1\n" * 130, "rows.tsv": "".join(f"k\tclass {i}\t1\n" for i in range(130))}),
    Case("scores of other keys", changed(DRAW, score_file="s.tsv"), 's.tsv:1: the score of "k", but row 1 of rows.tsv is "k0"',
         {"s.tsv": SCORED.format("cosine"), "rows.tsv": GOOD}),
    Case("model of vectors", [*SMALL_IMAGES, "--image_list=l.tsv", "--keras_model=m.keras"], "m.keras: takes inputs of shape (None, 8)",
         {"l.tsv": "a\tramen\n", "m.keras": vector_network}),
    Case("all images labelled -1", changed(without(SMALL_IMAGES, "output_file"), output_dir="new", class_list="classes.txt", split="train", image_list="l.tsv",
         list_columns="key,class,label", keras_model="m.keras", layer="pool"), "new/train.npy: no rows are left, all usable images are labelled -1",
         {"l.tsv": "a.png\tramen\t-1\n", "out/a.png": black_image, "m.keras": small_network}),
    Case("flags with an open quote", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=new", '--train_flags="'], "cannot be split into flags"),
    Case("too few rows to cross-validate", COMPARE, "all.npy has too few rows or classes to cross-validate", {"rows": keep_rows("all", lambda a: a[:, -1] == 1)}),
    Case("run of another width", COMPARE_RUN, "features of 12 numbers, but run was trained with 13", {"rows": narrow}),
    Case("run that takes logarithms", COMPARE_RUN, "has features of -1 or less, which run, trained with --embed_norm=log, cannot score",
         npy(put(-2, (3, 4)), "data/val.npy")),
    Case("a device for a list", changed(CONVERT, class_list="/dev/null"), "/dev/null: is a pipe, a socket or a device, expected the class list"),
    Case("NUL byte in a path", [*without(CONVERT, "class_list"), "--flagfile=f.flags"], "a NUL byte in a flag; expected text", {"f.flags": "--class_list=a\0b\n"}),
    Case("nothing to report", [*changed(without(INFER, "image_feature_list"), mode="val", data_dir="data", output_file="new.txt"), "--report_dir=new"],
         "new: none of the 67 rows has a score", npy(lambda a: a * 0, "data/ref.npy")),
    Case("references altered", INFER, "run/ref.npy: is not the file that the run was trained with", npy(lambda a: a * 2, "run/ref.npy")),
    Case("verdicts by two scores", changed(EXPORT, score_file="s.tsv"), "s.tsv: its verdicts are by cosine and margin",
         {"s.tsv": SCORED.format("cosine") + SCORED.format("margin")}),
    Case("unknown verdict", changed(EXPORT, score_file="s.tsv"), 's.tsv:1: verdict "maybe", expected correct or mislabeled or unknown',
         {"s.tsv": SCORED.format("cosine").replace("correct", "maybe")}),
    Case("scores not UTF-8", EXPORT, "s.txt: cannot read the scores", {"s.txt": b"\xff\n"}),
    Case("huge run.json", INFER, "run/run.json: is larger than 64 MB", {"run/run.json": b" " * ((64 << 20) + 1)}),
    Case("output without a name", changed(INFER, output_file=""), "--output_file: is empty, expected a path", {"rows.tsv": GOOD}),
    Case("margin of one class", [*INFER, "--score=margin"], "--score=margin compares classes, and run has only one with references",
         {**edit_json("run/run.json", settings={"score": "cosine", "contrast_temperature": 0.1}), "ref": npy(put(0, slice(1, None)), "run/ref.npy")["run/ref.npy"]}),
    Case("more bad rows than good ones", [*CONVERT, "--on_bad_row=skip"], "2 of 3 rows cannot be used, which is too many to skip", {"rows.tsv": "x\ny\n" + GOOD}),
    Case("a model that tells nothing apart", TRAIN, "all 4 validation rows have the score", {"rows": same_rows}),
    Case("a rate that grows", [*TRAIN, "--lr_decay=1e30", "--lr_update=1", "--n_step=9"], "--lr_decay=1e+30 takes the learning rate beyond a float32"),
    Case("class list with commas", CONVERT, "classes.txt:1: \"a,b,c\", with commas", {"classes.txt": "a,b,c\n"}),
    Case("carriage return in a class name", CONVERT, "classes.txt:1: a carriage return or byte-order mark in a class name", {"classes.txt": "a\rb\nc\n"}),
    # Training a classifier.
    Case("weights without scores", [*CLASSIFY, "--weights=soft"], "--weights=soft and --score_file=None: soft and hard weights need scores"),
    Case("scores without weights", [*CLASSIFY, "--score_file=s.tsv"], "--weights=none and --score_file=s.tsv: soft and hard"),
    Case("two kinds of weights", [*WEIGHTED, "--weight_file=w.npy"], "--score_file and --weight_file both weight the rows"),
    Case("a list and no relabelling", [*CLASSIFY, "--list_file=l.tsv"], "--relabel needs a --list_file, and a --list_file is for --relabel"),
    Case("folds for nothing", [*CLASSIFY, "--folds=2"], "--folds=2: folds and a file for what they give"),
    Case("one fold", changed(FOLDS, folds=1), "--folds=1: with one fold nothing is left to train on"),
    Case("no classifier to write", without(CLASSIFY, "output_file"), "nothing to write: give --output_file for the classifier"),
    Case("classifier of another suffix", changed(CLASSIFY, output_file="out/c.h5"), "--output_file=out/c.h5: is a Keras model"),
    Case("probabilities of another suffix", [*FOLDS, "--probabilities_file=p.txt"], "--probabilities_file=p.txt: is an array"),
    Case("table of another suffix", changed(FOLDS, table_file="t.npy"), "t.npy can hold one number per row only"),
    Case("a report of no test", TESTED, "--test_data needs a --report_dir"),
    Case("test rows of one kind", [*TESTED, "--test_data=data/val.npy"], "data/val.npy: none of its rows is verified as correct", {"v": all_mislabeled}),
    Case("test rows of another width", [*TESTED, "--test_data=data/val.npy"], "data/val.npy: 13 columns, expected 13 + 1", npy(lambda a: a[:, 2:], "data/val.npy")),
    Case("test rows of other classes", [*TESTED, "--test_data=o/val.npy"], 'class 0 is "apple pie", but "x" in o/classes.txt',
         {"o": lambda folder: (shutil.copytree(folder / "data", folder / "o"), (folder / "o/classes.txt").write_text("x\n"))}),
    Case("test rows of another scale", changed([*TESTED, "--test_data=data/val.npy", "--normalise=standardise"], output_file="new/c.keras"),
         "testing: probabilities that are not finite; check the scale", npy(put(3.4e38, (slice(None), slice(13))), "data/val.npy")),
    Case("a classifier that diverges", changed(CLASSIFY, output_file="new/c.keras", learning_rate=1e30, n_epoch=9), "the loss is not finite; give a lower --learning_rate"),
    Case("feature at -1 for log", CLASSIFY, "data/all.npy: row 3 has -1.5, and --normalise=log takes log(1 + x)", npy(put(-1.5, (3, 4)))),
    Case("a row without a score", WEIGHTED, 's.tsv: has no score of "img/3_', scores_of_all(lambda key, name: ("other", name))),
    Case("a score of another class", WEIGHTED, 's.tsv:1: class "soup" of "img/3_', scores_of_all(lambda key, name: (key, "soup"))),
    Case("scores of another number", WEIGHTED, "s.tsv: 2 scores for 211 rows of data/all.npy", {"s.tsv": "1\n2\n"}),
    Case("hard weights of plain scores", [*CLASSIFY, "--weights=hard", "--score_file=s.tsv"], "s.tsv: has no verdicts, which --weights=hard needs",
         {"s.tsv": "1\n" * 211}),
    Case("a key twice", WEIGHTED, "data/all.npy: has the key", {"keys": repeated_key, "s.tsv": SCORED.format("cosine")}),
    Case("weights of another number", [*CLASSIFY, "--weight_file=w.txt"], "w.txt: 2 weights for 211 rows of data/all.npy", {"w.txt": "1\n1\n"}),
    Case("weight is a word", [*CLASSIFY, "--weight_file=w.txt"], 'w.txt:2: "x", expected a weight', {"w.txt": "1\nx\n"}),
    Case("negative weight", [*CLASSIFY, "--weight_file=w.txt"], "w.txt: weight -1.0 of row 5, expected numbers from 0 on",
         {"w.txt": "1\n" * 5 + "-1\n" * 206}),
    Case("weights not UTF-8", [*CLASSIFY, "--weight_file=w.txt"], "w.txt: cannot read the weights", {"w.txt": b"\xff\n"}),
    Case("no weight above 0", [*CLASSIFY, "--weight_file=w.txt"], "data/all.npy: rows of 0 classes have a weight above 0", {"w.txt": "0\n" * 211}),
    Case("folds of few rows", [*FOLDS, "--weight_file=w.npy"], "leaves no row of weight above 0 to train on; give fewer folds", {"w.npy": rows_of_one_fold}),
    Case("a list without a header", RELABELLED, 'l.tsv:1: no column "key", expected a header with key, given class', {"l.tsv": "k\tramen\tkeep\tx\n"}),
    Case("a list with a short line", RELABELLED, "l.tsv:2: 1 column, expected 4 as in the header", {"l.tsv": "key\tgiven class\tsuggested class\taction\nk\n"}),
    Case("unknown action", RELABELLED, 'l.tsv:2: action "drop", expected keep, relabel, recheck',
         {"l.tsv": "key\tgiven class\tsuggested class\taction\nk\tramen\tramen\tdrop\n"}),
    Case("relabelled as an unknown class", RELABELLED, 'l.tsv:2: class "raman" is not in the class list; the closest is "ramen"', relabels("raman")),
    Case("neither features nor images", without(CLASSIFY, "input_npy"), "give --input_npy to train on features, or --image_dir"),
    Case("a network for features", [*CLASSIFY, "--keras_model=m.keras"], "--image_list, --keras_model and --mixed_precision are for images"),
    Case("images without classes", without(CLASSIFY_IMAGES, "class_list"), "--image_dir needs a --class_list"),
    Case("fine-tuning from nowhere", [*CLASSIFY_IMAGES, "--finetune_from=pol"], '--finetune_from=pol: the network has no such layer; the closest is "pool"', TWO_IMAGES),
    Case("an image to train on that is missing", CLASSIFY_IMAGES, "l.tsv:1: a.png: No such file or directory; take it out of the list",
         {**TWO_IMAGES, "out/a.png": lambda folder: None}),
    # Combining scores.
    Case("plain scores to combine", COMBINE, "a.tsv: has scores only, expected a table", {"a.tsv": "1\n"}),
    Case("combined under the name of an array", changed(COMBINE, output_file="c.npy"), "c.npy can hold one number per row only"),
    Case("probability above 1", COMBINE, "a.tsv:1: probability 1.5, expected 0 to 1", {"a.tsv": SCORED.format("cosine").replace("1\tcorrect", "1.5\tcorrect")}),
    Case("tables of other keys", COMBINE, 'b.tsv:1: the key "x" is not in a.tsv', combined(lambda row: ["x", *row[1:]])),
    Case("a row in one table only", COMBINE, 'b.tsv: has the key "', combined(lambda row: None)),
    Case("tables of other classes", COMBINE, 'b.tsv:1: class "soup" of "', combined(lambda row: [row[0], "soup", *row[2:]])),
    Case("no verified rows of both kinds", COMBINE, "data/val.npy: its 67 rows with a score are not of both kinds",
         {**combined(lambda row: row), **npy(put(1, (slice(None), 14)), "data/val.npy")}),
    Case("all verified rows held out", [*COMBINE, "--heldout_class_list=held.tsv"], "data/val.npy: no row of a kept class has a score",
         {**combined(lambda row: row), "held.tsv": "".join(f"{c}\t0\n" for c in CLASSES)}),
    # Flags and folders.
    Case("unknown flag", [*CONVERT, "--bad_flag=1"], "Unknown command line flag 'bad_flag'"),
    Case("missing flag", without(CONVERT, "class_list"), "--class_list", {}),
    Case("value out of range", [*CONVERT, "--num_ref=0"], "num_ref"),
    Case("number with an underscore", [*CONVERT, "--num_workers=1_0"], "--num_workers=1_0: expected a whole number of at most 18 digits"),
    Case("flags not UTF-8", [*CONVERT, "--flagfile=bad.flags"], "--flagfile: bytes that are not UTF-8", {"bad.flags": b"--split=\xff\n"}),
    Case("a word that is no flag", [*CONVERT, "all.tsv"], '"all.tsv" is not a flag'),
    Case("num_ref with another split", [*CONVERT, "--num_ref=5"], "--num_ref=5 goes with --split=ref only"),
    Case("output folder below a file", changed(CONVERT, output_dir="classes.txt/out"), "classes.txt/out: cannot create this folder", {"rows.tsv": GOOD}),
    Case("no permission to write", changed(EXPORT, output_file="/sys/w.npy"), "/sys/w.npy: cannot write here", {"s.txt": "1\n"}),
]


def tree(folder):
    """{path in a folder: hash of the file, or None of a folder}."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def run_cases(cases, sample_dir, trained_dir, base):
    """Runs cases, two at a time. Returns {name: (finished process, tree of its folder before, after)} and coverage.CoverageData."""
    found, data = {}, coverage.CoverageData(basename=str(base / "coverage.all"))

    def run(number, case):
        folder = base / str(number)
        shutil.copytree(sample_dir, folder)
        shutil.copytree(trained_dir / "run", folder / "run")
        (folder / "out").mkdir()
        for name in ("all.npy", "all_keys.txt", "pred.txt", "w.npy"):
            (folder / "out" / name).write_text("older")
        (folder / "out" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        for name, content in case.files.items():
            if callable(content):
                content(folder)
            else:
                (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        before = tree(folder)
        done = run_command(*case.command, cwd=folder, coverage_file=base / f"coverage.{number}")
        found[case.name] = done, before, tree(folder)
        shutil.rmtree(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(len(cases)), cases))
    for path in base.glob("coverage.[0-9]*"):
        part = coverage.CoverageData(basename=str(path))
        part.read()
        data.update(part)
    return found, data


@pytest.fixture(scope="module")
def results(sample_dir, trained_dir, tmp_path_factory):
    return run_cases(CASES, sample_dir, trained_dir, tmp_path_factory.mktemp("cases"))


def is_lock(name):
    """Whether a file only says which process wrote an output last."""
    return os.path.basename(name).startswith(".") and name.endswith(".lock")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(results, case):
    done, before, after = results[0][case.name]
    errors = [line for line in done.stderr.splitlines() if "warning: " not in line]
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert len(errors) == 1, done.stderr
    assert case.message in errors[0]
    before, after = ({name: file for name, file in found.items() if not is_lock(name)} for found in (before, after))
    assert {name: after.get(name) for name in before} == before, "older files were changed"
    new = {name for name in after.keys() - before.keys() if not name.startswith(("new", "log"))}
    assert not new, f"left behind: {new}"


def test_names_of_cases_differ():
    assert len({case.name for case in CASES}) == len(CASES)


def raising_lines():
    """(path, line, code) of every `raise UserError` in the commands and in what they share."""
    for pattern in ("*.py", "util/*.py", "util/lib/*.py"):
        paths = list(ROOT.glob(pattern))
        assert paths, f"no files are {pattern}"
        yield from (found for path in paths for found in raising_lines_of(path))


def raising_lines_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") == "UserError":
            yield path, node.lineno, ast.unparse(node)


# Raised in situations that have tests of their own (a full disk, a worker that dies, a file that grows, two writers, Beam), or that
# no test makes: 16 million classes, files that vanish or shrink between two looks at them, and what data_loader.py has refused before.
UNREACHED = (
    "what was there is as before, make room", "another process is writing it", "was cut off while it was read", "cannot save this checkpoint",
    "another worker stopped", "apache_beam is not installed", "no file matches", "wrote no scores", "shards of an earlier run",
    "expected at most", "cannot read the checkpoint folder",
    "cannot read: {reason(error)}; make it with", "no row of a kept class with references",
    "workers were started with different", "has more rows than a moment ago",
)


def test_every_user_error_is_reached(results):
    missed = [
        f"{path.name}:{line}: {text}" for path, line, text in raising_lines() if line not in (results[1].lines(str(path)) or [])
    ]
    unknown = [text for text in missed if not any(known in text for known in UNREACHED)]
    assert not unknown, "\n".join(unknown)
    assert not [known for known in UNREACHED if not any(known in text for text in missed)], "reached, or not there any more"
