"""Killed, interrupted, out of room: nothing is lost and nothing half-written has a final name."""
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from commands import Command
from conftest import CLASSES, IMG_DIM, assert_same_run, run_script, train_arguments

LONG_RUN = {"n_step": 600, "val_interval": 20, "log_interval": 50, "class_embedding": "rows"}


@pytest.fixture(scope="module")
def undisturbed(sample_dir, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_script("train.py", *train_arguments(sample_dir / "data", folder, **LONG_RUN))
    return folder


def latest_step(folder):
    return max((int(path.name[5:]) for path in (folder / "run").glob("step-*")), default=0)


def train_with_kills(sample_dir, expected, tmp_path, flags, kills, seed):
    """Kills the training `kills` times, each time at a random moment after it has saved once more, and lets it finish."""
    rng = random.Random(seed)
    arguments = train_arguments(sample_dir / "data", tmp_path, **flags)
    reached = []
    for _ in range(kills):
        before = latest_step(tmp_path)
        training = Command("train.py", *arguments)
        while training.is_running() and latest_step(tmp_path) == before:
            time.sleep(0.002)  # until it has saved, so that every life gets on
        time.sleep(rng.uniform(0, 0.5))
        training.send_signal(signal.SIGKILL)
        training.wait()
        reached.append(latest_step(tmp_path))
    print("\nlatest checkpoint after each kill:", reached)
    assert reached[-1] < flags["n_step"], "killed too late to show anything"
    run_script("train.py", *arguments)
    assert_same_run(expected / "run", tmp_path / "run", flags["n_step"])
    assert not list((tmp_path / "run").glob(".step*")), "left behind by a kill inside a save"


def test_training_killed_twice_ends_the_same(sample_dir, undisturbed, tmp_path):
    train_with_kills(sample_dir, undisturbed, tmp_path, LONG_RUN, kills=2, seed=2)


@pytest.mark.slow
def test_training_killed_twenty_times_ends_the_same(sample_dir, tmp_path):
    flags = {**LONG_RUN, "n_step": 6000}
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path / "undisturbed", **flags))
    train_with_kills(sample_dir, tmp_path / "undisturbed", tmp_path / "killed", flags, kills=20, seed=20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(sample_dir, undisturbed, tmp_path, number, code):
    arguments = train_arguments(sample_dir / "data", tmp_path, **LONG_RUN)
    training = Command("train.py", *arguments)
    while training.is_running() and "\nstep 20:" not in training.output()[0]:
        time.sleep(0.01)
    training.send_signal(number)
    done = training.wait()
    assert done.returncode == code, done.stderr
    assert "the same command resumes there" in done.stdout
    assert (tmp_path / "run" / f"step-{latest_step(tmp_path):08d}" / "class_embeddings.npy").exists()
    run_script("train.py", *arguments)
    assert_same_run(undisturbed / "run", tmp_path / "run", LONG_RUN["n_step"])


def test_a_checkpoint_cut_off_is_passed_over(sample_dir, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    data = next((tmp_path / "run" / "step-00000600").glob("ckpt.data*"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    done = run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, **LONG_RUN))
    assert "trying the one before" in done.stderr
    assert "from step 580 to 600" in done.stdout
    assert_same_run(undisturbed / "run", tmp_path / "run", LONG_RUN["n_step"])


def kill_while_writing(command, output, kills, seed):
    """Kills a command at random moments: its output is whole whenever it is there. command: a script and its arguments."""
    run_script(*command)
    expected = output.read_bytes()
    began = time.monotonic()
    run_script(*command)
    duration = time.monotonic() - began
    assert output.read_bytes() == expected
    rng = random.Random(seed)
    for _ in range(kills):
        output.unlink(missing_ok=True)
        running = Command(*command)
        try:
            running.wait(timeout=duration * rng.uniform(0.3, 1.1))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
        if output.exists():
            assert output.read_bytes() == expected
    run_script(*command)
    assert not list(output.parent.glob(f".{output.name}*")), "what a killed process left is not cleared away"


@pytest.fixture(scope="module")
def large_rows(tmp_path_factory):
    """20 MB of rows."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("large") / "rows.tsv"
    text = [",".join(f"{x:.6g}" for x in rng.random(IMG_DIM)) for _ in range(100)]
    path.write_text("".join(f"k{i}\t{CLASSES[i % 5]}\t{text[i % 100]}\n" for i in range(150_000)))
    return path


def convert_command(sample_dir, rows_path, out):
    """The script and the arguments that convert a file of unverified rows."""
    return (
        "util/convert_data.py", "--split=all", f"--class_list={sample_dir}/classes.txt", f"--data_path={rows_path}", f"--output_dir={out}"
    )


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_convert_killed(sample_dir, large_rows, tmp_path, kills):
    kill_while_writing(convert_command(sample_dir, large_rows, tmp_path), tmp_path / "all.npy", kills, seed=1)


@pytest.mark.slow
def test_inference_killed(trained_dir, large_rows, tmp_path):
    command = (
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={large_rows}", f"--output_file={tmp_path}/pred.txt"
    )
    kill_while_writing(command, tmp_path / "pred.txt", 20, seed=2)


def test_convert_without_room(sample_dir, tmp_path):
    command = convert_command(sample_dir, sample_dir / "all.tsv", tmp_path)
    run_script(*command)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run_script(*command, file_limit=5000, check=False)
    assert done.returncode == 1
    assert "cannot write: File too large; what was there is as before, make room and run again" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run_script(*command)


def test_checkpoint_without_room(sample_dir, undisturbed, tmp_path):
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, **{**LONG_RUN, "n_step": 60}))
    arguments = train_arguments(sample_dir / "data", tmp_path, **LONG_RUN)
    done = run_script("train.py", *arguments, file_limit=500_000, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot save this checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "run").glob("*step-*"))[-1] == "step-00000060"
    run_script("train.py", *arguments)
    assert_same_run(undisturbed / "run", tmp_path / "run", LONG_RUN["n_step"])


def test_inference_without_room(trained_dir, large_rows, tmp_path):
    (tmp_path / "pred.txt").write_text("older")
    done = run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={large_rows}",
        f"--output_file={tmp_path}/pred.txt", file_limit=100_000, check=False,
    )
    assert done.returncode == 1
    assert "pred.txt: cannot write: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pred.txt"]
    assert (tmp_path / "pred.txt").read_text() == "older"


@pytest.mark.slow
def test_convert_on_a_full_disk(sample_dir, large_rows, tmp_path):
    """A tmpfs too small for the output, where one can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        done = run_script(*convert_command(sample_dir, large_rows, small / "out"), check=False)
        assert done.returncode == 1
        assert "cannot write: No space left on device" in done.stderr
        assert not list((small / "out").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
