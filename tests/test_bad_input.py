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

from util.lib import metrics, score_table

F = ",".join(["0.5"] * 13)  # a good feature
GOOD = f"k0\tramen\t{F}\n"
CONVERT = ["util/convert_data.py", "--split=all", "--class_list=classes.txt", "--data_path=rows.tsv", "--output_dir=out"]
REFERENCE = ["util/find_reference.py", "--class_list=classes.txt", "--input_npy=data/all.npy", "--output_dir=out", "--num_ref=7"]
TRAIN = ["train.py", "--data_dir=data", "--checkpoint_dir=new", "--log_dir=log", "--n_step=2", "--val_interval=2"]
INFER = ["inference.py", "--checkpoint_dir=run", "--image_feature_list=rows.tsv", "--output_file=out/pred.txt"]
VAL = ["inference.py", "--mode=val", "--checkpoint_dir=run", "--data_dir=data", "--output_file=out/pred.txt"]
HELDOUT = ["util/heldout_train_data.py", "--heldout_class_list=held.tsv", "--input_file=train.tsv", "--output_file=out/train.tsv"]
DRAW = ["util/draw_examples.py", "--score_file=s.txt", "--image_feature_list=rows.tsv", "--output_file=out/x.png"]
EXPORT = ["util/export_weights.py", "--score_file=s.txt", "--output_file=out/w.npy"]
PROMISE = ["util/export_weights.py", "--score_file=s.tsv", "--list_file=out/l.tsv", "--relabel_precision=0.9"]
CHOOSE = ["util/choose_rows.py", "--for=train", "--image_feature_list=data/all.npy", "--output_file=out/list.tsv"]
CHECK = ["util/check_data.py", "--data_dir=data", "--output_file=out/odd.tsv"]
COMPARE = ["util/compare_methods.py", "--data_dir=data", "--output_dir=out"]
ALTERNATE = ["util/alternate.py", "--image_dir=out", "--data_dir=data", "--checkpoint_dir=run", "--output_dir=new"]

CLASSIFY = ["util/train_classifier.py", "--input_npy=data/all.npy", "--output_file=out/c.keras", "--n_epoch=1"]
FOLDS = ["util/train_classifier.py", "--input_npy=data/all.npy", "--folds=2", "--table_file=out/t.tsv", "--n_epoch=1"]
WEIGHTED = [*CLASSIFY, "--weights=soft", "--score_file=s.tsv"]
RELABELLED = [*CLASSIFY, "--relabel", "--list_file=l.tsv"]
TESTED = [*CLASSIFY, "--report_dir=new"]


VERIFY = ["util/verify_images.py", "--list=l.tsv", "--image_dir=out", "--output=out/v.tsv"]
REVIEW = ["util/verify_images.py", "--review=s.tsv", "--image_dir=out", "--output=out/v.tsv"]
IMPORT = ["util/verify_images.py", "--import=x.csv", "--output=new.tsv"]
WRITE = ["util/verify_images.py", "--write=new.tsv", "--output=v.tsv"]
JOIN = ["util/join_labels.py", "--decisions=v.tsv", "--features=data/all.npy", "--split=train", "--output_dir=new"]


class Case(NamedTuple):
    """files: {name: text, bytes, or a function of the folder}. message: what stderr must say."""

    name: str
    command: list
    message: str
    files: dict = {}


def text_case(name, row, message, command=CONVERT):
    """A bad second row in a file of rows."""
    return Case(name, command, message, {"rows.tsv": GOOD.encode() + (row if isinstance(row, bytes) else row.encode()) + b"\n"})


def npy(function, name="data/all.npy", tied=False):
    """{name: a change of that array}: `function` takes a copy and returns what is to be saved. tied: its checksums stay."""
    def change(folder):
        np.save(folder / name, function(np.load(folder / name)))
        if not tied:
            forget_checksums(folder / name)

    return {name: change}


def forget_checksums(path):
    """Makes an array one of a folder from before there were checksums."""
    path.with_name(f"{path.stem}_checksums.json").unlink(missing_ok=True)


def keep_rows(split, choose):
    """A function of the folder that leaves out rows of an array, and their keys. choose: the array -> bool [N]."""
    def change(folder):
        array, keys = np.load(folder / f"data/{split}.npy"), folder / f"data/{split}_keys.txt"
        kept = choose(array)
        np.save(folder / f"data/{split}.npy", array[kept])
        forget_checksums(folder / f"data/{split}.npy")
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
        run_folder.save(str(folder / "run"), step, net, velocity, {"history": state["history"], "best": state["best"]}, {})


def poison_weights(folder):
    import tensorflow as tf

    import model
    from util.lib import run_folder

    net = model.CleanNet(7, 13)
    net.query_encoder.encode_1.bias.assign(np.full(256, np.nan, np.float32))
    for step in run_folder.steps(folder / "run"):
        state = run_folder.load_state(folder / "run", step)
        velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
        run_folder.save(str(folder / "run"), step, net, velocity, {"history": state["history"], "best": state["best"]}, {})


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
    npy(lambda a: a[:1], "data/ref.npy")["data/ref.npy"](folder)
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
    forget_checksums(folder / "data/val.npy")


def narrow(folder):
    """Features of 12 numbers."""
    for split in ("train", "val", "all"):
        npy(lambda a: a[:, 1:], f"data/{split}.npy")[f"data/{split}.npy"](folder)


def same_rows(folder):
    """Four validation rows, of one feature and one class, half of them labelled as correct."""
    keep_rows("val", lambda a: np.arange(len(a)) < 4)(folder)
    path = folder / "data/val.npy"
    np.save(path, np.concatenate([np.repeat(np.load(path)[:1, :-1], 4, axis=0), np.float32([[0], [1], [0], [1]])], axis=1))


def swap_lines(name):
    """{name: a change that swaps the first two lines of a text}."""
    def change(folder):
        first, second, *others = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join([second, first, *others]))

    return {name: change}


def write_parquet(**columns):
    """{name: a function that writes a table of one score, with some columns replaced}."""
    row = {
        "key": "k", "class": "ramen", "cosine": 1.0, "margin": 1.0, "probability": 1.0, "verdict": "correct", "nearest_class": "ramen",
        "nearest_cosine": 1.0, "decided_by": "cosine",
    }
    table = {name: [value] for name, value in {**row, **columns}.items()}
    return {"s.parquet": lambda folder: parquet.write_table(pyarrow.table(table), folder / "s.parquet")}


def network_of(*shapes):
    """{name: a function that writes a model with inputs of these shapes} and the list of an image."""
    def write(folder):
        import keras

        inputs = [keras.Input(shape) for shape in shapes]
        keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(x) for x in inputs]).save(folder / "m.keras")

    return {"l.tsv": "a\tramen\n", "m.keras": write}


def parquet_rows(change=lambda table: table, name="rows.parquet", **columns):
    """{name: a parquet file of three good rows} with some columns replaced, and then changed."""
    def write(folder):
        good = {"key": ["a", "b", "c"], "class": ["ramen"] * 3, "feature": [[0.5] * 13] * 3}
        parquet.write_table(change(pyarrow.table({**good, **columns})), folder / name)

    return {name: write}


def features(array, name="x.npy"):
    """{name: an array of features}; an archive for several."""
    return {name: lambda folder: np.savez(folder / name, **array) if isinstance(array, dict) else np.save(folder / name, array)}


def damaged(name, files):
    """Files, of which one has other bytes in its middle."""
    def change(folder):
        files[name](folder)
        data = bytearray((folder / name).read_bytes())
        data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        (folder / name).write_bytes(data)

    return {**files, name: change}


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
    forget_checksums(folder / "data/all.npy")


def all_mislabeled(folder):
    """A val.npy whose rows are all mislabeled."""
    npy(put(0, (slice(None), 14)), "data/val.npy")["data/val.npy"](folder)


def rows_of_one_fold(folder):
    """Weights of 0 for all rows outside the first of two folds."""
    ids = np.load(folder / "data/all.npy")[:, -1].astype(int)
    np.save(folder / "w.npy", np.float32(metrics.split_evenly(2, ids, seed=1) == 0))


def combined(change, header=False):
    """{file: tables a.tsv and b.tsv of data/val.npy}. change: function of the columns of b.tsv's first row, to other ones or None."""
    def write(folder):
        keys = (folder / "data/val_keys.txt").read_text().splitlines()
        rows = [[key, CLASSES[int(c)], "1", "1", f"{i / 70}", "correct", "ramen", "1", "cosine"]
                for i, (key, c) in enumerate(zip(keys, np.load(folder / "data/val.npy")[:, -2]))]
        for name, table in (("a.tsv", rows), ("b.tsv", [score_table.COLUMNS] * header + [change(rows[0]), *rows[1:]])):
            (folder / name).write_text("".join("\t".join(row) + "\n" for row in table if row))

    return {"tables": write}


COMBINE = ["util/combine_scores.py", "--score_files=a.tsv,b.tsv", "--val_npy=data/val.npy", "--output_file=out/c.tsv"]
ESTIMATE = ["util/estimate_noise.py", "--score_file=b.tsv", "--val_npy=data/val.npy", "--output_file=out/n.tsv"]
CLASSIFY_IMAGES = [
    "util/train_classifier.py", "--image_dir=out", "--image_list=l.tsv", "--class_list=classes.txt", "--keras_model=m.keras", "--layer=pool", "--crop=8",
    "--resize=8", "--output_file=new/c.keras", "--batch_size=2", "--n_epoch=1",
]
TWO_IMAGES = {"l.tsv": "a.png\tramen\nb.png\tsushi\n", "m.keras": small_network, "out/a.png": black_image, "out/b.png": lambda folder: None}
METHOD = {"all": {"chosen": {"average_error_rate": 0.1}, "auroc": 0.5, "average_precision": 0.5}}
SUMMARIZE = ["util/summarize_comparisons.py", "--comparisons=c.json", "--reference=x"]
COMPARE_NONE = [*COMPARE, "--methods=none"]
COMPARE_RUN = [*COMPARE, "--checkpoint_dirs=run", "--only_cleannet"]
SCORED = "k\tramen\t1\t1\t1\tcorrect\tramen\t1\t{}\n"  # a row of a table of scores
SCORES = "k0\tramen\t{0}\t{0}\t{0}\t{1}\tramen\t{0}\tcosine\n"
PIPE = {"pipe": lambda folder: os.mkfifo(folder / "pipe")}
NETWORK = [*SMALL_IMAGES, "--image_list=l.tsv", "--keras_model=m.keras"]
PARQUET = changed(CONVERT, data_path="rows.parquet")
CSV = changed(CONVERT, data_path="rows.csv")
ARRAY = [*without(CONVERT, "data_path"), "--features=x.npy", "--table=t.csv"]
ARCHIVE = changed(ARRAY, features="x.npz")
TABLE = {"t.csv": "key,class\na,ramen\nb,ramen\n"}
ONES = np.ones((2, 13), np.float32)
DECIDED = "k\tramen\t0\tann\t2026-01-02T03:04:05Z\tsushi\n"
DECIDED_CSV = "key,class,label\nk,ramen,0\n"
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
    Case("blank CSV to hold classes out of", changed(HELDOUT, input_file="x.csv", output_file="out/x.csv"), "x.csv:1: is blank, expected the names of the columns",
         {"x.csv": "\n\n", "held.tsv": "ramen\t0\n"}),
    Case("blank text to hold classes out of", changed(HELDOUT, input_file="x.tsv", output_file="out/x.tsv"), "x.tsv: has no rows, expected",
         {"x.tsv": "\n\n", "held.tsv": "ramen\t0\n"}),
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
         "above -1: train with --embed_norm=auto", npy(put(-1, (7, 4)), "data/train.npy")),
    Case("label in an array", TRAIN, "row 3 has 0.5 as its verification label", npy(put(0.5, (3, 14)), "data/train.npy")),
    Case("val.npy without rows", TRAIN, "data/val.npy: has no rows", npy(lambda a: a[:0], "data/val.npy")),
    Case("verified rows of one kind", TRAIN, "none of the 89 verified rows to train on is labelled 0 (mislabeled)",
         npy(put(1, (slice(None), 14)), "data/train.npy")),
    Case("automatic threshold of one kind", [*TRAIN, "--val_sim_thres=auto"], "data/val.npy: all its rows are labelled 1",
         npy(put(1, (slice(None), 14)), "data/val.npy")),
    Case("empty class in training", TRAIN, "1 class without rows in all.npy or without references: tacos", npy(put(0, 4), "data/ref.npy")),
    Case("threshold is a word", [*TRAIN, "--val_sim_thres=high"], '--val_sim_thres=high: expected a number, e.g. 0.1, or "auto"'),
    Case("means without rows", [*TRAIN, "--class_embedding=rows", "--batch_size_unsup=0"], "which --batch_size_unsup=0 leaves out"),
    Case("nothing to learn from", [*TRAIN, "--batch_size_sup=0"], "--batch_size_sup=0 leaves unverified rows and the class contrast to learn from"),
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
    Case("run.json without its held-out classes", INFER, "run/run.json: settings has no heldout_classes",
         edit_json("run/run.json", settings={"class_embedding": "auto", "score": "cosine", "contrast_temperature": 0.1})),
    Case("run.json without its scale", INFER, "run/run.json: shape has no embed_scale",
         edit_json("run/run.json", shape={"num_class": 5, "num_ref": 7, "img_dim": 13, "embed_norm": "scaled_log"})),
    Case("run.json of a scale of 0", INFER, "run/run.json: embed_scale is 0, which it cannot be",
         edit_json("run/run.json", shape={"num_class": 5, "num_ref": 7, "img_dim": 13, "embed_norm": "scaled_log", "embed_scale": 0})),
    Case("run.json of an unknown score", INFER, "run/run.json: score is 'size', which it cannot be", edit_json("run/run.json", settings={"score": "size"})),
    Case("img_dim contradicts", [*INFER, "--img_dim=12"], "--img_dim=12, but run was trained with img_dim=13"),
    Case("embed_norm contradicts", [*INFER, "--embed_norm=l2norm"], "--embed_norm=l2_norm, but run was trained with embed_norm=log"),
    Case("no checkpoint yet", INFER, "run: has no checkpoint yet", {name: remove(name)[name] for name in [f"run/step-{s:08d}" for s in (20, 40, 60)]}),
    Case("no such step", [*INFER, "--checkpoint=33"], 'has no checkpoint of step "33", only of 20, 40, 60'),
    Case("no best yet", INFER, "run/best.json: not found, no validation has finished", remove("run/best.json")),
    Case("truncated checkpoint", INFER, "cannot be read as the weights of this model", {"run": damage_checkpoints, "rows.tsv": GOOD}),
    Case("checkpoint of another shape", INFER, "it is damaged or of another shape", {"run": swap_weights, "rows.tsv": GOOD}),
    Case("weights not finite", INFER, "holds weights that are not finite", {"run": poison_weights, "rows.tsv": GOOD}),
    Case("means of other classes", INFER, "class_embeddings.npy: found (4, 128), expected means of rows (5, 128)", {**by_rows(lambda a: a[:4]), "rows.tsv": GOOD}),
    Case("means not finite", INFER, "class_embeddings.npy: found numbers that are not finite", {**by_rows(lambda a: a * np.nan), "rows.tsv": GOOD}),
    Case("references that means replace", [*INFER, "--data_dir=data"], "data: its ref.npy is not that of run, a run that embeds classes by their rows",
         {**by_rows(lambda a: a), **npy(lambda a: a * 2, "data/ref.npy")}),
    Case("means of rows that were altered", [*INFER, "--checkpoint=60"], "class_embeddings.npy: is damaged (checksum",
         {**by_rows(lambda a: a), **edit_json("run/step-00000060/state.json", class_embeddings="checksum 0"), "rows.tsv": GOOD}),
    Case("scores of other validations", VAL, "val_scores.npy: found (2, 67), expected scores 3 x 67 of the validations",
         npy(lambda a: a[:2], "run/step-00000060/val_scores.npy")),
    Case("scores of validations that were altered", VAL, "val_scores.npy: is damaged (checksum", npy(lambda a: a + 1, "run/step-00000060/val_scores.npy")),
    Case("state of another step", [*INFER, "--checkpoint=60"], "is not the state of step 60", {**edit_json("run/step-00000060/state.json", step=5), "rows.tsv": GOOD}),
    Case("no threshold yet", [*INFER, "--checkpoint=60", "--val_sim_thres=auto"], "no validation chose a threshold yet",
         {**edit_json("run/step-00000060/state.json", history=[]), "rows.tsv": GOOD}),
    Case("feature below -1 for log", INFER, "rows.tsv:2: value 13 of the feature is -1.5; --embed_norm=log",
         {"rows.tsv": GOOD + f"k\tramen\t{F[:-3]}-1.5\n"}),
    Case("width of the run", INFER, "a feature of 12 values, expected 13 (img_dim of run)", {"rows.tsv": f"k\tramen\t{F[4:]}\n"}),
    Case("val array to score", changed(INFER, image_feature_list="data/val.npy"), "data/val.npy: 15 columns, expected 13 + 1"),
    Case("output is a folder", changed(INFER, output_file="out"), "out: is a folder, expected the name of a file", {"rows.tsv": GOOD}),
    Case("held-out list without val", [*INFER, "--heldout_class_list=held.tsv"], "--heldout_class_list goes with verified rows"),
    Case("list with val", [*INFER, "--mode=val"], "--mode=val scores val.npy of data_dir, not an --image_feature_list"),
    Case("images without a report", [*INFER, "--image_dir=out"], "--image_dir is for the images of a report"),
    Case("no rows to score", [*INFER, "--num_samples=0"], "--num_samples=0 scores nothing"),
    Case("output over the input", changed(INFER, output_file="rows.tsv"), "output_file=rows.tsv is the same file as image_feature_list=rows.tsv, which it would replace", {"rows.tsv": GOOD}),
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
    Case("parquet is not copied", changed(HELDOUT, input_file="train.parquet"), "train.parquet: is not copied; train.py --heldout_class_list "
         "leaves the same rows out of any format", {"held.tsv": "ramen\t0\n"}),
    Case("rows copied to another suffix", changed(HELDOUT, input_file="train.csv"), "--output_file=out/train.tsv: expected a name with the "
         "suffix of train.csv, whose lines are copied", {"held.tsv": "ramen\t0\n"}),
    Case("table of rows without a column", changed(DRAW, image_feature_list="rows.csv"), 'rows.csv: has no column "class"',
         {"s.txt": "1\n", "rows.csv": "key,clas\nk,ramen\n"}),
    Case("table of rows with an empty key", changed(DRAW, image_feature_list="rows.csv"), "rows.csv:2: an empty key",
         {"s.txt": "1\n", "rows.csv": "key,class\n,ramen\n"}),
    Case("table of rows with a short line", changed(DRAW, image_feature_list="rows.csv"), "rows.csv:2: 1 value, expected 2",
         {"s.txt": "1\n", "rows.csv": "key,class\nk\n"}),
    Case("scores of other rows", DRAW, "s.txt: 2 scores for 1 rows of rows.tsv", {"s.txt": "1\n2\n", "rows.tsv": GOOD}),
    Case("picture over an image", changed(DRAW, image_dir="out", output_file="out/a.png"), "out/a.png is an image of --image_dir",
         {"s.txt": "1\n", "rows.tsv": GOOD, "out/a.png": black_image}),
    Case("scores over a checkpoint", changed(INFER, output_file="run/step-00000060/state.json"), "is the same file as run file", {"rows.tsv": GOOD}),
    Case("class to draw", [*DRAW, "--classes=soup"], 'no row of rows.tsv is of class "soup"', {"s.txt": "1\n", "rows.tsv": GOOD}),
    Case("one name for two files", [*DRAW, "--second_score_file=s.txt", "--score_names=F"], "expected a name for each of the 2 score files"),
    Case("comparing nothing", [*COMPARE, "--only_cleannet"], "no --methods, --checkpoint_dirs or --score_files: this compares nothing"),
    Case("methods that are not there", [*COMPARE, "--methods=neighbours,vote"], "--methods=neighbours,vote: 'vote' is none of fast, all, none, mean"),
    Case("comparing scores without keys", [*COMPARE_NONE, "--score_files=s.txt"], "s.txt: has scores only, expected a table", {"s.txt": "0.5\n"}),
    Case("comparing rows without a score", [*COMPARE_NONE, "--score_files=nan.tsv"], "nan.tsv: none of the rows of data/val.npy has a score",
         {"nan.tsv": lambda folder: (folder / "nan.tsv").write_text("".join(
             f"{key}\t{CLASSES[int(c)]}\tnan\tnan\tnan\tunknown\tramen\tnan\tcosine\n"
             for key, c in zip((folder / "data/val_keys.txt").read_text().splitlines(), np.load(folder / "data/val.npy")[:, -2])))}),
    Case("comparing scores of other rows", [*COMPARE_NONE, "--score_files=s.tsv"], "s.tsv: lacks", {"s.tsv": "k\tramen\t0.5\t0\t0.5\tcorrect\tramen\t0.5\tcosine\n"}),
    Case("comparing on one kind", COMPARE, "all verified rows are of one kind", npy(put(1, (slice(None), 14)), "data/val.npy")),
    Case("key with a tab", COMPARE, "data/all_keys.txt:211: key 'k\\tx', expected a text without tabs",
         {"data/all_keys.txt": "k\n" * 210 + "k\tx\n", **remove("data/all_checksums.json")}),
    Case("keys of another number", COMPARE, "all_keys.txt: 1 keys for 211 rows of data/all.npy", {"data/all_keys.txt": "k\n", **remove("data/all_checksums.json")}),
    Case("summary of no comparison", ["util/summarize_comparisons.py", "--comparisons=none.json", "--reference=x"], "none.json: cannot read: No such"),
    Case("summary of something else", SUMMARIZE, "c.json: it has no methods, expected a comparison of all classes",
         {"c.json": "{}"}),
    Case("summary without the reference", SUMMARIZE, "not in every comparison",
         {"c.json": json.dumps({"methods": {"m": METHOD}})}),
    Case("shares of classes", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=out", "--shares=2"], "--shares=2: expected numbers from 0 to 1"),
    Case("training that fails", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=new", "--shares=0.4", "--seeds=1", "--train_flags=--momentum=x"],
         "training with 0.4 of the classes, seed 1: train.py: error:"),
    # Choosing rows.
    Case("choosing from text without classes", changed(CHOOSE, image_feature_list="rows.tsv"), "--image_feature_list=rows.tsv is text, whose classes need a --class_list"),
    Case("choosing from text of an unknown class", [*changed(CHOOSE, image_feature_list="rows.tsv"), "--class_list=classes.txt"],
         'rows.tsv:2: class "raman" is not in classes.txt; the closest is "ramen"', {"rows.tsv": f"{GOOD}k1\traman\t{F}\n"}),
    Case("class to choose from", [*CHOOSE, "--classes=ramen,soup"], '--classes: "soup" is neither a class nor a file'),
    Case("nothing left to choose", [*CHOOSE, "--verified=data/all.npy"], "data/all.npy: no row is left to choose"),
    Case("choosing by plain scores", [*CHOOSE, "--score_file=s.txt"], "s.txt: has scores only, a choice needs keys and verdicts", {"s.txt": "1\n"}),
    Case("choosing by scores of other rows", [*CHOOSE, "--score_file=s.tsv"], "s.tsv: has no score of", {"s.tsv": SCORED.format("cosine")}),
    Case("choosing by no score", [*changed(CHOOSE, image_feature_list="rows.tsv"), "--class_list=classes.txt", "--score_file=s.tsv"],
         "s.tsv: none of the rows to choose from has a score", {"rows.tsv": GOOD, "s.tsv": "k0\tramen\tnan\tnan\tnan\tunknown\tramen\t1\tcosine\n"}),
    Case("informative rows for validation", [*changed(CHOOSE, **{"for": "val"}), "--strategy=informative"], "--for=val takes a random sample and nothing else"),
    Case("so many per class for training", [*CHOOSE, "--per_class=5"], "--per_class goes with --for=val"),
    Case("two budgets", [*changed(CHOOSE, **{"for": "val"}), "--per_class=5", "--num=9"], "--num and --per_class are two budgets"),
    Case("scores for a random choice", [*CHOOSE, "--score_file=s.tsv", "--strategy=random"], "--score_file has no say in --strategy=random"),
    Case("list over the verified rows", [*changed(CHOOSE, output_file="v.tsv"), "--verified=v.tsv"], "--output_file=v.tsv is the same file as --verified v.tsv", {"v.tsv": "k\n"}),
    Case("a picture without images", [*CHECK, "--picture_file=out/odd.png"], "--picture_file shows images; give their --image_dir"),
    Case("a list over an array", changed(CHECK, output_file="data/train.npy"), "--output_file=data/train.npy is the same file as train.npy=data/train.npy"),
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
    Case("empty class of an image", [*IMAGES, "--image_list=l.tsv"], "l.tsv:2: an empty class name", {"l.tsv": "a\tramen\nb\t\n"}),
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
    Case("header of an array", [*changed(INFER, output_file="x.npy"), "--header"], "--header goes with text, which x.npy is not"),
    Case("probabilities as text", [*INFER, "--probabilities_file=p.txt"], "--probabilities_file=p.txt: expected a name that ends in .npy"),
    Case("probabilities over the scores", changed(INFER, output_file="x.npy", probabilities_file="x.npy"), "probabilities_file=x.npy is the same file as output_file=x.npy", {"rows.tsv": GOOD}),
    Case("preset and another size", [*IMAGES, "--keras_hub_preset=x", "--crop=8"], "--keras_hub_preset brings its network and its size"),
    Case("scores of a header alone", EXPORT, "s.txt: has no scores below its header", {"s.txt": "score\n"}),
    Case("scores in CSV with an open quote", changed(EXPORT, score_file="s.csv"), "s.csv: cannot read the scores: unexpected end of data", {"s.csv": '"k,ramen\n'}),
    Case("bad score below a header", EXPORT, 's.txt:3: "x", expected a score', {"s.txt": "score\n1\nx\n"}),
    Case("a key in two splits", TRAIN, "data/val.npy: 1 row with a key that data/train.npy has too", {"data/val_keys.txt": shared_key}),
    Case("two methods of one name", SUMMARIZE, "c.json: 2 methods, 1 of them by name",
         {"c.json": json.dumps({"methods": {f"{k}-nearest-neighbour vote": METHOD for k in (5, 10)}})}),
    Case("no comparisons", ["util/summarize_comparisons.py", "--comparisons=", "--reference=x"], "--comparisons: names no file"),
    Case("a picture too large", [*DRAW, "--num_examples=50", "--image_size=512", "--max_classes=130"], "out/x.png: a picture of 26762 x 73876 pixels",
         {"s.txt": "1\n" * 130, "rows.tsv": "".join(f"k\tclass {i}\t1\n" for i in range(130))}),
    Case("scores of other keys", changed(DRAW, score_file="s.tsv"), 's.tsv:1: the score of "k", but row 1 of rows.tsv is "k0"',
         {"s.tsv": SCORED.format("cosine"), "rows.tsv": GOOD}),
    Case("model of vectors", [*SMALL_IMAGES, "--image_list=l.tsv", "--keras_model=m.keras"], "m.keras: takes inputs of shape (None, 8)",
         {"l.tsv": "a\tramen\n", "m.keras": vector_network}),
    Case("all images labelled -1", changed(without(SMALL_IMAGES, "output_file"), output_dir="new", class_list="classes.txt", split="train", image_list="l.tsv",
         list_columns="key,class,label", keras_model="m.keras", layer="pool"), "new/train.npy: no rows are left, all usable images are labelled -1",
         {"l.tsv": "a.png\tramen\t-1\n", "out/a.png": black_image, "m.keras": small_network}),
    Case("flags with an open quote", ["util/transfer_curve.py", "--data_dir=data", "--output_dir=new", '--train_flags="'], "cannot be split into flags"),
    Case("too few rows to cross-validate", COMPARE, "all.npy: has too few rows or classes to cross-validate", {"rows": keep_rows("all", lambda a: a[:, -1] == 1)}),
    Case("one row to compare with", COMPARE, "all.npy: has one row, and the other methods compare rows", {"rows": keep_rows("all", lambda a: np.arange(len(a)) == 0)}),
    Case("run of another width", COMPARE_RUN, "features of 12 numbers, but run was trained with 13", {"rows": narrow}),
    Case("run that takes logarithms", COMPARE_RUN, "has features of -1 or less, which run, trained with --embed_norm=log, cannot score",
         npy(put(-2, (3, 4)), "data/val.npy")),
    Case("a device for a list", changed(CONVERT, class_list="/dev/null"), "/dev/null: is a pipe, a socket or a device, expected the class list"),
    Case("NUL byte in a path", [*without(CONVERT, "class_list"), "--flagfile=f.flags"], "a NUL byte in a flag; expected text", {"f.flags": "--class_list=a\0b\n"}),
    Case("nothing to report", [*changed(without(INFER, "image_feature_list"), mode="val", data_dir="data", output_file="new.txt"), "--report_dir=new"],
         "new: none of the 67 rows has a score", npy(lambda a: a * 0, "data/ref.npy")),
    Case("one number altered", TRAIN, "data/train.npy: is not what data/train.npy was written with (checksum", npy(put(0.25, (3, 4)), "data/train.npy", tied=True)),
    Case("keys swapped", TRAIN, "data/val_keys.txt: is not what data/val.npy was written with (checksum", swap_lines("data/val_keys.txt")),
    Case("class list swapped", TRAIN, "data/classes.txt: is not what data/train.npy was written with (checksum", swap_lines("data/classes.txt")),
    Case("references of the data altered", TRAIN, "data/ref.npy: is not what data/ref.npy was written with", npy(lambda a: a * 2, "data/ref.npy", tied=True)),
    Case("damaged checksums", REFERENCE, "data/all_checksums.json: is damaged", {"data/all_checksums.json": "{"}),
    Case("array of another conversion", REFERENCE, "data/all.npy: is not what data/all.npy was written with",
         {"a": lambda folder: shutil.copy(folder / "data/val_checksums.json", folder / "data/all_checksums.json")}),
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
    Case("a model that tells nothing apart", TRAIN, "all 4 rows have the score", {"rows": same_rows}),
    Case("a rate that grows", [*TRAIN, "--lr_decay=1e30", "--lr_update=1", "--n_step=9"], "--lr_decay=1e+30 takes the learning rate beyond a float32"),
    Case("class list with commas", CONVERT, "classes.txt:1: \"a,b,c\", with commas", {"classes.txt": "a,b,c\n"}),
    Case("carriage return in a class name", CONVERT, "classes.txt:1: a carriage return or byte-order mark in a class name", {"classes.txt": "a\rb\nc\n"}),
    # What would have destroyed a file.
    Case("scores over val.npy", [*changed(without(INFER, "image_feature_list"), mode="val", data_dir="data", output_file="data/val.npy")], "output_file=data/val.npy is the same file as"),
    Case("held-out rows over their input", changed(HELDOUT, output_file="./train.tsv"), "is the same file as", {"train.tsv": f"k\tramen\t1\t{F}\n", "held.tsv": "ramen\t0\n"}),
    Case("held-out rows over a link to their input", changed(HELDOUT, output_file="link.tsv"), "is the same file as",
         {"train.tsv": f"k\tramen\t1\t{F}\n", "held.tsv": "ramen\t0\n", "link": lambda folder: (folder / "link.tsv").symlink_to("train.tsv")}),
    Case("held-out rows over a hard link to their input", changed(HELDOUT, output_file="hard.tsv"), "is the same file as",
         {"train.tsv": f"k\tramen\t1\t{F}\n", "held.tsv": "ramen\t0\n", "link": lambda folder: os.link(folder / "train.tsv", folder / "hard.tsv")}),
    Case("mosaic over the rows", changed(DRAW, output_file="rows.tsv"), "is the same file as --image_feature_list", {"s.txt": "1\n", "rows.tsv": GOOD}),
    Case("weights over the scores", changed(EXPORT, output_file="s.txt"), "is the same file as --score_file", {"s.txt": "1\n"}),
    Case("rejected rows as input", changed(INFER, image_feature_list="out/p.txt.rejected.tsv", output_file="out/p.txt"), "is the same file as", {"out/p.txt.rejected.tsv": GOOD}),
    Case("scores to stdout", changed(INFER, output_file="/dev/stdout"), "/dev/stdout: is a device or a pipe, which would be replaced", {"rows.tsv": GOOD}),
    Case("references over the array", changed(REFERENCE, input_npy="out/ref.npy"), "is the same file as", {"out/ref.npy": lambda folder: shutil.copy(folder / "data/all.npy", folder / "out/ref.npy")}),
    # What would have been silently wrong.
    Case("threshold nan", [*INFER, "--val_sim_thres=nan"], "--val_sim_thres=nan: expected a number", {"rows.tsv": GOOD}),
    Case("relabel cosine nan", [*changed(EXPORT, score_file="s.tsv"), "--list_file=out/l.tsv", "--relabel_cosine=nan"], "--relabel_cosine=nan: expected a finite number", {"s.tsv": SCORES.format(1, "correct")}),
    Case("verified rows without a promise", [*EXPORT, "--val_npy=data/val.npy"], "--val_npy is for --relabel_precision; give both"),
    Case("a promise of everything", [*PROMISE, "--val_npy=data/val.npy", "--relabel_precision=1"], "--relabel_precision=1: expected a share between 0 and 1"),
    Case("a promise without a list", [*without(PROMISE, "list_file"), "--val_npy=data/val.npy", "--output_file=out/w.npy"], "--relabel_precision chooses the --relabel_cosine of a --list_file"),
    Case("a promise and a cosine", [*PROMISE, "--val_npy=data/val.npy", "--relabel_cosine=0.5"], "give a list, and not the cosine"),
    Case("a promise by nothing", PROMISE, "--relabel_precision learns from verified rows; give --val_npy, or --decisions"),
    Case("a promise by rows without a score", [*PROMISE, "--val_npy=data/val.npy"], "0 rows verified correct with a cosine in s.tsv, expected at least 9 for --relabel_precision=0.9", {"s.tsv": SCORES.format(0, "mislabeled")}),
    Case("a promised list over the verified rows", [*changed(PROMISE, list_file="data/val.npy"), "--val_npy=data/val.npy"], "data/val.npy is the same file as --val_npy", {"s.tsv": SCORES.format(0, "mislabeled")}),
    Case("nan as the run's threshold", [*INFER, "--checkpoint=60", "--val_sim_thres=auto"], "state.json: chosen_threshold is nan, which it cannot be", {**edit_json("run/step-00000060/state.json", history=[{"step": 60, "chosen_threshold": float("nan")}]), "rows.tsv": GOOD}),
    Case("infinite score", EXPORT, 's.txt:1: "inf", expected a score', {"s.txt": "inf\n"}),
    Case("infinite score in a table", changed(EXPORT, score_file="s.tsv"), 's.tsv:1: "inf", expected a cosine', {"s.tsv": SCORES.format("inf", "correct")}),
    Case("verdict in capitals", changed(EXPORT, score_file="s.tsv"), 's.tsv:1: verdict "CORRECT", expected correct or mislabeled or unknown', {"s.tsv": SCORES.format(1, "CORRECT")}),
    Case("temperature zero in run.json", INFER, "run/run.json: contrast_temperature is 0, which it cannot be", edit_json("run/run.json", settings={"score": "cosine", "contrast_temperature": 0})),
    Case("a huge rate", [*TRAIN, "--learning_rate=1e38"], "the rate is too high, so try a --learning_rate below 1e+38"),
    # What would have waited or filled the memory.
    Case("a named pipe of rows", changed(CONVERT, data_path="pipe"), "pipe: is a pipe, a socket or a device", PIPE),
    Case("a named pipe of classes", changed(CONVERT, class_list="pipe"), "pipe: is a pipe, a socket or a device", PIPE),
    Case("a named pipe of scores", changed(EXPORT, score_file="pipe"), "pipe: is a pipe, a socket or a device", PIPE),
    Case("a named pipe as array", changed(REFERENCE, input_npy="pipe"), "pipe: is a pipe, a socket or a device", PIPE),
    Case("a named pipe to write to", changed(EXPORT, output_file="pipe"), "pipe: is a device or a pipe", {"s.txt": "1\n", **PIPE}),
    Case("a named pipe as run.json", INFER, "run/run.json: is a pipe", {"p": lambda folder: ((folder / "run/run.json").unlink(), os.mkfifo(folder / "run/run.json"))}),
    Case("a row of two million numbers", CONVERT, "rows.tsv:2: a feature of 13 values, expected 2000000", {"rows.tsv": "k\tramen\t" + "1," * 1_999_999 + "1\n" + GOOD * 60}),
    Case("an unknown name among 10,000 classes", CONVERT, 'rows.tsv:1: class "class 10001" is not in the class list (10000 classes)', {"rows.tsv": f"k\tclass 10001\t{F}\n", "classes.txt": "".join(f"class {i}\n" for i in range(10000)), "out": remove("out/classes.txt")["out/classes.txt"]}),
    # What would have ended in a traceback.
    Case("checkpoint of another script", [*INFER, "--checkpoint=²"], 'has no checkpoint of step "²"', {"rows.tsv": GOOD}),
    Case("checkpoint of 5,000 digits", [*INFER, "--checkpoint=" + "9" * 5000], 'has no checkpoint of step "999', {"rows.tsv": GOOD}),
    Case("seed beyond 64 bits", [*REFERENCE, "--seed=99999999999999999999"], "--seed=99999999999999999999: expected a whole number of at most 18 digits"),
    Case("seed beyond OpenCV's", [*REFERENCE, "--seed=1000000000000", "--kmeans=opencv"], "flag --seed=1000000000000: 1000000000000 is not an integer in the range"),
    Case("seed of a comparison", [*COMPARE, "--seed=1000000000000"], "flag --seed=1000000000000: 1000000000000 is not an integer in the range"),
    Case("empty descr of an array", REFERENCE, "data/all.npy: the array is cut off or empty", {"data/all.npy": b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '', 'fortran_order': False, 'shape': (2, 14), }".ljust(117) + b"\n"}),
    Case("nested descr of an array", REFERENCE, "data/all.npy: the array is cut off or empty", {"data/all.npy": b"\x93NUMPY\x01\x00\x76\x00" + (b"{'descr': " + b"[" * 40 + b"]" * 40 + b", 'shape': (2,)}").ljust(117) + b"\n"}),
    Case("deep run.json", INFER, "run/run.json: is damaged", {"run/run.json": "[" * 200_000}),
    Case("deep comparison", SUMMARIZE, "c.json: is damaged", {"c.json": "[" * 200_000}),
    Case("best.json of a wrong type", INFER, "run/best.json: step is 'x'", edit_json("run/best.json", step="x")),
    Case("state.json of a wrong type", [*INFER, "--checkpoint=60"], "state.json: history is 5", {**edit_json("run/step-00000060/state.json", history=5), "rows.tsv": GOOD}),
    Case("comparison of a wrong type", SUMMARIZE, "c.json: chosen is 5 and no JSON object", {"c.json": json.dumps({"methods": {"x": {"all": {"chosen": 5, "auroc": 1, "average_precision": 1}}}})}),
    Case("a word as a score in a table", changed(EXPORT, score_file="s.tsv"), 's.tsv:1: "x", expected a cosine', {"s.tsv": SCORES.format("x", "correct")}),
    Case("null key in parquet", changed(EXPORT, score_file="s.parquet"), 's.parquet:1: key "None", expected text', write_parquet(key=None)),
    Case("whole numbers as keys in parquet", changed(EXPORT, score_file="s.parquet"), 's.parquet:1: key "5", expected text', write_parquet(key=5)),
    Case("words as cosines in parquet", changed(EXPORT, score_file="s.parquet"), 's.parquet:1: "x", expected a cosine', write_parquet(cosine="x")),
    Case("model of two inputs", NETWORK, "m.keras: takes inputs of shape", network_of((8, 8, 3), (8, 8, 3))),
    Case("model of two channels", NETWORK, "m.keras: takes inputs of shape", network_of((8, 8, 2))),
    Case("model of four channels", NETWORK, "m.keras: takes inputs of shape", network_of((8, 8, 4))),
    Case("model of any channels", NETWORK, "m.keras: takes inputs of shape", network_of((8, 8, None))),
    # A new user's mistakes.
    Case("a header line", CONVERT, "it looks like a header line: remove it", {"rows.tsv": "key\tclass\tfeature\n" + GOOD}),
    Case("key and class swapped", CONVERT, "the first column is a class: put the key in front of it", {"rows.tsv": f"ramen\tk0\t{F}\n"}),
    Case("verified rows as all", CONVERT, "it looks like a verified row", {"rows.tsv": f"k0\tramen\t1\t{F}\n"}),
    Case("verified rows to score", INFER, "it looks like a verified row", {"rows.tsv": f"k0\tramen\t1\t{F}\n"}),
    Case("npz for text", changed(CONVERT, data_path="a.npz"), "the file is an archive such as .npz, expected text", {"a.npz": lambda folder: np.savez(folder / "a.npz", x=np.ones(3))}),
    Case("npy for text", changed(CONVERT, data_path="data/all.npy"), "the file is a .npy array, expected text"),
    Case("carriage return in a key", CONVERT, "rows.tsv:1: a carriage return inside the line", {"rows.tsv": f"k\r0\tramen\t{F}\n"}),
    Case("second byte-order mark", CONVERT, "classes.txt:2: a carriage return or byte-order mark", {"classes.txt": "a\n\ufeffb\n"}),
    Case("output_dir of a comparison is a file", changed(COMPARE, output_dir="classes.txt"), "classes.txt: cannot create this folder"),
    Case("underscore in a flag", [*TRAIN, "--n_step=1_0"], "--n_step=1_0: expected a whole number of at most 18 digits"),
    Case("digits of another script in a flag", [*TRAIN, "--n_step=٣"], "--n_step=٣: expected a whole number of at most 18 digits"),
    # Other formats of rows.
    Case("no rows named", without(CONVERT, "data_path"), "no rows to convert: give --data_path, or --features and --table"),
    Case("features without a table", [*without(CONVERT, "data_path"), "--features=x.npy"], "--features and --table belong together"),
    Case("features and rows", [*INFER, "--features=x.npy", "--table=t.csv"], "--features and --table belong together, and replace the file of rows"),
    Case("features of verified rows", [*changed(without(INFER, "image_feature_list"), mode="val"), "--table=t.csv"], "--mode=val scores val.npy of data_dir"),
    Case("parquet that is none", PARQUET, "rows.parquet: is not a parquet file, or a damaged one", {"rows.parquet": GOOD}),
    Case("parquet that is damaged", PARQUET, "rows.parquet: is not a parquet file, or a damaged one", damaged("rows.parquet", parquet_rows())),
    Case("empty parquet", PARQUET, "rows.parquet: is not a parquet file, or a damaged one", {"rows.parquet": b""}),
    Case("parquet without rows", PARQUET, "rows.parquet: has no rows, expected key, class name, feature", parquet_rows(lambda t: t[:0])),
    Case("no parquet of a pattern", changed(CONVERT, data_path="none-*.parquet"), "none-*.parquet: no file matches"),
    Case("parquet that is missing", changed(CONVERT, data_path="none.parquet"), "none.parquet: cannot read"),
    Case("parquet without a column", PARQUET, 'rows.parquet: has no column "class"; the closest is "klass"; its columns: key, klass, feature; --class_column',
         parquet_rows(lambda t: t.rename_columns(["key", "klass", "feature"]))),
    Case("parquet with a column twice", PARQUET, 'rows.parquet: has 2 columns "key"; rename all but one', parquet_rows(lambda t: t.append_column("key", t["key"]))),
    Case("parquet of lists of whole numbers", PARQUET, 'column "feature" holds list<', parquet_rows(feature=[[1, 2]] * 3)),
    Case("parquet of single numbers", PARQUET, 'column "feature" holds double, expected lists of float16', parquet_rows(feature=[0.5] * 3)),
    Case("parquet of Spark's vectors", PARQUET, "expected lists of float16, float32 or float64; of a vector, Spark's vector_to_array makes one",
         parquet_rows(feature=[{"type": 1, "size": None, "indices": None, "values": [0.5] * 13}] * 3)),
    Case("parquet of keys that are lists", PARQUET, 'column "key" holds list<', parquet_rows(key=[["a"]] * 3)),
    Case("parquet of labels that are dates", [*changed(PARQUET, split="val")], 'column "label" holds timestamp', parquet_rows(label=np.array([0, 1, 1], "datetime64[s]"))),
    Case("nan in parquet", PARQUET, "rows.parquet:2: value 13 of the feature is nan, expected a number that is finite as a float32 (0 more bad rows among the next 1",
         parquet_rows(feature=[[0.5] * 13, [0.5] * 12 + [np.nan], [0.5] * 13])),
    Case("drawing rows of parquet without a key", changed(DRAW, image_feature_list="rows.parquet"), "rows.parquet:2: an empty key",
         {**parquet_rows(key=["a", "", "c"]), "s.txt": "0.5\n" * 3}),
    Case("null in parquet", PARQUET, "rows.parquet:3: an empty key; every row needs one (the last row", parquet_rows(key=["a", "b", None])),
    Case("ragged parquet", PARQUET, "rows.parquet:2: a feature of 12 values, expected 13 (as in the first rows)", parquet_rows(feature=[[0.5] * 13, [0.5] * 12, [0.5] * 13])),
    Case("parquet without features", PARQUET, "rows.parquet:1: a feature of 0 values, expected as many as in other rows", parquet_rows(feature=pyarrow.array([[]] * 3, pyarrow.list_(pyarrow.float32())))),
    Case("bad row of the second file", changed(CONVERT, data_path="*.parquet"), 'b.parquet:2: class "ramem" is not in the class list',
         {**parquet_rows(name="a.parquet"), **parquet_rows(name="b.parquet", **{"class": ["ramen", "ramem", "ramen"]})}),
    Case("tab in a key of parquet", PARQUET, "rows.parquet:2: a tab or line break inside a value", parquet_rows(key=["a", "b\tramen", "c"])),
    Case("array over one of several inputs", changed(CONVERT, data_path="out/*.parquet", output_dir="out", split="val"), "the same file as --data_path=out/",
         {**parquet_rows(name="out/a.parquet"), "link": lambda folder: ((folder / "out/b.parquet").symlink_to("val.npy"), parquet_rows(name="out/val.npy", label=[1] * 3)["out/val.npy"](folder), parquet_rows(name="out/a.parquet", label=[1] * 3)["out/a.parquet"](folder))}),
    Case("CSV with a blank line for a header", CSV, "rows.csv:1: is blank, expected the names", {"rows.csv": "\nkey,class,feature\n"}),
    Case("CSV without a column", CSV, 'rows.csv: has no column "feature"', {"rows.csv": "key,class\na,ramen\n"}),
    Case("CSV with an open quote in its header", CSV, "rows.csv:1: quotes that cannot be read", {"rows.csv": 'key,"class\n'}),
    Case("CSV with an open quote", CSV, "rows.csv:2: quotes that cannot be read (unexpected end of data)", {"rows.csv": 'key,class,feature\n"a\nb",ramen,1\n'}),
    Case("CSV with a value too many", CSV, "rows.csv:3: 4 values, expected 3, as in the header", {"rows.csv": "key,class,feature\na,ramen,1 2\nb,ramen,1,2\n"}),
    Case("CSV with columns out of order", CSV, "rows.csv: the columns of the feature are f0, f2; expected f0, f1", {"rows.csv": "key,class,f0,f2\na,ramen,1,2\n"}),
    Case("word in CSV", CSV, 'rows.csv:2: value 2 of the feature is "x", expected a decimal number', {"rows.csv": "key,class,f0,f1\na,ramen,1,x\n"}),
    Case("tab in a value of CSV", CSV, "rows.csv:2: a tab or carriage return inside a value", {"rows.csv": "key,class,f0,f1\na,ra\tmen,1,2\n"}),
    Case("CSV of a header alone", CSV, "rows.csv: has no rows, expected key, class name, feature", {"rows.csv": "key,class,feature\n"}),
    Case("empty CSV", CSV, "rows.csv: has no rows, expected a line of column names", {"rows.csv": ""}),
    Case("more features than rows", ARRAY, "t.csv: 2 rows for the 3 features of x.npy", {**features(np.ones((3, 13), np.float32)), **TABLE}),
    Case("fewer features than rows", ARRAY, "t.csv: 2 rows for the 1 features of x.npy", {**features(ONES[:1]), **TABLE}),
    Case("features in three axes", ARRAY, "x.npy: found float32 (2, 13, 1), expected (rows, numbers) features as float16", {**features(ONES[:, :, None]), **TABLE}),
    Case("features of whole numbers", ARRAY, "x.npy: found int64 (2, 13)", {**features(np.ones((2, 13), np.int64)), **TABLE}),
    Case("features in Fortran order", ARRAY, "x.npy: cannot be read (Fortran order)", {**features(np.asfortranarray(ONES)), **TABLE}),
    Case("pickled features", ARRAY, "x.npy: cannot be read (it holds pickled objects)", {**features(np.array([[{}]], object)), **TABLE}),
    Case("features cut off", ARRAY, "x.npy: is cut off, expected 2 rows of 13 numbers", {"x.npy": lambda folder: (np.save(folder / "x.npy", ONES), os.truncate(folder / "x.npy", 200)), **TABLE}),
    Case("features that are text", ARRAY, "x.npy: cannot be read", {"x.npy": GOOD, **TABLE}),
    Case("archive of several arrays", ARCHIVE, 'x.npz: has no column "feature"; its columns: a, b; --feature_column', {**features({"a": ONES, "b": ONES}, "x.npz"), **TABLE}),
    Case("archive that is damaged", ARCHIVE, "x.npz: cannot be read", {**damaged("x.npz", features({"a": ONES}, "x.npz")), **TABLE}),
    Case("archive of an object", ARCHIVE, "x.npz: cannot be read (it holds pickled objects)", {**features({"a": np.array([[{}]], object)}, "x.npz"), **TABLE}),
    Case("infinite feature", ARRAY, "t.csv:3: value 13 of the feature is inf", {**features(np.where(np.arange(26).reshape(2, 13) == 25, np.float16(np.inf), np.float16(1))), **TABLE}),
    Case("table without a class", ARRAY, 't.csv: has no column "class"', {**features(ONES), "t.csv": "key\na\n"}),
    # Decisions.
    Case("two pages", [*VERIFY, "--review=s.tsv"], "--list and --review are two pages"),
    Case("no page", ["util/verify_images.py", "--output=out/v.tsv"], "nothing to do: give --list or --review for the page"),
    Case("page without images", without(VERIFY, "image_dir"), "the page needs --image_dir", {"l.tsv": "k\tramen\n"}),
    Case("review with data", [*REVIEW, "--data_dir=data"], "--review goes without --data_dir, --import and --export"),
    Case("author with a tab", [*VERIFY, "--author=a\tb"], '--author: author "a\\tb", expected 1 to 80 printable characters'),
    Case("export without a format", [*VERIFY, "--export=new.txt"], "new.txt: expected a name that ends in .json (Label Studio's tasks) or .csv"),
    Case("empty list to verify", VERIFY, "l.tsv: lists no rows", {"l.tsv": "\n"}),
    Case("row to verify without a class", VERIFY, "l.tsv:1: 1 tab-separated column, expected a key, its class and perhaps why", {"l.tsv": "k\n"}),
    Case("row to verify twice", VERIFY, 'l.tsv:3: "k" as ramen is already in line 1; remove one', {"l.tsv": "k\tramen\nk\tsushi\nk\tramen\tx\n"}),
    Case("no image to verify", VERIFY, '--image_dir=out: has none of the first 1 image, e.g. "../classes.txt"', {"l.tsv": "../classes.txt\tramen\n"}),
    Case("examples of other references", [*VERIFY, "--data_dir=data"], "data/ref.npy: 12 numbers per feature",
         {"l.tsv": "all.npy\tramen\n", **npy(lambda a: a[:, :, 1:], "data/ref.npy")}),
    Case("address of another machine", [*VERIFY, "--host=192.0.2.1", "--port=1"], "--host=192.0.2.1 --port=1: cannot be served", {"l.tsv": "all.npy\tramen\n"}),
    Case("review of scores only", REVIEW, "s.tsv: has scores only, a review needs keys and classes", {"s.tsv": "1\n"}),
    Case("review of a repeated key", REVIEW, 's.tsv: "k" as ramen is in it 2 times', {"s.tsv": SCORED.format("cosine") * 2}),
    Case("list in place of an image", [*VERIFY, "--write=out/a.png"], "--write=out/a.png is an image of --image_dir",
         {"l.tsv": "a.png\tramen\n", "out/a.png": "x"}),
    Case("list in place of data", [*VERIFY, "--data_dir=data", "--write=data/classes.txt"], "data/classes.txt is the same file as",
         {"l.tsv": "k\tramen\n"}),
    Case("review of rows without a class", REVIEW, "s.tsv: none of its rows has a class",
         {"s.tsv": SCORED.format("cosine").replace("k\tramen", "\t")}),
    Case("output that is the list", changed(VERIFY, output="l.tsv"), "--output=l.tsv is the same file as --list=l.tsv", {"l.tsv": "k\tramen\n"}),
    Case("no folder for decisions", changed(IMPORT, output="/sys/v.tsv"), "/sys/v.tsv: cannot write here", {"x.csv": DECIDED_CSV}),
    Case("decisions with five columns", WRITE, "v.tsv:2: 5 tab-separated columns, expected 6 (key, class, label, author, time, right class)",
         {"v.tsv": DECIDED + "a\tb\t1\tann\t2026-01-02T03:04:05Z\n"}),
    Case("decision without a key", WRITE, "v.tsv:1: an empty key; mend or remove this line", {"v.tsv": DECIDED[1:]}),
    Case("decision label", WRITE, 'v.tsv:1: label "2", expected 1 (correct), 0 (mislabeled), -1 (unclear) or undo', {"v.tsv": DECIDED.replace("\t0\t", "\t2\t")}),
    Case("decision time", WRITE, 'v.tsv:1: time "yesterday", expected UTC such as', {"v.tsv": DECIDED.replace("2026-01-02T03:04:05Z", "yesterday")}),
    Case("decision without an author", WRITE, 'v.tsv:1: author "", expected 1 to 80 printable characters', {"v.tsv": DECIDED.replace("ann", "")}),
    Case("decision as its own class", WRITE, 'v.tsv:1: right class "ramen", expected none unless the label is 0', {"v.tsv": DECIDED.replace("sushi", "ramen")}),
    Case("undo of nothing", WRITE, 'v.tsv:1: undo, but no decision of "ann" on "k" stands', {"v.tsv": DECIDED.replace("\t0\t", "\tundo\t").replace("sushi", "")}),
    Case("decisions not UTF-8", WRITE, "v.tsv:2: bytes that are not UTF-8", {"v.tsv": DECIDED.encode() + b"\xff\n"}),
    Case("no decisions file", WRITE, "v.tsv: cannot read: No such file or directory; expected decisions (key, class"),
    Case("table without a header", IMPORT, "x.csv:1: no column key in the header, expected key, class, label", {"x.csv": "a,ramen,1\n"}),
    Case("table with a label", IMPORT, 'x.csv:2: label "yes", expected 1 (correct)', {"x.csv": "key,class,label\na,ramen,yes\n"}),
    Case("table with an undo", IMPORT, 'x.csv:3: label "undo", expected 1 (correct)', {"x.csv": "key,class,label\na,ramen,1\nb,ramen,undo\n"}),
    Case("table that is blank", changed(CONVERT, data_path="x.csv"), "x.csv:1: is blank, expected the names of the columns", {"x.csv": "\n"}),
    Case("table with a short line", IMPORT, "x.csv:2: 2 columns, expected 3, as in the header", {"x.csv": "key,class,label\na,ramen\n"}),
    Case("table with an open quote", IMPORT, "x.csv:2: unexpected end of data", {"x.csv": 'key,class,label\n"a,ramen,1\n'}),
    Case("table without decisions", IMPORT, "x.csv: holds no decisions", {"x.csv": "key,class,label\na,ramen,\n"}),
    Case("tasks of another form", changed(IMPORT, **{"import": "x.json"}), "x.json: data has no class, expected tasks of Label Studio",
         {"x.json": '[{"data": {"image": "a"}}]'}),
    Case("tasks without decisions", changed(IMPORT, **{"import": "x.json"}), "x.json: holds no decisions",
         {"x.json": '[{"data": {"image": "a", "class": "b"}, "annotations": [{"result": []}]}]'}),
    Case("no decisions to join", changed(JOIN, decisions=""), "--decisions: names no file"),
    Case("nothing decided", JOIN, "v.tsv: no row is decided as correct or mislabeled", {"v.tsv": DECIDED.replace("\t0\t", "\t-1\t").replace("sushi", "")}),
    Case("every decision left out", [*JOIN, "--leave_out=v.tsv"], "v.tsv: has all decided rows, so none is left", {"v.tsv": DECIDED}),
    Case("decisions on other rows", JOIN, 'data/all.npy: no features of 1 decided row, e.g. "k"; extract them, or check the keys', {"v.tsv": DECIDED}),
    Case("decisions on rows without scores", [*changed(EXPORT, score_file="s.tsv"), "--decisions=v.tsv"], "v.tsv: decides no row of the scores",
         {"s.tsv": SCORED.format("cosine"), "v.tsv": DECIDED.replace("ramen", "tacos")}),
    Case("decisions and scores without keys", [*EXPORT, "--decisions=v.tsv"], "s.txt: has scores only, --decisions need classes", {"s.txt": "1\n", "v.tsv": DECIDED}),
    # Training a classifier.
    Case("weights without scores", [*CLASSIFY, "--weights=soft"], "--weights=soft and --score_file=None: soft and hard weights need scores"),
    Case("scores without weights", [*CLASSIFY, "--score_file=s.tsv"], "--weights=none and --score_file=s.tsv: soft and hard"),
    Case("two kinds of weights", [*WEIGHTED, "--weight_file=w.npy"], "--score_file and --weight_file both weight the rows"),
    Case("a list and no relabelling", [*CLASSIFY, "--list_file=l.tsv"], "--relabel needs a --list_file, and a --list_file is for --relabel"),
    Case("folds for nothing", [*CLASSIFY, "--folds=2"], "--folds=2: folds and a file for what they give"),
    Case("passes of labels in a list", [*changed(CLASSIFY_IMAGES, output_file="new/c.keras"), "--folds=2", "--passes=2", "--table_file=new/t.tsv",
         "--list_columns=key,class,label"], "--passes=2: labels in the image_list are the weights of every pass", {"l.tsv": "a.png\tramen\t1\n"}),
    Case("passes without folds", [*CLASSIFY, "--passes=2"], "--passes=2: a further pass weights rows by their out-of-fold probabilities; give"),
    Case("one fold", changed(FOLDS, folds=1), "--folds=1: with one fold nothing is left to train on"),
    Case("no classifier to write", without(CLASSIFY, "output_file"), "nothing to write: give --output_file for the classifier"),
    Case("classifier of another suffix", changed(CLASSIFY, output_file="out/c.h5"), "--output_file=out/c.h5: is a Keras model"),
    Case("probabilities of another suffix", [*FOLDS, "--probabilities_file=p.txt"], "--probabilities_file=p.txt: is an array"),
    Case("table of another suffix", changed(FOLDS, table_file="t.npy"), "t.npy can hold one number per row only"),
    Case("shifts of no table", [*without(FOLDS, "table_file"), "--probabilities_file=p.npy", "--shift_classes"],
         "--shift_classes shifts the probabilities of a table of scores"),
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
    Case("a list without a header", RELABELLED, 'l.tsv:1: no column "key", expected a header with key, given_class', {"l.tsv": "k\tramen\tkeep\tx\n"}),
    Case("a list with a short line", RELABELLED, "l.tsv:2: 1 column, expected 4 as in the header", {"l.tsv": "key\tgiven_class\tsuggested_class\taction\nk\n"}),
    Case("a list with an open quote", changed(RELABELLED, list_file="l.csv"), "l.csv:2: quotes that cannot be read (unexpected end of data)",
         {"l.csv": 'key,given_class,suggested_class,action\n"k,ramen,sushi,relabel\n'}),
    Case("unknown action", RELABELLED, 'l.tsv:2: action "remove", expected keep, relabel, recheck, drop',
         {"l.tsv": "key\tgiven_class\tsuggested_class\taction\nk\tramen\tramen\tremove\n"}),
    Case("relabelled as an unknown class", RELABELLED, 'l.tsv:2: class "raman" is not in the class list; the closest is "ramen"', relabels("raman")),
    Case("neither features nor images", without(CLASSIFY, "input_npy"), "give --input_npy to train on features, or --image_dir"),
    Case("a network for features", [*CLASSIFY, "--keras_model=m.keras"], "--image_list, --keras_model and --mixed_precision are for images"),
    Case("images without classes", without(CLASSIFY_IMAGES, "class_list"), "--image_dir needs a --class_list"),
    Case("fine-tuning from nowhere", [*CLASSIFY_IMAGES, "--finetune_from=pol"], '--finetune_from=pol: the network has no such layer; the closest is "pool"', TWO_IMAGES),
    Case("an image to train on that is missing", CLASSIFY_IMAGES, "l.tsv:1: a.png: No such file or directory; take it out of the list",
         {**TWO_IMAGES, "out/a.png": lambda folder: None}),
    # Alternating.
    Case("an open quote for the classifier", [*ALTERNATE, "--classifier_flags='"], "--classifier_flags=': cannot be split into flags (No closing quotation)"),
    Case("no images to alternate on", changed(ALTERNATE, image_dir="none"), "none: no such folder, expected the images"),
    Case("no network to alternate with", [*ALTERNATE, "--keras_model=m.keras"], "m.keras: cannot read: No such file"),
    Case("a network under the name of an output", [*changed(ALTERNATE, output_dir="."), "--test_data=rounds.json"],
         "rounds.json=./rounds.json is the same file as --test_data=rounds.json", {"rounds.json": "a\tramen\n"}),
    Case("another alternation there", changed(ALTERNATE, output_dir="out"), "out/steps.json: was begun with all.npy=None, not 211 rows, checksum",
         {"out/steps.json": '{"settings": {}, "done": []}'}),
    Case("finished steps that are none", changed(ALTERNATE, output_dir="out"), "out/steps.json: it has no done, expected the finished steps of an alternation; give",
         {"out/steps.json": '{"settings": {}}'}),
    Case("a step that fails", ALTERNATE, "round0, validation: inference.py: error: data/ref.npy: cannot read", remove("data/ref.npy")),
    # Combining scores.
    Case("no table to combine", changed(COMBINE, score_files=""), "--score_files=: names no table"),
    Case("an empty table name to combine", changed(COMBINE, score_files="a.tsv,"), "--score_files=a.tsv,: names no table, or an empty one"),
    Case("plain scores to combine", COMBINE, "a.tsv: has scores only, expected a table", {"a.tsv": "1\n"}),
    Case("combined under the name of an array", changed(COMBINE, output_file="c.npy"), "c.npy can hold one number per row only"),
    Case("images without a report to combine", [*COMBINE, "--image_dir=data"], "--image_dir is for the images of a report; give --report_dir",
         {"a.tsv": SCORED.format("cosine")}),
    Case("a report of a share", [*COMBINE, "--report_dir=new", "--val_sim_thres=fdr:0.1"], "--val_sim_thres=fdr:0.1 is chosen by all of --val_npy"),
    Case("a report over a table", [*changed(COMBINE, score_files="report.json,b.tsv"), "--report_dir=."], "report.json is the same file as",
         {"report.json": SCORED.format("cosine")}),
    Case("probability above 1", COMBINE, "a.tsv:1: probability 1.5, expected 0 to 1", {"a.tsv": SCORED.format("cosine").replace("1\tcorrect", "1.5\tcorrect")}),
    Case("tables of other keys", COMBINE, 'b.tsv:1: the key "x" is not in a.tsv', combined(lambda row: ["x", *row[1:]])),
    Case("tables of other keys, with a header", COMBINE, 'b.tsv:2: the key "x" is not in a.tsv', combined(lambda row: ["x", *row[1:]], header=True)),
    Case("a row in one table only", COMBINE, 'b.tsv: has the key "', combined(lambda row: None)),
    Case("tables of other classes", COMBINE, 'b.tsv:1: class "soup" of "', combined(lambda row: [row[0], "soup", *row[2:]])),
    Case("no verified rows of both kinds", COMBINE, "data/val.npy: its 67 rows with a score are not of both kinds",
         {**combined(lambda row: row), **npy(put(1, (slice(None), 14)), "data/val.npy")}),
    Case("a share of all to combine", [*COMBINE, "--val_sim_thres=fdr:1"], "--val_sim_thres=fdr:1: expected fdr: and a share between 0 and 1"),
    Case("a share that is none", [*INFER, "--val_sim_thres=fdr:x"], "--val_sim_thres=fdr:x: expected fdr: and a share between 0 and 1"),
    Case("a share on the rows that are measured", ["inference.py", "--mode=val", "--data_dir=data", "--checkpoint_dir=run",
        "--output_file=out/v.txt", "--val_sim_thres=fdr:0.1"], "--val_sim_thres=fdr:0.1 is chosen by all of val.npy"),
    Case("a share without verified rows", [*INFER, "--val_sim_thres=fdr:0.1", "--data_dir=data"], "data/val.npy: cannot read",
        {"rows.tsv": GOOD, **remove("data/val.npy")}),
    Case("a class of no list to estimate", ESTIMATE, 'b.tsv:1: class "soup" is not in data/classes.txt',
        combined(lambda row: [row[0], "soup", *row[2:]])),
    Case("too few verified rows to estimate", ESTIMATE, "data/val.npy: 0 rows with a score, and none of training; verify 10 at least",
        {"b.tsv": SCORED.format("cosine")}),
    Case("estimates over their scores", changed(ESTIMATE, output_file="b.tsv"), "--output_file=b.tsv is the same file as --score_file=b.tsv",
        combined(lambda row: row)),
    Case("a table for held-out classes, without any", [*COMBINE, "--heldout_score_files=a.tsv"], "--heldout_score_files needs --calibrate and a"),
    Case("a table for held-out classes that is not combined", [*COMBINE, "--heldout_score_files=c.tsv", "--calibrate",
        "--heldout_class_list=held.tsv"], "--heldout_score_files: c.tsv is none of --score_files"),
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


# Raised in situations that have tests of their own (a full disk, a worker that dies, a file that grows, two writers, Beam, Keras Hub, a notebook), or that
# no test makes: a transfer curve without val.npy, 16 million classes, files that vanish or shrink between two looks at them, and what data_loader.py has refused before.
UNREACHED = (
    "what was there is as before, make room", "was cut off while it was read", "cannot save this checkpoint",
    "another worker stopped", "apache_beam is not installed", "no file matches", "wrote no scores", "shards of an earlier run",
    "shards would have the names of the input", "trained without val.npy, so nothing was measured",
    "expected at most", "cannot read the checkpoint folder", "keras_hub cannot be imported", "--keras_hub_preset={preset}: cannot be used",
    "references of shape", "features of shape", "features: row", "class ids: ",
    "cannot read: {reason(error)}; make it with", "no row of a kept class with references",
    "why(', '.join(map(str, found)))", "is damaged, expected float32", "has more rows than a moment ago", "was changed by something else since",
    "cannot write: {reason(error)}; what was there is as before, make room",
)


def test_every_user_error_is_reached(results):
    missed = [
        f"{path.name}:{line}: {text}" for path, line, text in raising_lines() if line not in (results[1].lines(str(path)) or [])
    ]
    unknown = [text for text in missed if not any(known in text for known in UNREACHED)]
    assert not unknown, "\n".join(unknown)
    assert not [known for known in UNREACHED if not any(known in text for text in missed)], "reached, or not there any more"
