"""What the tests share: running the scripts as a user does, and small data of odd sizes."""
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASSES = ["apple pie", "ramen", "sushi", "waffles", "tacos"]
IMG_DIM, NUM_REF = 13, 7


def run_script(script, *arguments, check=True, **keywords):
    """Runs a script of the suite with `--name=value` arguments. Returns the finished process, output as text."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, **keywords
    )
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


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """A folder with TSVs and arrays of 5 classes: made once, for reading only."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_rows(folder / "train.tsv", make_rows(89, seed=1))
    write_rows(folder / "val.tsv", make_rows(67, seed=2))
    write_rows(folder / "all.tsv", unverified(make_rows(211, seed=3)))
    for split in ("train", "val", "all"):
        run_script(
            "util/convert_data.py", f"--split={split}", f"--class_list={folder}/classes.txt", f"--data_path={folder}/{split}.tsv",
            f"--output_dir={folder}/data",
        )
    run_script(
        "util/find_reference.py", f"--class_list={folder}/classes.txt", f"--input_npy={folder}/data/all.npy",
        f"--output_dir={folder}/data", f"--num_ref={NUM_REF}",
    )
    return folder


def train_arguments(data_dir, folder, **flags):
    """Arguments of a short training; `flags` override."""
    flags = {
        "data_dir": data_dir, "checkpoint_dir": f"{folder}/run", "log_dir": f"{folder}/log", "n_step": 30, "val_interval": 10,
        "log_interval": 5, "batch_size_sup": 8, "batch_size_unsup": 6, "dropout_rate": 0.2, **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="session")
def trained_dir(sample_dir, tmp_path_factory):
    """A folder with `run`, a short training on sample_dir: made once, for reading only."""
    folder = tmp_path_factory.mktemp("trained")
    run_script("train.py", *train_arguments(sample_dir / "data", folder, n_step=60, val_interval=20))
    return folder
