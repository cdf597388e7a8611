"""Killed, interrupted, out of room: nothing is lost and nothing half-written has a final name."""
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, ROOT, run_script, train_arguments
from test_train import assert_same_run

LONG_RUN = {"n_step": 600, "val_interval": 20, "log_interval": 50, "class_embedding": "rows"}


def start(script, *arguments, limit=None):
    """Starts a script; limit: bytes that it may write to one file."""
    preexec = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    command = [sys.executable, "-u", str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=preexec)


@pytest.fixture(scope="module")
def undisturbed(sample_dir, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_script("train.py", *train_arguments(sample_dir / "data", folder, **LONG_RUN))
    return folder


def latest_step(folder):
    return max((int(path.name[5:]) for path in (folder / "run").glob("step-*")), default=0)


def train_with_kills(sample_dir, expected, tmp_path, flags, kills, seed):
    """Kills the training again and again, each time at a random moment after it got on, and lets it finish."""
    rng = random.Random(seed)
    arguments = train_arguments(sample_dir / "data", tmp_path, **flags)
    reached = []
    for _ in range(kills):
        before = latest_step(tmp_path)
        process = start("train.py", *arguments)
        while process.poll() is None and latest_step(tmp_path) == before:
            time.sleep(0.002)  # until it has saved, so that every life gets on
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
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
    process = start("train.py", *arguments)
    for line in process.stdout:
        if line.startswith("step 20:"):
            process.send_signal(number)
            break
    output, errors = process.communicate()
    assert process.returncode == code, errors
    assert "the same command goes on from there" in output
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


def kill_while_writing(command, output, expected, kills, seed):
    """Kills a command at random moments: its output is never there in part. Returns how often it was there whole."""
    rng, whole = random.Random(seed), 0
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - began
    assert output.read_bytes() == expected
    for _ in range(kills):
        output.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=duration * rng.uniform(0.3, 1.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if output.exists():
            assert output.read_bytes() == expected
            whole += 1
    subprocess.run(command, check=True, capture_output=True)
    assert not list(output.parent.glob(f".{output.name}*")), "what a killed process left is not cleared away"
    return whole


@pytest.fixture(scope="module")
def large_rows(tmp_path_factory):
    """20 MB of rows."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("large") / "rows.tsv"
    text = [",".join(f"{x:.6g}" for x in rng.random(IMG_DIM)) for _ in range(100)]
    path.write_text("".join(f"k{i}\t{CLASSES[i % 5]}\t{text[i % 100]}\n" for i in range(150_000)))
    return path


def convert_command(sample_dir, rows_path, out):
    return [
        sys.executable, str(ROOT / "util/convert_data.py"), "--split=all", f"--class_list={sample_dir}/classes.txt",
        f"--data_path={rows_path}", f"--output_dir={out}",
    ]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_convert_killed(sample_dir, large_rows, tmp_path, kills):
    command = convert_command(sample_dir, large_rows, tmp_path)
    subprocess.run(command, check=True, capture_output=True)
    kill_while_writing(command, tmp_path / "all.npy", (tmp_path / "all.npy").read_bytes(), kills, seed=1)


@pytest.mark.slow
def test_inference_killed(trained_dir, large_rows, tmp_path):
    command = [
        sys.executable, str(ROOT / "inference.py"), f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={large_rows}",
        f"--output_file={tmp_path}/pred.txt",
    ]
    subprocess.run(command, check=True, capture_output=True)
    kill_while_writing(command, tmp_path / "pred.txt", (tmp_path / "pred.txt").read_bytes(), 20, seed=2)


def test_convert_without_room(sample_dir, tmp_path):
    command = convert_command(sample_dir, sample_dir / "all.tsv", tmp_path)
    run_script(*[str(a) for a in command[1:]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    process = start(*command[1:], limit=5000)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "cannot write: File too large; nothing was changed, make room and run again" in errors
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run_script(*[str(a) for a in command[1:]])


def test_checkpoint_without_room(sample_dir, undisturbed, tmp_path):
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, **{**LONG_RUN, "n_step": 60}))
    arguments = train_arguments(sample_dir / "data", tmp_path, **LONG_RUN)
    process = start("train.py", *arguments, limit=500_000)
    errors = process.communicate()[1]
    assert process.returncode == 1, errors
    assert "cannot save this checkpoint" in errors
    assert "Traceback" not in errors
    assert sorted(p.name for p in (tmp_path / "run").glob("*step-*"))[-1] == "step-00000060"
    run_script("train.py", *arguments)
    assert_same_run(undisturbed / "run", tmp_path / "run", LONG_RUN["n_step"])


def test_inference_without_room(trained_dir, large_rows, tmp_path):
    (tmp_path / "pred.txt").write_text("older")
    process = start(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={large_rows}",
        f"--output_file={tmp_path}/pred.txt", limit=100_000,
    )
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "pred.txt: cannot write: File too large" in errors
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
        done = subprocess.run(convert_command(sample_dir, large_rows, small / "out"), capture_output=True, text=True)
        assert done.returncode == 1
        assert "cannot write: No space left on device" in done.stderr
        assert not list((small / "out").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
