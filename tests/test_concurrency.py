"""Two processes that write one output: each ends well or says who else writes it, and the result is of one alone."""
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from commands import ROOT, Command
from conftest import run_script, weights

DELAY = "trace=rename,renameat,renameat2,link", "inject=rename,renameat,renameat2:delay_enter=200000"  # microseconds


class Pair(NamedTuple):
    """Two commands that write one output, each a script and its arguments. heavy: they import TensorFlow."""

    first: list
    second: list
    heavy: bool = False


CONVERT = ["util/convert_data.py", "--split=all", "--output_dir=out", "--class_list=classes.txt"]
VERIFIED = ["util/convert_data.py", "--split=val", "--class_list=classes.txt", "--output_dir=out"]
REFERENCE = [
    "util/find_reference.py", "--class_list=classes.txt", "--input_npy=data/all.npy", "--output_dir=out", "--num_ref=7",
]
WEIGHTS = ["util/export_weights.py", "--score_file=scores.tsv", "--output_file=out/w.npy", "--list_file=out/l.tsv"]
HELDOUT = ["util/heldout_train_data.py", "--input_file=val.tsv", "--output_file=out/val.tsv"]
TRAIN = [
    "train.py", "--data_dir=data", "--checkpoint_dir=out/run", "--n_step=20", "--val_interval=5", "--log_interval=5",
    "--max_to_keep=2",
]
SCORE = ["inference.py", "--checkpoint_dir=run", "--output_file=out/scores.tsv", "--output_format=tsv"]
MEASURE = [
    "inference.py", "--checkpoint_dir=run", "--mode=val", "--data_dir=data", "--output_file=out/s.txt",
    "--report_dir=out",
]
EXTRACT = [
    "util/extract_features.py", "--image_dir=images", "--keras_model=net.keras", "--crop=8", "--batch_size=1",
    "--output_file=out/x.tsv",
]
COMPARE = ["util/compare_methods.py", "--data_dir=data", "--output_dir=out", "--checkpoint_dirs=run", "--only_cleannet"]
PAIRS = {
    "the same array": Pair([*CONVERT, "--data_path=many.tsv"], [*CONVERT, "--data_path=reversed.tsv"]),
    "arrays of two class lists": Pair(
        [*CONVERT, "--data_path=many.tsv"], [*CONVERT, "--data_path=many.tsv", "--class_list=other.txt"]
    ),
    "small arrays": Pair([*VERIFIED, "--data_path=val.tsv"], [*VERIFIED, "--data_path=train.tsv"]),
    "references": Pair([*REFERENCE, "--seed=1"], [*REFERENCE, "--seed=2"]),
    "weights and list": Pair([*WEIGHTS, "--weights=soft"], [*WEIGHTS, "--weights=hard", "--val_sim_thres=0.9"]),
    "rows left out": Pair([*HELDOUT, "--heldout_class_list=a.tsv"], [*HELDOUT, "--heldout_class_list=b.tsv"]),
    "runs": Pair([*TRAIN, "--log_dir=log1"], [*TRAIN, "--log_dir=log2", "--momentum=0.5"], heavy=True),
    "scores": Pair(
        [*SCORE, "--image_feature_list=many.tsv"], [*SCORE, "--image_feature_list=reversed.tsv"], heavy=True
    ),
    "reports": Pair(MEASURE, [*MEASURE, "--score=margin"], heavy=True),
    "features": Pair([*EXTRACT, "--resize=8"], [*EXTRACT, "--resize=16"], heavy=True),
    "comparisons": Pair(COMPARE, [*COMPARE, "--heldout_class_list=a.tsv"], heavy=True),
}


@pytest.fixture(scope="module")
def world(sample_dir, trained_dir, tmp_path_factory):
    """The inputs of all pairs, with rows enough that two conversions meet."""
    folder = tmp_path_factory.mktemp("concurrent") / "world"
    shutil.copytree(sample_dir, folder)
    shutil.copytree(trained_dir / "run", folder / "run")
    rows = (folder / "all.tsv").read_text().splitlines()
    many = [f"{i}-{row}\n" for i in range(60) for row in rows]
    names = (folder / "classes.txt").read_text().splitlines()
    texts = {
        "many.tsv": "".join(many), "reversed.tsv": "".join(many[::-1]), "other.txt": "\n".join(names[::-1]) + "\n",
        "a.tsv": f"{names[0]}\t0\n", "b.tsv": f"{names[1]}\t0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    run_script("tests/test_hostile.py", folder)  # images and models
    table = ["--image_feature_list=all.tsv", "--output_file=scores.tsv", "--output_format=tsv"]
    run_script("inference.py", "--checkpoint_dir=run", *table, cwd=folder)
    return folder


def contents(folder):
    """The files below a folder, {name: bytes}; of a checkpoint its tensors, whose order in the file may vary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if "ckpt" not in path.name}
    for path in files:
        if path.name == "ckpt.index":
            tensors = weights(path.parent.parent, int(path.parent.name.removeprefix("step-"))).items()
            found[str(path.relative_to(folder))] = {name: np.asarray(value).tobytes() for name, value in tensors}
    return found


def start(command, folder, held):
    """Starts a command in a folder; held: with a delay at each rename, under strace."""
    if not held:
        return Command(*command, cwd=folder)
    hold = ["strace", "-f", "-qq", "-o", os.devnull, "-e", DELAY[0], "-e", DELAY[1]]
    line = [*hold, sys.executable, str(ROOT / command[0]), *command[1:]]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Waits for what start() returned. Returns (exit code, lines on stderr but warnings)."""
    if isinstance(process, Command):
        done = process.wait(timeout=120)
        code, errors = done.returncode, done.stderr
    else:
        _, errors = process.communicate(timeout=120)
        code = process.returncode
    return code, [line for line in errors.splitlines() if "warning: " not in line]


def fresh(world, folder):
    """A copy of the world with an empty out/."""
    shutil.copytree(world, folder)
    (folder / "out").mkdir()
    return folder


def outputs_alone(pair, world, base):
    """What each command of a pair writes when it is alone, two dicts."""
    found = []
    for number, command in enumerate(pair[:2]):
        folder = fresh(world, base / f"alone {number}")
        code, errors = finish(start(command, folder, held=False))
        assert code == 0, errors
        found.append(contents(folder / "out"))
    assert found[0] != found[1], "the two write the same, which shows nothing"
    return found


def meet(pair, world, folder, alone, held):
    """Starts both commands of a pair together and checks how they end. Returns whether one stopped for the other."""
    fresh(world, folder)
    ends = [finish(process) for process in [start(command, folder, held) for command in pair[:2]]]
    assert 0 in [code for code, _ in ends], f"neither ended well: {ends}"
    for (code, errors), command in zip(ends, pair[:2]):
        name = os.path.basename(command[0])
        assert code in (0, 1), (command, errors)
        assert code == 0 or (len(errors) == 1 and errors[0].startswith(f"{name}: error: ")), (command, errors)
        if code and "process" in errors[0]:
            assert "(process " in errors[0], "the line does not say which process it is"
    found = contents(folder / "out")
    sources = {name: [one.get(name) == content for one in alone] for name, content in found.items()}
    assert found in alone, f"a mixture: {ends}; of (first, second): {sources}"
    for (code, _), own in zip(ends, alone):
        assert code == 0 or found != own, f"one stopped, yet its output is there: {ends}"
    shutil.rmtree(folder)
    return any(code for code, _ in ends)


def meet_often(name, world, base, times, held=False):
    """A pair of commands meets `times` times."""
    pair = PAIRS[name]
    alone = outputs_alone(pair, world, base)
    stopped = sum(meet(pair, world, base / str(i), alone, held) for i in range(times))
    print(f"\n{name}: {times} times, one stopped for the other in {stopped}")


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if not pair.heavy])
def test_two_light_writers(world, tmp_path, name):
    """Of two that write one output, one stops or comes second, and nothing of the two is mixed."""
    meet_often(name, world, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_writers_twenty_times(world, tmp_path, name):
    """The same for every pair of writers, trainings among them."""
    meet_often(name, world, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("name", PAIRS)
def test_two_writers_held_at_their_renames(world, tmp_path, name):
    """The same with a delay before each rename, so that the two meet in the middle of what they write."""
    meet_often(name, world, tmp_path, 2 if PAIRS[name].heavy else 20, held=True)
