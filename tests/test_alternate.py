"""util/alternate.py on the digits: from wrong labels to a model, rounds that end, and an alternation that is interrupted."""
import itertools
import json
import signal
import time

import keras
import pytest
from commands import Command
from conftest import run_script

SIZE = ["--resize=16", "--crop=14"]
CLASSIFIER = ["--mirror=false", "--batch_size=64", "--n_epoch_head=2", "--n_epoch=10", "--finetune_rate=0.003"]


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """A folder with network.keras, of random weights, all.tsv, and test.tsv: the true classes of digits that nobody verified."""
    folder = tmp_path_factory.mktemp("alternation")
    keras.utils.set_random_seed(5)
    keras.Sequential([
        keras.Input((14, 14, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
        keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(32, activation="relu"),
    ]).save(folder / "network.keras")
    data = digits / "data"
    verified = {line.split("\t")[0] for split in ("train", "val") for line in (data / f"{split}.tsv").read_text().splitlines()}
    lines = (data / "truth.tsv").read_text().splitlines(keepends=True)
    (folder / "test.tsv").write_text("".join(line for line in lines if line.split("\t")[0] not in verified))
    rows = [line.split("\t")[:2] for line in (data / "all.tsv").read_text().splitlines()]
    (folder / "all.tsv").write_text("".join(f"{key}\t{name}\n" for key, name in rows))
    return folder


def arguments(digits, folder, output_dir, *more, rounds):
    return [
        f"--image_dir={digits}/data/images", *SIZE, f"--data_dir={digits}/data", f"--checkpoint_dir={digits}/run",
        f"--keras_model={folder}/network.keras", "--reference_flags=--num_ref=7",
        f"--classifier_flags=--weights=hard {' '.join(CLASSIFIER)}",
        "--train_flags=--n_step=300 --val_interval=100 --class_contrast=1 --score=probability --val_sim_thres=auto",
        f"--test_data={folder}/test.tsv", f"--output_dir={output_dir}", f"--rounds={rounds}", *more,
    ]


def test_weights_make_a_better_classifier_and_no_step_is_done_twice(digits, folder, tmp_path):
    run_script(
        "util/train_classifier.py", f"--image_dir={digits}/data/images", *SIZE, f"--image_list={folder}/all.tsv",
        f"--class_list={digits}/data/classes.txt", f"--keras_model={folder}/network.keras", *CLASSIFIER,
        f"--test_data={folder}/test.tsv", f"--output_file={tmp_path}/trusting.keras", f"--report_dir={tmp_path}/trusting",
    )
    trusting = json.loads((tmp_path / "trusting" / "test.json").read_text())["top_1"]["value"]
    command = arguments(digits, folder, tmp_path / "a", rounds=0)
    done = run_script("util/alternate.py", *command)
    steps = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert steps == ["round0, validation", "round0, scores", "round0, classifier", "round 0", str(tmp_path / "a")]
    (found,) = json.loads((tmp_path / "a" / "rounds.json").read_text())
    assert found["top_1"]["value"] > trusting + 0.01
    report = json.loads((tmp_path / "a" / "round0" / "report" / "report.json").read_text())["all"]
    assert [found["auroc"], found["average_error_rate"]] == [report["auroc"], report["chosen"]["average_error_rate"]]
    assert (tmp_path / "a" / "rounds.png").stat().st_size > 5000
    again = run_script("util/alternate.py", *command)
    assert again.stdout.splitlines() == done.stdout.splitlines()[3:]
    other = run_script("util/alternate.py", *command, "--crop=13", check=False)
    assert "steps.json: was begun with crop=14, not 13; go on with the same" in other.stderr


@pytest.mark.slow
def test_an_interrupted_alternation_ends_the_same(digits, folder, tmp_path):
    """Stopped while a classifier is trained, then with one round less; each command that runs ends too."""
    command = [arguments(digits, folder, tmp_path / name, rounds=2) for name in ("undisturbed", "stopped")]
    run_script("util/alternate.py", *command[0])
    alternation = Command("util/alternate.py", *command[1])
    while alternation.is_running() and not (tmp_path / "stopped/round0/classifier.keras.progress/state-0-0-0.npz").exists():
        time.sleep(0.01)
    alternation.send_signal(signal.SIGTERM)
    assert alternation.wait().returncode == 143
    run_script("util/alternate.py", *command[1], "--rounds=1")
    run_script("util/alternate.py", *command[1])
    for name in ("rounds.json", "round0/scores.tsv", "round1/run/best.json", "round1/report/report.json"):
        assert (tmp_path / "undisturbed" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    results = json.loads((tmp_path / "stopped" / "rounds.json").read_text())
    errors = [result["average_error_rate"]["value"] for result in results]
    assert [result["top_1"] is not None for result in results] == [True, *(b < a for a, b in itertools.pairwise(errors))]
    assert len(results) == 3 or errors[-1] >= errors[-2]
