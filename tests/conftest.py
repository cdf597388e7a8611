"""What the tests share: running the scripts as a user does, and small data of odd sizes."""
import importlib
import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

try:
    import fcntl
except ImportError:  # Windows: every worker makes its own data
    fcntl = None

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports TensorFlow
from commands import ROOT, run_command

sys.path.insert(0, str(ROOT))

# The files that take longest, in this order, so that the last to end are short ones.
LONGEST = ("test_docs.py", "test_crash.py", "test_bad_input.py", "test_train.py", "test_extract_features.py")
CLASSES = ["apple pie", "ramen", "sushi", "waffles", "tacos"]
IMG_DIM, NUM_REF = 13, 7


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; commands would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.loadscopereorder = False  # of xdist, which would put files with many tests first


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def run_script(script, *arguments, check=True, **keywords):
    """Runs a command as run_command does. check: it must end well. Returns the finished process."""
    done = run_command(script, *arguments, **keywords)
    if check and done.returncode:
        raise AssertionError(f"{script} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def write_rows(path, rows):
    """Writes tab-separated rows; the last column of each is a sequence of numbers."""
    text = "".join("\t".join([*map(str, row[:-1]), ",".join(f"{x:.6g}" for x in row[-1])]) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def make_rows(num_rows, seed=0, noise=0.3, url=False):
    """Rows of clusters with wrong labels: (key, [url,] class name, 1 = label correct, feature)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).random((len(CLASSES), IMG_DIM)) * 4
    rows = []
    for i in range(num_rows):
        given = rng.integers(len(CLASSES))
        true = (given + rng.integers(1, len(CLASSES))) % len(CLASSES) if rng.random() < noise else given
        feature = np.abs(centres[true] + rng.normal(size=IMG_DIM) * 0.4)
        rows.append([f"img/{seed}_{i:04d}.jpg", *([f"http://images/{i}"] if url else []), CLASSES[given], int(true == given), feature])
    return rows


def unverified(rows):
    """The rows without their verification label."""
    return [[*row[:-2], row[-1]] for row in rows]


def convert(split, data_dir, path, class_list, *more, **keywords):
    """Runs convert_data.py on the rows of a file. Returns the finished process."""
    return run_script(
        "util/convert_data.py", f"--split={split}", f"--class_list={class_list}", f"--data_path={path}", f"--output_dir={data_dir}",
        *more, **keywords,
    )


def find_references(data_dir, class_list, num_ref, *more, **keywords):
    """Runs find_reference.py on the all.npy of a folder, for the same folder. Returns the finished process."""
    return run_script(
        "util/find_reference.py", f"--class_list={class_list}", f"--input_npy={data_dir}/all.npy", f"--output_dir={data_dir}",
        f"--num_ref={num_ref}", *more, **keywords,
    )


def convert_all(data_dir, folder):
    """Converts train.tsv, val.tsv and all.tsv of a folder that has classes.txt too."""
    for split in ("train", "val", "all"):
        convert(split, data_dir, f"{folder}/{split}.tsv", f"{folder}/classes.txt")


def train_arguments(data_dir, folder, **flags):
    """Arguments of a short training; `flags` override, None leaves one out."""
    flags = {
        "data_dir": data_dir, "checkpoint_dir": f"{folder}/run", "log_dir": f"{folder}/log", "n_step": 30, "val_interval": 10,
        "log_interval": 5, "batch_size_sup": 8, "batch_size_unsup": 6, "dropout_rate": 0.2, **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def history(run):
    """The validations of a run folder, a list of dicts."""
    return [json.loads(line) for line in (pathlib.Path(run) / "validation.jsonl").read_text().splitlines()]


def weights(run, step):
    """All tensors of a checkpoint by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(pathlib.Path(run) / f"step-{step:08d}" / "ckpt"))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


def assert_same_weights(one, other, step):
    """Two run folders have the same weights and momentum at a step, bit for bit."""
    first, second = weights(one, step), weights(other, step)
    assert first
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_same_run(one, other, step):
    """Two run folders end with the same weights, momentum, best checkpoint and history, bit for bit."""
    assert_same_weights(one, other, step)
    kept = [f"step-{step:08d}/{path.name}" for path in (pathlib.Path(one) / f"step-{step:08d}").glob("*.npy")]
    for name in ("validation.jsonl", "best.json", *kept):
        assert (pathlib.Path(one) / name).read_bytes() == (pathlib.Path(other) / name).read_bytes()


def load_command(name):
    """Imports the module of a command, e.g. `inference`, without its flags, which another command may define too."""
    from absl import flags

    module = importlib.import_module(name)
    for flag in flags.FLAGS.get_flags_for_module(name):
        delattr(flags.FLAGS, flag.name)
    return module


def made_once(tmp_path_factory, name, make):
    """The folder `name`, for reading only. The first xdist worker to ask makes it with make(folder); the others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if fcntl and "PYTEST_XDIST_WORKER" in os.environ else base
    folder, complete = base / name, base / f"{name}.complete"
    with open(base / f"{name}.lock", "w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


def make_sample(folder):
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_rows(folder / "train.tsv", make_rows(89, seed=1))
    write_rows(folder / "val.tsv", make_rows(67, seed=2))
    write_rows(folder / "all.tsv", unverified(make_rows(211, seed=3)))
    convert_all(folder / "data", folder)
    find_references(folder / "data", folder / "classes.txt", NUM_REF)


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """A folder with TSVs and arrays of 5 classes."""
    return made_once(tmp_path_factory, "sample", make_sample)


@pytest.fixture(scope="session")
def trained_dir(sample_dir, tmp_path_factory):
    """A folder with `run` and `log` of a short training on sample_dir."""
    def make(folder):
        run_script("train.py", *train_arguments(sample_dir / "data", folder, n_step=60, val_interval=20))

    return made_once(tmp_path_factory, "trained", make)


def make_digits(folder):
    data = folder / "data"
    run_script("util/make_digits.py", f"--output_dir={data}", "--image_size=16")
    convert_all(data, data)
    find_references(data, data / "classes.txt", 16)
    run_script(
        "train.py", f"--data_dir={data}", f"--checkpoint_dir={folder}/run", f"--log_dir={folder}/log", "--n_step=3000",
        "--val_interval=1000",
    )
    score_digits(folder, folder / "scores.tsv", "--output_format=tsv")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The demo, shorter: data, run, log, and scores.tsv of every row."""
    return made_once(tmp_path_factory, "digits", make_digits)


def score_digits(digits, path, *more):
    """Scores all rows of the digits into a file. Returns its path."""
    run_script(
        "inference.py", f"--image_feature_list={digits}/data/all.tsv", f"--checkpoint_dir={digits}/run", f"--output_file={path}", *more
    )
    return path


def read_table(path):
    """The lines of a table of scores, a list of {column: text}."""
    columns = ("key", "class", "cosine", "margin", "probability", "verdict", "nearest_class", "nearest_cosine")
    return [dict(zip(columns, line.split("\t"))) for line in path.read_text().splitlines()]


def truth(digits):
    """The true class of every digit, {key: name}."""
    return dict(line.split("\t") for line in (digits / "data" / "truth.tsv").read_text().splitlines())
