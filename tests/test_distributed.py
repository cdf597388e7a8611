"""Several devices and several workers: the numbers of one device, and what happens when a worker dies."""
import json
import os
import signal
import socket
import time

import numpy as np
import pytest
from commands import Command
from conftest import assert_same_run, history, read_table, run_script, train_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLASSIFIER = "util/train_classifier.py"
SHORT = {"n_step": 50, "val_interval": 25, "log_interval": 1, "deterministic": True, "class_embedding": "rows"}


def dropout(rate):
    """Dropout of the reference and of the query encoder."""
    return {"dropout_rate": rate, "query_dropout_rate": rate}


def losses(folder):
    """The loss of every step, as the summaries have it."""
    events = EventAccumulator(str(folder / "log" / "train"), size_guidance={"tensors": 0}).Reload()
    return np.array([float(np.frombuffer(e.tensor_proto.tensor_content, np.float32)[0]) if e.tensor_proto.tensor_content
                     else e.tensor_proto.float_val[0] for e in events.Tensors("loss/total")])


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_workers(script, arguments, *of_the_second):
    """Starts two workers of a script on loopback. of_the_second: arguments that the first does not get. Returns two Commands."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    commands = []
    for index in range(2):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        more = of_the_second if index else ()
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        commands.append(Command(script, *arguments, *more, "--strategy=multi_worker", env=environment))
    return commands


def finish(commands):
    """Waits for Commands, which must end well."""
    for done in [command.wait() for command in commands]:
        assert done.returncode == 0, done.stderr


def kill_one(script, arguments, victim, when):
    """Kills a worker once the path `when` exists; the other must stop, and say how to start again."""
    workers = start_workers(script, arguments)
    while not when.exists():
        assert workers[0].is_running(), workers[0].wait().stderr
        time.sleep(0.01)
    workers[victim].send_signal(signal.SIGKILL)
    workers[victim].wait()
    done = workers[1 - victim].wait()
    assert done.returncode == 1
    assert "another worker stopped or cannot be reached" in done.stderr
    assert "start the same command again on every worker" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module", params=[pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def one_device(request, sample_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_script("train.py", *train_arguments(sample_dir / "data", folder, **SHORT, **dropout(request.param)))
    return folder, request.param


def assert_like_one_device(folder, expected):
    np.testing.assert_allclose(losses(folder), losses(expected), rtol=1e-4)
    assert len(losses(folder)) == 50
    for found, wanted in zip(history(folder / "run"), history(expected / "run")):
        assert found["all"]["fixed"] == pytest.approx(wanted["all"]["fixed"], abs=1e-6)
        assert found["chosen_threshold"] == pytest.approx(wanted["chosen_threshold"], abs=1e-4)
    means, wanted = (np.load(run / "run" / "step-00000050" / "class_embeddings.npy") for run in (folder, expected))
    np.testing.assert_allclose(means, wanted, atol=1e-4)


def test_two_devices_give_the_losses_of_one(one_device, sample_dir, tmp_path):
    expected, rate = one_device
    arguments = train_arguments(sample_dir / "data", tmp_path, **SHORT, **dropout(rate), strategy="mirrored", logical_cpus=2)
    run_script("train.py", *arguments)
    assert_like_one_device(tmp_path, expected)


def test_two_workers_give_the_losses_of_one(one_device, sample_dir, tmp_path):
    expected, rate = one_device
    finish(start_workers("train.py", train_arguments(sample_dir / "data", tmp_path, **SHORT, **dropout(rate))))
    assert_like_one_device(tmp_path, expected)


@pytest.mark.slow
def test_workers_with_different_flags(sample_dir, tmp_path):
    for worker in start_workers("train.py", train_arguments(sample_dir / "data", tmp_path, **SHORT), "--neg_weight=2"):
        done = worker.wait()
        assert done.returncode == 1
        assert "the workers were started with different flags or different data" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed(sample_dir, tmp_path, victim):
    """Started again, both end with the weights of an undisturbed run."""
    flags = {"n_step": 2000, "val_interval": 100, "log_interval": 100}
    undisturbed = tmp_path / "undisturbed"
    finish(start_workers("train.py", train_arguments(sample_dir / "data", undisturbed, **flags)))
    disturbed = tmp_path / "disturbed"
    arguments = train_arguments(sample_dir / "data", disturbed, **flags)
    kill_one("train.py", arguments, victim, disturbed / "run" / "step-00000300")
    finish(start_workers("train.py", arguments))
    assert_same_run(undisturbed / "run", disturbed / "run", 2000)


@pytest.fixture(scope="module")
def classifier_flags(sample_dir):
    """Flags of a training of classifiers in two passes, without dropout, whose masks are drawn per device."""
    data = sample_dir / "data"
    return [
        f"--input_npy={data}/all.npy", f"--verified={data}/train.npy", "--hidden_units=11", "--dropout_rate=0", "--batch_size=8",
        "--folds=2", "--passes=2", "--n_epoch=20", "--save_interval=10",
    ]


def files_of(folder):
    """The flags of the outputs of train_classifier in a folder."""
    return [f"--output_file={folder}/c.keras", f"--table_file={folder}/t.tsv"]


def probabilities(folder):
    return [float(row["probability"]) for row in read_table(folder / "t.tsv")]


def test_two_workers_train_the_classifiers_of_one(classifier_flags, tmp_path):
    run_script(CLASSIFIER, *classifier_flags, *files_of(tmp_path / "one"))
    finish(start_workers(CLASSIFIER, [*classifier_flags, *files_of(tmp_path / "two")]))
    np.testing.assert_allclose(probabilities(tmp_path / "two"), probabilities(tmp_path / "one"), atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if not path.name.endswith(".lock")) == ["c.keras", "t.tsv"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_of_a_classifier_killed(classifier_flags, tmp_path, victim):
    finish(start_workers(CLASSIFIER, [*classifier_flags, *files_of(tmp_path / "undisturbed")]))
    arguments = [*classifier_flags, *files_of(tmp_path / "disturbed")]
    kill_one(CLASSIFIER, arguments, victim, tmp_path / "disturbed/c.keras.progress/soft-0.npy")
    assert not (tmp_path / "disturbed/t.tsv").exists()
    finish(start_workers(CLASSIFIER, arguments))
    assert (tmp_path / "disturbed/t.tsv").read_bytes() == (tmp_path / "undisturbed/t.tsv").read_bytes()
