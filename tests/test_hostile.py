"""The cases of hostile.py: no traceback, no hang, no input changed, no older output damaged, nothing silently wrong.

A failing case prints its command line, what is wrong in it, and what the command said.
"""
import contextlib
import hashlib
import itertools
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow
import pytest
from commands import ROOT, Command
from conftest import convert, run_script
from flag_tables import command_paths
from hostile import Case, Good, cases
from pyarrow import parquet

TIMEOUT, LONG_TIMEOUT = 180, 10  # seconds until a command counts as a hang; until one that may take long is ended
MEMORY, FILE_SIZE = 8 << 30, 64 << 20  # bytes that a command may have, and write to one file
TEMPORARY = re.compile(r"(^|/)\.[^/]*$|\.tmp(/|$)")
NOT_FINITE = re.compile(rb": -?(NaN|Infinity)")  # in JSON
ASIDE = re.compile("[Ww]arning: |^libpng ")  # lines on stderr that are no errors
VARIES = re.compile("^out/.*log/|run.json$|/ckpt.|.keras$")  # outputs that hold the time, a path or tensors in any order

TRAIN = {
    "data_dir": "data", "checkpoint_dir": "out/run", "log_dir": "out/log", "n_step": 2, "val_interval": 2,
    "log_interval": 2, "batch_size_sup": 8, "batch_size_unsup": 6,
}
RESUME = TRAIN | {"n_step": 62, "val_interval": 20, "log_interval": 5, "dropout_rate": 0.2}
TRANSFER = {
    "data_dir": "data", "output_dir": "out", "shares": "1", "seeds": "1", "train_flags": "--n_step=1 --val_interval=1",
}
CONVERT = {"split": "all", "class_list": "classes.txt", "data_path": "rows.tsv", "output_dir": "out"}
CONVERT_VAL = CONVERT | {"split": "val", "data_path": "val.tsv", "img_dim": 13, "num_workers": 2}
COLUMNS = {"key_column": "key", "class_column": "class", "feature_column": "feature"}
CONVERT_PARQUET = CONVERT | COLUMNS | {"split": "val", "data_path": "val.parquet", "label_column": "label"}
CONVERT_ARRAY = CONVERT | {"data_path": None, "features": "rows.npy", "table": "table.csv"}
REFERENCES = {"class_list": "classes.txt", "input_npy": "data/all.npy", "output_dir": "out", "num_ref": 3, "seed": 1}
HELDOUT = {"heldout_class_list": "held.tsv", "input_file": "val.tsv", "output_file": "out/held.tsv"}
SCORE = {"checkpoint_dir": "run", "image_feature_list": "rows.tsv", "output_file": "out/s.tsv", "output_format": "tsv"}
SCORE_BAD = {"checkpoint_dir": "run", "image_feature_list": "bad.tsv", "on_bad_row": "skip", "output_file": "out/s.txt"}
SCORE_ARRAY = {
    "checkpoint_dir": "run", "image_feature_list": "data/all.npy", "output_file": "out/s.npy", "num_samples": 20,
    "class_list": "classes.txt",
}
SCORE_PARQUET = SCORE | COLUMNS | {
    "image_feature_list": "rows.parquet", "output_file": "out/s.csv", "probabilities_file": "out/p.npy", "header": "true",
}
SCORE_ARCHIVE = SCORE | {"image_feature_list": None, "features": "rows.npz", "table": "table.tsv", "output_file": "out/s.parquet"}
SCORE_VAL = {
    "checkpoint_dir": "run", "mode": "val", "data_dir": "data", "output_file": "out/val.txt",
    "heldout_class_list": "held.tsv", "report_dir": "out/report",
}
DRAW = {
    "score_file": "scores.tsv", "second_score_file": "scores.txt", "image_feature_list": "rows.tsv",
    "image_dir": "images", "verified_list": "val.tsv", "max_classes": 2, "num_examples": 2, "image_size": 16,
    "output_file": "out/x.png",
}
EXTRACT = {"image_dir": "images", "image_list": "list.tsv", "keras_model": "net.keras", "crop": 8, "resize": 8}
EXTRACT_ARRAY = EXTRACT | {"output_dir": "out", "split": "all", "class_list": "classes.txt"}
WEIGHTS = {"output_file": "out/w.npy", "list_file": "out/l.tsv"}
PROMISE = {"score_file": "val_scores.tsv", "relabel_precision": 0.6, "val_npy": "data/val.npy"}
DIGITS = {"output_dir": "out", "image_size": 8, "num_train": 20, "num_val": 20}
VERIFY = {"output": "decided.tsv", "list": "to_verify.tsv", "export": "out/x.json", "write": "out/l.tsv"}
IMPORT = {"output": "out/v.tsv", "import": "x.csv", "export": "out/x.csv"}
JOIN = {"decisions": "decided.tsv", "features": "data/all.npy", "split": "train", "output_dir": "out"}
COMPARE = {"data_dir": "data", "output_dir": "out", "heldout_class_list": "held.tsv", "seed": 1}
CHOOSE = {"for": "train", "num": 20, "image_feature_list": "data/all.npy", "output_file": "out/list.tsv"}
CHOOSE_BY_SCORES = CHOOSE | {"image_feature_list": "rows.tsv", "class_list": "classes.txt", "score_file": "scores.tsv"}
CHOOSE_VAL = {"for": "val", "image_feature_list": "rows.tsv", "class_list": "classes.txt", "output_file": "out/list.tsv"}
CHECK = {"data_dir": "data", "image_dir": "images", "output_file": "out/odd.tsv", "picture_file": "out/odd.png"}
CLASSIFY = {
    "input_npy": "data/all.npy", "score_file": "all_scores.tsv", "weights": "soft", "verified": "data/train.npy",
    "test_data": "data/val.npy", "output_file": "out/c.keras", "report_dir": "out/report", "n_epoch": 1, "hidden_units": 3,
    "log_dir": "out/log",
}
FOLDS = {
    "input_npy": "data/all.npy", "class_list": "classes.txt", "weight_file": "weights.txt", "folds": 2, "n_epoch": 1, "hidden_units": 0,
    "probabilities_file": "out/p.npy", "table_file": "out/t.tsv", "relabel": "true", "list_file": "cleaned.tsv",
}
COMBINE = {
    "score_files": "val_scores.tsv,val_scores.parquet", "val_npy": "data/val.npy", "heldout_class_list": "held.tsv",
    "output_file": "out/c.tsv",
}
COMBINE_CALIBRATED = COMBINE | {"calibrate": "true", "val_sim_thres": "fdr:0.3", "heldout_score_files": "val_scores.parquet"}
ESTIMATE = {"score_file": "val_scores.tsv", "val_npy": "data/val.npy", "output_file": "out/n.tsv", "picture_file": "out/n.png"}
ALTERNATE = {
    "image_dir": "small/images", "data_dir": "small", "checkpoint_dir": "run", "keras_model": "net.keras", "resize": 8, "crop": 8,
    "test_data": "small/test.tsv", "classifier_flags": "--n_epoch=1", "rounds": 0, "output_dir": "out",
}
SUMMARY = {"comparisons": "c1.json,c2.json", "reference": "CleanNet run (cosine)"}
GOODS = [
    Good("convert all", "util/convert_data.py", CONVERT),
    Good("convert val", "util/convert_data.py", CONVERT_VAL),
    Good("convert ref", "util/convert_data.py", CONVERT | {"split": "ref", "data_path": "ref.tsv", "num_ref": 2}),
    Good("convert skipping", "util/convert_data.py", CONVERT | {"data_path": "bad.tsv", "on_bad_row": "skip"}),
    Good("convert CSV", "util/convert_data.py", CONVERT | {"data_path": "rows.csv"}),
    Good("convert parquet", "util/convert_data.py", CONVERT_PARQUET),
    Good("convert arrays", "util/convert_data.py", CONVERT_ARRAY),
    Good("references", "util/find_reference.py", REFERENCES),
    Good("held out", "util/heldout_train_data.py", HELDOUT),
    Good("score rows", "inference.py", SCORE),
    Good("score parquet", "inference.py", SCORE_PARQUET),
    Good("score archive", "inference.py", SCORE_ARCHIVE),
    Good("score skipping", "inference.py", SCORE_BAD),
    Good("score by rate", "inference.py", SCORE | {"data_dir": "data", "val_sim_thres": "fdr:0.4"}),
    Good("score array", "inference.py", SCORE_ARRAY),
    Good("score val", "inference.py", SCORE_VAL),
    Good("weights of table", "util/export_weights.py", WEIGHTS | {"score_file": "scores.tsv"}),
    Good("weights of CSV", "util/export_weights.py", WEIGHTS | {"score_file": "scores.csv", "list_file": "out/l.csv"}),
    Good("weights of parquet", "util/export_weights.py", WEIGHTS | {"score_file": "scores.parquet"}),
    Good("weights of text", "util/export_weights.py", {"score_file": "scores.txt", "output_file": "out/w.txt"}),
    Good("weights of array", "util/export_weights.py", {"score_file": "scores.npy", "output_file": "out/w.gz"}),
    Good("decided weights", "util/export_weights.py", WEIGHTS | {"score_file": "scores.tsv", "decisions": "decided.tsv"}),
    Good("promised classes", "util/export_weights.py", WEIGHTS | PROMISE),
    Good("verify", "util/verify_images.py", VERIFY),
    Good("import", "util/verify_images.py", IMPORT),
    Good("join", "util/join_labels.py", JOIN),
    Good("join text", "util/join_labels.py", JOIN | {"features": "rows.tsv", "class_list": "classes.txt", "split": "val"}),
    Good("draw", "util/draw_examples.py", DRAW),
    Good("features", "util/extract_features.py", EXTRACT | {"output_file": "out/x.tsv", "write_class_list": "out/c"}),
    Good("arrays", "util/extract_features.py", EXTRACT_ARRAY),
    Good("digits", "util/make_digits.py", DIGITS, heavy=True),
    Good("choose", "util/choose_rows.py", CHOOSE | {"verified": "val.tsv,data/train.npy"}),
    Good("choose by scores", "util/choose_rows.py", CHOOSE_BY_SCORES),
    Good("choose for validation", "util/choose_rows.py", CHOOSE_VAL),
    Good("look at data", "util/check_data.py", CHECK | {"images_per_class": 3}),
    Good("summary", "util/summarize_comparisons.py", SUMMARY),
    Good("compare runs", "util/compare_methods.py", COMPARE | {"checkpoint_dirs": "run", "only_cleannet": "true"}),
    Good("compare methods", "util/compare_methods.py", COMPARE, heavy=True),
    Good("train", "train.py", TRAIN, heavy=True),
    Good("resume", "train.py", RESUME, {"out/run": "run"}, heavy=True),
    Good("classify", "util/train_classifier.py", CLASSIFY, heavy=True),
    Good("folds", "util/train_classifier.py", FOLDS, heavy=True),
    Good("combine", "util/combine_scores.py", COMBINE),
    Good("combine and calibrate", "util/combine_scores.py", COMBINE_CALIBRATED),
    Good("estimate noise", "util/estimate_noise.py", ESTIMATE | {"train_npy": "data/train.npy"}),
    Good("alternate", "util/alternate.py", ALTERNATE, heavy=True),
    Good("transfer", "util/transfer_curve.py", TRANSFER, heavy=True),
    # Without Apache Beam it ends before it scores.
    Good("beam", "util/score_beam.py", {"input": "rows.tsv", "output": "out/s", "checkpoint_dir": "run"}),
]


def make_images_and_models(folder):
    """images/<class>/<name>.png, their list.tsv, and .keras files: net.keras, which fits them, and odd_*.keras."""
    import cv2
    import keras

    rng, listed = np.random.default_rng(0), []
    for i, name in enumerate((folder / "classes.txt").read_text().splitlines()[:3] * 3):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / name / f"{i}.png"), rng.integers(0, 255, (9, 9, 3), np.uint8))
        listed.append(f"{name}/{i}.png\t{name}\n")
    (folder / "list.tsv").write_text("".join(sorted(listed)))
    shapes = {
        "net": [(8, 8, 3)], "odd_two_channels": [(8, 8, 2)], "odd_four_channels": [(8, 8, 4)], "odd_vector": [(8,)],
        "odd_any_channels": [(8, 8, None)], "odd_two_inputs": [(8, 8, 3)] * 2, "odd_any_size": [(None, None, 3)],
    }
    for name, inputs_ in shapes.items():
        layers = [keras.Input(shape) for shape in inputs_]
        outputs = [keras.layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else x * 2 for x in layers]
        keras.Model(layers, outputs).save(folder / f"{name}.keras")


def make_small_data(folder):
    """small/: arrays of a few rows, the references of data/, an image of each row, and test.tsv."""
    import cv2

    (folder / "small" / "images" / "img").mkdir(parents=True)
    for split, count in (("train", 20), ("val", 20), ("all", 30)):
        lines = (folder / f"{split}.tsv").read_text().splitlines(keepends=True)[:count]
        (folder / "few.tsv").write_text("".join(lines))
        convert(split, folder / "small", folder / "few.tsv", folder / "classes.txt")
        for i, line in enumerate(lines):
            cv2.imwrite(str(folder / "small" / "x.png"), np.full((9, 9, 3), 7 * i, np.uint8))
            (folder / "small" / "x.png").rename(folder / "small" / "images" / line.split("\t")[0])
    (folder / "small" / "test.tsv").write_text("".join("\t".join(line.split("\t")[:2]) + "\n" for line in lines[:5]))
    (folder / "few.tsv").unlink()
    for name in ("ref.npy", "ref_checksums.json"):
        shutil.copy(folder / "data" / name, folder / "small")


def make_other_formats(folder):
    """The rows of rows.tsv and val.tsv in other formats: rows.csv, rows.parquet, val.parquet, and arrays with a table."""
    found = {name: [line.split("\t") for line in (folder / f"{name}.tsv").read_text().splitlines()] for name in ("rows", "val")}
    for name, listed in found.items():
        columns = dict(zip(("key", "class", "label") if name == "val" else ("key", "class"), zip(*listed)))
        features = np.float32([row[-1].split(",") for row in listed])
        labels = {"label": [int(label) for label in columns["label"]]} if name == "val" else {}
        parquet.write_table(pyarrow.table({**columns, **labels, "feature": list(features)}), folder / f"{name}.parquet")
    lines = [f"{key},{given},{text.replace(',', ' ')}\n" for key, given, text in found["rows"]]
    (folder / "rows.csv").write_text("".join(["key,class,feature\n", *lines]))
    features = np.float32([row[-1].split(",") for row in found["rows"]])
    np.save(folder / "rows.npy", features)
    np.savez_compressed(folder / "rows.npz", feature=features, other=np.zeros(2))
    for name, separator in (("table.csv", ","), ("table.tsv", "\t")):
        rows = [["class", "key"], *([row[1], row[0]] for row in found["rows"])]
        (folder / name).write_text("".join(separator.join(row) + "\n" for row in rows))


def make_world(folder, sample_dir, trained_dir):
    """Makes the files that the good calls read. Returns the folder."""
    shutil.copytree(sample_dir, folder)
    shutil.copytree(trained_dir / "run", folder / "run")
    rows = (folder / "all.tsv").read_bytes().splitlines(keepends=True)
    (folder / "rows.tsv").write_bytes(b"".join(rows[:30]))
    given = [b"\t".join(row.split(b"\t")[:2]) for row in rows[:30]]
    (folder / "to_verify.tsv").write_bytes(b"\n".join(given))
    decisions = (row + b"\t%d\tann\t2026-01-02T03:04:05Z\t\n" % (i % 2) for i, row in enumerate(given[:20]))
    (folder / "decided.tsv").write_bytes(b"".join(decisions))
    decided = b"".join(b",".join([*row.split(b"\t"), b"1"]) + b"\n" for row in given[:9])
    (folder / "x.csv").write_bytes(b"key,class,label\n" + decided)
    (folder / "bad.tsv").write_bytes(b"".join([*rows[:9], b"k\tno class\t1\n", *rows[9:20]]))
    names = (folder / "classes.txt").read_text().splitlines()
    (folder / "held.tsv").write_text(f"{names[1]}\t0\n{names[2]}\t1\n")
    numbers = [f"{i}\t{','.join(str(i + j) for j in range(13))}\n" for i in range(2)]
    (folder / "ref.tsv").write_text("".join(f"{name}\t{text}" for name in names for text in numbers))
    run_script("tests/test_hostile.py", folder)  # what needs Keras and OpenCV, where they are imported already
    make_other_formats(folder)
    make_small_data(folder)
    for suffix in ("tsv", "txt", "npy", "parquet", "csv"):
        table = "text" if suffix in ("txt", "npy") else "tsv"
        flags = SCORE | {"output_file": f"scores.{suffix}", "output_format": table}
        run_script("inference.py", *Case("", Good("", "", flags)).arguments(), cwd=folder)
    val = {"mode": "val", "data_dir": "data", "image_feature_list": None}
    for output, more in {
        "all_scores.tsv": {"image_feature_list": "data/all.npy"}, "val_scores.tsv": val, "val_scores.parquet": {**val, "score": "margin"}
    }.items():
        run_script("inference.py", *Case("", Good("", "", SCORE | more | {"output_file": output})).arguments(), cwd=folder)
    table = [line.split("\t") for line in (folder / "all_scores.tsv").read_text().splitlines()]
    cleaned = [f"{row[0]}\t{row[1]}\t{names[i % 5]}\t{'keep' if i % 2 else 'relabel'}\n" for i, row in enumerate(table[:9])]
    (folder / "cleaned.tsv").write_text("".join(["key\tgiven_class\tsuggested_class\taction\n", *cleaned]))
    (folder / "weights.txt").write_text("".join(f"{i % 3}\n" for i in range(len(table))))
    compare = ["--data_dir=data", "--checkpoint_dirs=run", "--only_cleannet", "--output_dir=c"]
    run_script("util/compare_methods.py", *compare, cwd=folder)
    for name in ("c1.json", "c2.json"):
        shutil.copy(folder / "c" / "comparison.json", folder / name)
    shutil.rmtree(folder / "c")
    (folder / "keras_home").mkdir()
    (folder / "keras_home" / "keras.json").write_text('{"floatx": "float64", "backend": "jax"}')
    return folder


SOON = re.compile("^--.* is (out of range|5,000 digits|1e400|underscore|-inf)$")  # of a number: ends before any work


def choose(found, count, seed, heavy):
    """A fixed choice of `count` cases, evenly from the calls, and of each from its flags, files and environments.

    Only `heavy` of them are of heavy calls or in new interpreters; no other starts a training.
    """
    rng, rank = random.Random(seed), {}

    def place(case):  # the how-many-th case it is of its call's flag or file
        key = case.good.name, re.split(": | is ", case.name)[0]
        rank[key] = rank.get(key, -1) + 1
        return rank[key], rng.random()

    def is_slow(case):
        return case.fresh or (case.good.heavy and not SOON.search(case.name))

    found = rng.sample(found, len(found))
    names = dict.fromkeys(case.good.name for case in found)
    light = [sorted((c for c in found if c.good.name == n and not is_slow(c) and not c.long), key=place) for n in names]
    slow = sorted(filter(is_slow, found), key=place)[:heavy]
    return (slow + [case for row in itertools.zip_longest(*light) for case in row if case])[:count]


class Done(NamedTuple):
    """What a command did. code: its exit code, or None where it was ended after the timeout."""

    code: int | None
    output: str
    errors: str
    seconds: float


class Result(NamedTuple):
    """A case and what is wrong with how its command ended, a list of texts."""

    case: Case
    done: Done
    faults: list

    def __str__(self):
        line = shlex.join([self.case.good.script, *(text[:300] for text in self.case.arguments())])
        what = f"{self.case.good.name}: {self.case.name}\n  {line}\n  {'; '.join(self.faults)}"
        return f"{what}\n  stderr: {self.done.errors[-600:]}"


def tree(folder, below=""):
    """Everything below a folder, {name: (mode, checksum or target of a link)}."""
    found = {}
    for path in sorted((folder / below).rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if stat.S_ISLNK(mode) else ""
        if stat.S_ISREG(mode):
            content = hashlib.sha1(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = mode, content
    return found


def end(pid):
    """Ends a process and its children."""
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            end(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run(case, folder):
    """Runs the command of a case in its folder."""
    began, environment = time.monotonic(), {**os.environ, **case.env}
    timeout = LONG_TIMEOUT if case.long else TIMEOUT
    if case.fresh:
        return run_fresh(case, folder, environment)
    command = Command(case.good.script, *case.arguments(), cwd=folder, env=environment, file_limit=FILE_SIZE)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(command._process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
    try:
        done = command.wait(timeout)
    except subprocess.TimeoutExpired:
        end(command._process.pid)
        done = command.wait()
        return Done(None, done.stdout, done.stderr, time.monotonic() - began)
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def run_fresh(case, folder, environment):
    """Runs the command of a case in a new interpreter, with the stream closed that the case names."""
    began, closed = time.monotonic(), f" {case.close}>&-" if case.close else ""
    line = ["sh", "-c", f'exec "$@"{closed}', "sh", sys.executable, str(ROOT / case.good.script), *case.arguments()]
    try:
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Done(None, "", "", time.monotonic() - began)
    texts = [text.decode(errors="replace") for text in (done.stdout, done.stderr)]
    return Done(done.returncode, *texts, time.monotonic() - began)


def check(case, done, before, after, folder, expected):
    """What is wrong with how the command of a case ended. expected: folder of the good call's output, or None."""
    faults = []
    if done.code is None:
        return [] if case.long else ["hangs"]
    if "Traceback" in done.output + done.errors:
        faults.append("a traceback")
    if done.code and (done.code == 70 or done.code < 0):
        faults.append(f"exit code {done.code}")
    if "not enough memory" in done.errors:
        faults.append("asks for too much memory")
    lines = [line for line in done.errors.splitlines() if line.strip() and not ASIDE.search(line)]
    name = os.path.basename(case.good.script)
    if done.code and case.close != 2 and (len(lines) != 1 or not lines[0].startswith(f"{name}: error: ")):
        faults.append(f"{len(lines)} lines on stderr, not one error")
    if any("\x1b" in line for line in lines):
        faults.append("an escape reaches the terminal")
    kept = [path for path in before if not path.startswith("out") or (done.code and not case.good.copies)]
    changed = [path for path in kept if after.get(path) != before[path]]
    if changed:
        what = "older output damaged" if changed[0].startswith("out") else "input changed"
        faults.append(f"{what}: {', '.join(changed[:3])}")
    left = [path for path in after if path not in before and TEMPORARY.search(path)]
    if left:
        faults.append(f"left behind: {', '.join(left[:3])}")
    if done.code == 0:
        faults += ["ends well all the same"] if case.refused else []
        files = [path for path in before if path in after and stat.S_ISREG(before[path][0])]
        opened = [path for path in files if before[path][0] != after[path][0]]
        faults += [f"another file mode: {', '.join(opened[:3])}"] if opened else []
        odd = [path for path in before if path in after and stat.S_IFMT(before[path][0] ^ after[path][0])]
        odd = [path for path in odd if before[path][1] != os.path.basename(path)]  # a link to itself is no loss
        faults += [f"a link or device is replaced: {', '.join(odd[:3])}"] if odd else []
        new = [folder / path for path in after if path.startswith("out/") and after[path] != before.get(path)]
        faults += wrong_numbers(case, done, [path for path in new if path.is_file()])
        if case.same and expected and "warning: " not in done.errors and not same_outputs(folder, expected):
            faults.append("silently wrong: another output than that of the good call")
    return faults


def wrong_numbers(case, done, paths):
    """Faults of the numbers in new outputs: not finite without a word, or all the same."""
    if "warning: " in done.errors or "skip" in case.good.name:  # a row without a score is documented
        return []
    faults, scores = [], case.good.script in ("inference.py", "util/export_weights.py")
    for path in [path for path in paths if ".rejected." not in path.name]:
        if path.suffix == ".npy":
            numbers = np.load(path, allow_pickle=False).ravel()
        elif scores and path.suffix in (".txt", ".tsv"):
            columns = [line.split("\t") for line in path.read_text(errors="replace").splitlines()]
            numbers = np.float64([row[0] if len(row) == 1 else row[2] for row in columns if len(row) not in (2, 3, 4, 6)])
        else:
            numbers = np.float64([np.nan if "json" in path.suffix and NOT_FINITE.search(path.read_bytes()) else 0])
        if not np.isfinite(numbers).all():
            faults.append(f"numbers that are not finite in {path.name}")
        if case.good.script == "inference.py" and len(numbers) > 5 and np.ptp(numbers) == 0:
            faults.append(f"all scores are equal in {path.name}")
    return faults


def same_outputs(folder, expected):
    """Whether two folders hold the same below out/, but for what varies."""
    found = [{p: c[1] for p, c in tree(at, "out").items() if not VARIES.search(p)} for at in (folder, expected)]
    return found[0] == found[1]


def run_case(case, world, good_outputs, base, number):
    """Runs a case in a copy of the world. good_outputs: {name of a good call: folder that holds its out/}."""
    folder, expected = base / str(number), good_outputs.get(case.good.name)
    shutil.copytree(world, folder, symlinks=True)
    if not case.good.heavy and expected:  # the output of an earlier call
        shutil.copytree(expected / "out", folder / "out", dirs_exist_ok=True)
        for path in filter(pathlib.Path.is_file, (folder / "out").rglob("*")):
            path.chmod(0o600)
    for to, of in case.good.copies.items():
        shutil.copytree(folder / of, folder / to)
    (folder / "out").mkdir(exist_ok=True)
    if case.change:
        case.change(folder)
    before = tree(folder)
    done = run(case, folder)
    result = Result(case, done, check(case, done, before, tree(folder), folder, expected))
    shutil.rmtree(folder, ignore_errors=True)
    return result


def run_cases(chosen, world, good_outputs, base):
    """Runs cases, two at a time. Returns their Results."""
    base.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: run_case(pair[1], world, good_outputs, base, pair[0]), enumerate(chosen)))


def run_good_calls(goods, world, base):
    """Runs good calls; each must end well. Returns {name: folder that holds its out/}."""
    def run_one(good):
        folder = base / good.name
        shutil.copytree(world, folder)
        (folder / "out").mkdir()
        for to, of in good.copies.items():
            shutil.copytree(folder / of, folder / to)
        done = run(Case("good", good), folder)
        assert done.code == 0 or good.name == "beam", f"{good.name}: {done.errors}"
        return good.name, folder

    base.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return {name: folder for name, folder in pool.map(run_one, goods) if name != "beam"}


def outputs_of(good_outputs):
    """Names of the files that the good calls write, {name of the call: list}."""
    found = {}
    for name, folder in good_outputs.items():
        found[name] = [path for path in tree(folder, "out") if (folder / path).is_file()][:12]
    return found


@pytest.fixture(scope="module")
def world(sample_dir, trained_dir, tmp_path_factory):
    """The folder of small files that the good calls read."""
    return make_world(tmp_path_factory.mktemp("hostile") / "world", sample_dir, trained_dir)


def assert_no_faults(world, goods, base, count, **choice):
    """Makes the cases of all calls, with the outputs of `goods` at hand, and checks a choice of them."""
    good_outputs = run_good_calls(goods, world, base / "good")
    chosen = choose(list(cases(GOODS, world, outputs_of(good_outputs))), count, **choice)
    assert {case.good.script for case in chosen} == {good.script for good in GOODS}
    assert len(chosen) == count
    bad = [str(result) for result in run_cases(chosen, world, good_outputs, base / "cases") if result.faults]
    assert not bad, f"{len(bad)} of {count} cases:\n\n" + "\n\n".join(bad)


def test_every_command_is_covered():
    """The good calls are of every command that there is."""
    assert {ROOT / good.script for good in GOODS} == set(command_paths())


def test_a_hundred_cases(world, tmp_path):
    """A fixed 100 of the cases, some of every command; none starts a training."""
    assert_no_faults(world, [good for good in GOODS if not good.heavy], tmp_path, 100, seed=16, heavy=0)


@pytest.mark.slow
def test_two_thousand_cases(world, tmp_path):
    """A fixed 2,400 of the cases, trainings and other environments among them."""
    assert_no_faults(world, GOODS, tmp_path, 2400, seed=2018, heavy=250)


if __name__ == "__main__":
    make_images_and_models(pathlib.Path(sys.argv[1]))
