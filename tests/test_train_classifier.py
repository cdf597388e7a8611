"""util/train_classifier.py through its command line: weights, folds, tests, and that a resumed training is an uninterrupted one."""
import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from commands import Command
from conftest import CLASSES, IMG_DIM, convert, make_rows, read_table, run_script, unverified, write_rows

from util.lib import confident_joint
from util.lib.metrics import auroc

SCRIPT = "util/train_classifier.py"
NUM_ROWS, NUM_VERIFIED = 331, 97


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A folder with all.npy, half of its labels wrong, train.npy and val.npy of its rows, clean test/all.npy, and scores.tsv that know."""
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    rows = make_rows(NUM_ROWS, seed=5, noise=0.5)
    clean = unverified(make_rows(211, seed=6, noise=0))
    parts = {"all": unverified(rows), "train": rows[:NUM_VERIFIED], "val": rows[NUM_VERIFIED : 2 * NUM_VERIFIED]}
    for split, part in parts.items():
        convert(split, folder, write_rows(folder / f"{split}.tsv", part), folder / "classes.txt")
    convert("all", folder / "test", write_rows(folder / "test.tsv", clean), folder / "classes.txt")
    line = "{}\t{}\t{}\t0\t{}\t{}\tramen\t0.9\tprobability\n"
    scores = [line.format(key, name, *((0.9, 0.95, "correct") if label else (-0.5, 0.05, "mislabeled"))) for key, name, label, _ in rows]
    (folder / "scores.tsv").write_text("".join(scores))
    return folder


def arguments(noisy, folder, **flags):
    """Arguments of a short training; `flags` override, None leaves one out."""
    flags = {
        "input_npy": noisy / "all.npy", "output_file": folder / "c.keras", "n_epoch": 30, "batch_size": 16, "hidden_units": 11,
        "learning_rate": 0.01, **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def load(path):
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


def top_1(folder):
    return json.loads((folder / "test.json").read_text())["top_1"]["value"]


def test_weights_make_a_better_classifier(noisy, tmp_path):
    found = {}
    for kind in ("none", "soft", "hard"):
        scores = noisy / "scores.tsv" if kind != "none" else None
        flags = {"weights": kind, "score_file": scores, "test_data": noisy / "test/all.npy", "report_dir": tmp_path / kind}
        done = run_script(SCRIPT, *arguments(noisy, tmp_path, hidden_units=0, dropout_rate=0, **flags))
        found[kind] = top_1(tmp_path / kind)
        assert f"{tmp_path}/{kind}: 211 rows: top-1 {100 * found[kind]:.2f} %" in done.stdout
    assert found["none"] < min(found["soft"], found["hard"])
    assert found["hard"] > 0.98
    assert not list(tmp_path.glob("*.progress"))


@pytest.mark.parametrize("normalise", ["log", "l2_norm", "standardise", "auto"])
def test_the_model_is_what_it_is_said_to_be(noisy, tmp_path, normalise):
    done = run_script(SCRIPT, *arguments(noisy, tmp_path, normalise=normalise, n_epoch=1))
    if normalise == "auto":
        assert "--normalise=auto: log, since the lowest feature is" in done.stdout
        normalise = "log"
    x, model = np.load(noisy / "all.npy")[:, :-1], load(tmp_path / "c.keras")
    kernel, bias, kernel_2, bias_2 = model.get_weights()[-4:]
    x_in = {
        "log": lambda: np.log1p(x), "l2_norm": lambda: x / np.linalg.norm(x, axis=1, keepdims=True) * IMG_DIM**0.5,
        "standardise": lambda: (x - x.mean(axis=0)) / x.std(axis=0),
    }[normalise]()
    logits = np.maximum(x_in @ kernel + bias, 0) @ kernel_2 + bias_2
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=2e-5)


def test_the_report_is_what_the_model_does(noisy, tmp_path):
    flags = {"test_data": noisy / "val.npy", "report_dir": tmp_path / "report"}
    done = run_script(SCRIPT, *arguments(noisy, tmp_path, n_epoch=3, **flags))
    val = np.load(noisy / "val.npy")
    val = val[val[:, -1] == 1]
    true, predicted = val[:, -2].astype(int), load(tmp_path / "c.keras").predict(val[:, :-2], verbose=0).argmax(axis=1)
    report = json.loads((tmp_path / "report/test.json").read_text())
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (true, predicted), 1)
    assert report["confusion"] == confusion.tolist()
    assert report["rows"] == len(val)
    assert report["top_1"]["value"] == pytest.approx(np.mean(true == predicted))
    assert report["top_1"]["low"] <= report["top_1"]["value"] <= report["top_1"]["high"]
    assert report["top_5"] == {"value": None, "reason": "5 classes"}
    by_class = [np.mean(predicted[true == c] == c) for c in range(5)]
    assert [report["classes"][name]["top_1"]["value"] for name in CLASSES] == pytest.approx(by_class)
    assert report["mean_over_classes"]["value"] == pytest.approx(np.mean(by_class))
    assert (tmp_path / "report/confusion.png").read_bytes().startswith(b"\x89PNG")
    assert f"{NUM_ROWS - NUM_VERIFIED} of weight above 0, {NUM_VERIFIED} left out, to test on" in done.stdout


def test_out_of_fold_probabilities(noisy, tmp_path):
    flags = {"folds": 3, "probabilities_file": tmp_path / "p.npy", "table_file": tmp_path / "t.tsv", "val_sim_thres": 0.4}
    run_script(SCRIPT, *arguments(noisy, tmp_path, **flags))
    found, given = np.load(tmp_path / "p.npy"), np.load(noisy / "all.npy")[:, -1].astype(int)
    assert (found.shape, found.dtype) == ((NUM_ROWS, 5), np.float32)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    own, rows = found[np.arange(NUM_ROWS), given], read_table(tmp_path / "t.tsv")
    np.testing.assert_allclose([float(row["probability"]) for row in rows], own, rtol=1e-6)
    assert [row["key"] for row in rows] == (noisy / "all_keys.txt").read_text().splitlines()
    assert [row["class"] for row in rows] == [CLASSES[c] for c in given]
    assert [row["nearest_class"] for row in rows] == [CLASSES[c] for c in found.argmax(axis=1)]
    assert {row["cosine"] for row in rows} == {"nan"}
    others = np.where(np.eye(5)[given] == 1, -1, found).max(axis=1)
    np.testing.assert_allclose([float(row["margin"]) for row in rows], own - others, atol=1e-6)
    assert [row["verdict"] for row in rows] == ["correct" if p >= 0.4 else "mislabeled" for p in own]
    right = {line.split("\t")[0]: "correct" in line for line in (noisy / "scores.tsv").read_text().splitlines()}
    correct = np.array([right[row["key"]] for row in rows])
    assert auroc(own, correct)[0] > 0.8
    # What reads scores reads these.
    table = f"--score_file={tmp_path}/t.tsv"
    run_script("util/export_weights.py", table, f"--output_file={tmp_path}/w.npy", f"--list_file={tmp_path}/l.tsv")
    np.testing.assert_allclose(np.load(tmp_path / "w.npy"), own, rtol=1e-6)
    listed = tmp_path / "in_order.tsv"
    listed.write_text("".join(f"{row['key']}\t{row['class']}\t1\n" for row in rows))
    run_script("util/draw_examples.py", table, f"--image_feature_list={listed}", f"--output_file={tmp_path}/x.png", "--image_size=16")


def test_classes_are_shifted_to_the_confident_joint(noisy, tmp_path):
    """Half of the labels are wrong. The probability and the verdict are shifted, and the rest stays."""
    found = {}
    for more in ((), ("--shift_classes",)):
        flags = arguments(noisy, tmp_path, folds=3, probabilities_file=tmp_path / "p.npy", table_file=tmp_path / "t.tsv", output_file=None)
        run_script(SCRIPT, *flags, *more)
        found[bool(more)] = read_table(tmp_path / "t.tsv")
    p, given = np.load(tmp_path / "p.npy"), np.load(noisy / "all.npy")[:, -1].astype(int)
    mean = np.array([p[given == c, c].mean() for c in range(5)])
    guess = [max((c for c in range(5) if row[c] >= mean[c]), key=lambda c: row[c], default=-1) for row in p]
    plain, shifted = ([float(row["probability"]) for row in found[more]] for more in (False, True))
    assert [row["verdict"] for row in found[True]] == ["correct" if x >= 0.5 else "mislabeled" for x in shifted]
    counting = [np.array(guess)[(given == c) & (np.array(guess) >= 0)] for c in range(5)]
    shares = np.array([np.mean(of_class != c) for c, of_class in enumerate(counting)])
    assert ((shares > 0.2) & (shares < 0.8)).all()
    expected = confident_joint.shift_classes(plain, given, shares, np.array(list(map(len, counting))))
    np.testing.assert_allclose(shifted, expected, rtol=1e-4)
    for name in ("key", "class", "margin", "nearest_class"):
        assert [row[name] for row in found[True]] == [row[name] for row in found[False]]


def test_no_row_is_trained_on_in_its_fold(noisy, tmp_path):
    """With labels at random, the given class is no more probable than another."""
    rng = np.random.default_rng(3)
    array = np.concatenate([rng.random((301, 500)), rng.integers(0, 5, (301, 1))], axis=1, dtype=np.float32)
    np.save(tmp_path / "all.npy", array)
    flags = {"class_list": noisy / "classes.txt", "input_npy": tmp_path / "all.npy", "hidden_units": 0, "dropout_rate": 0, "n_epoch": 20}
    run_script(SCRIPT, *arguments(noisy, tmp_path, folds=2, probabilities_file=tmp_path / "p.npy", **flags))
    given = array[:, -1].astype(int)
    seen = load(tmp_path / "c.keras").predict(array[:, :-1], verbose=0)
    assert np.mean(seen.argmax(axis=1) == given) > 0.6
    assert np.mean(np.load(tmp_path / "p.npy").argmax(axis=1) == given) < 0.3


FOLDED = {"folds": 2, "n_epoch": 20, "save_interval": 50, "log_interval": 20}


def outputs(folder):
    """The bits that a training of FOLDED ends with."""
    return [weight.tobytes() for weight in load(folder / "c.keras").get_weights()] + [(folder / "p.npy").read_bytes()]


@pytest.fixture(scope="module")
def undisturbed(noisy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_script(SCRIPT, *arguments(noisy, folder, probabilities_file=folder / "p.npy", log_dir=folder / "log", **FOLDED))
    return folder


def interrupted(noisy, folder, file, number):
    """Starts a training of FOLDED and sends a signal when its state has a file. Returns the arguments and what ended."""
    command = arguments(noisy, folder, probabilities_file=folder / "p.npy", **FOLDED)
    training = Command(SCRIPT, *command)
    while training.is_running() and not (folder / "c.keras.progress" / file).exists():
        time.sleep(0.002)
    training.send_signal(number)
    done = training.wait()
    assert not (folder / "c.keras").exists()
    return command, done


@pytest.mark.parametrize("file", ["state-0-0-0.npz", pytest.param("fold-0-1.npy", marks=pytest.mark.slow)])
def test_a_killed_training_ends_the_same(noisy, undisturbed, tmp_path, file):
    command, done = interrupted(noisy, tmp_path, file, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    run_script(SCRIPT, *command)
    assert outputs(tmp_path) == outputs(undisturbed)
    assert not (tmp_path / "c.keras.progress").exists()


@pytest.mark.slow
def test_a_signal_saves_and_the_training_goes_on(noisy, undisturbed, tmp_path):
    command, done = interrupted(noisy, tmp_path, "state-0-0-0.npz", signal.SIGTERM)
    assert done.returncode == 143, done.stderr
    assert re.search(r"stopped at step \d+ of fold \d of 2, saved", done.stdout)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "c.keras.progress", other / "c.keras.progress")
    run_script(SCRIPT, *command)
    assert outputs(tmp_path) == outputs(undisturbed)
    # A state that cannot be read is passed over.
    state = other / "c.keras.progress/state-0-0-0.npz"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    moved = [f"--output_file={other}/c.keras", f"--probabilities_file={other}/p.npy"]
    assert "state-0-0-0.npz: cannot be read" in run_script(SCRIPT, *command, *moved).stderr
    assert outputs(other) == outputs(undisturbed)


def test_other_settings_start_anew(noisy, undisturbed, tmp_path):
    command, _ = interrupted(noisy, tmp_path, "fold-0-0.npy", signal.SIGTERM)
    run_script(SCRIPT, *command, "--seed=2")
    assert (tmp_path / "p.npy").read_bytes() != (undisturbed / "p.npy").read_bytes()
    flags = {"probabilities_file": tmp_path / "q.npy", "output_file": None, **FOLDED, "seed": 2}
    run_script(SCRIPT, *arguments(noisy, tmp_path, **flags))
    assert (tmp_path / "p.npy").read_bytes() == (tmp_path / "q.npy").read_bytes()


@pytest.mark.parametrize("dropout_rate", [0, 0.3])
def test_two_devices_train_what_one_does(noisy, tmp_path, dropout_rate):
    """The same probabilities without dropout, whose masks are drawn per device; with it as good ones."""
    flags = {"dropout_rate": dropout_rate, "test_data": noisy / "test/all.npy", "weights": "hard", "score_file": noisy / "scores.tsv"}
    found = {}
    for devices in ({}, {"strategy": "mirrored", "logical_cpus": 2}):
        folder = tmp_path / f"{len(devices)}"
        folder.mkdir()
        run_script(SCRIPT, *arguments(noisy, folder, report_dir=folder, **flags, **devices))
        found[len(devices)] = load(folder / "c.keras").predict(np.load(noisy / "all.npy")[:, :IMG_DIM], verbose=0), top_1(folder)
    if dropout_rate:
        assert found[2][1] == pytest.approx(found[0][1], abs=0.05)
        assert np.abs(found[2][0] - found[0][0]).max() > 1e-3, "other masks"
    else:
        np.testing.assert_allclose(found[2][0], found[0][0], atol=1e-4)


def test_summaries_are_written(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(undisturbed / "log" / "train"), {"tensors": 0})
    log.Reload()
    assert {"fold 1 of 2/loss", "all rows/accuracy"} <= set(log.Tags()["tensors"])


def test_passes_are_commands_that_take_the_table_before(noisy, tmp_path):
    """Three passes in one command are three commands, each weighted by the table of the one before."""
    flags = {"verified": noisy / "train.npy", "folds": 2, "n_epoch": 5, "output_file": None, "weights": "soft"}
    table = noisy / "scores.tsv"
    for number in (1, 2, 3):
        run_script(SCRIPT, *arguments(noisy, tmp_path, **flags, score_file=table, table_file=tmp_path / f"{number}.tsv"))
        table = tmp_path / f"{number}.tsv"
    flags |= {"score_file": noisy / "scores.tsv", "table_file": tmp_path / "all.tsv", "passes": 3}
    done = run_script(SCRIPT, *arguments(noisy, tmp_path, **flags))
    assert "pass 2 of 3 is done, and weights the next one" in done.stdout
    probability = {name: [float(row["probability"]) for row in read_table(tmp_path / f"{name}.tsv")] for name in ("1", "3", "all")}
    np.testing.assert_allclose(probability["all"], probability["3"], rtol=1e-5)
    assert np.abs(np.subtract(probability["all"], probability["1"])).max() > 0.01
    assert not (tmp_path / "all.tsv.progress").exists()


def test_passes_that_are_killed_end_the_same_but_not_with_other_verified_rows(noisy, tmp_path):
    """Verified rows that weigh 1 anyhow change further passes alone: what was kept of the first is of another training."""
    def command(name, **more):
        return arguments(noisy, tmp_path, folds=2, n_epoch=20, output_file=None, passes=2, table_file=tmp_path / f"{name}.tsv", **more)

    correct = np.load(noisy / "train.npy")
    correct, keys = correct[correct[:, -1] == 1], np.array((noisy / "train_keys.txt").read_text().splitlines())[correct[:, -1] == 1]
    known = tmp_path / "known"
    known.mkdir()
    np.save(known / "train.npy", correct)
    (known / "train_keys.txt").write_text("".join(f"{key}\n" for key in keys))
    shutil.copy(noisy / "classes.txt", known)
    verified = {"verified": known / "train.npy"}
    run_script(SCRIPT, *command("plain"))
    run_script(SCRIPT, *command("verified", **verified))
    for name, more in (("plain", {}), ("verified", verified)):
        training = Command(SCRIPT, *command("killed"))
        while training.is_running() and not (tmp_path / "killed.tsv.progress/fold-1-0.npy").exists():
            time.sleep(0.002)
        training.send_signal(signal.SIGKILL)
        assert training.wait().returncode == -signal.SIGKILL
        assert not list(tmp_path.glob("killed.tsv.progress/fold-0-*.npy")), "the first pass still takes room"
        run_script(SCRIPT, *command("killed", **more))
        assert (tmp_path / "killed.tsv").read_bytes() == (tmp_path / f"{name}.tsv").read_bytes()
        (tmp_path / "killed.tsv").unlink()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"(16", b"(15"), lambda data: b""])
def test_a_damaged_file_of_the_progress_folder_is_named(noisy, tmp_path, damage):
    command, _ = interrupted(noisy, tmp_path, "fold-0-0.npy", signal.SIGKILL)
    path = tmp_path / "c.keras.progress/fold-0-0.npy"
    path.write_bytes(damage(path.read_bytes()))
    done = run_script(SCRIPT, *command, check=False)
    assert done.returncode == 1
    assert f"{path}: is damaged, expected float32" in done.stderr
    assert f"remove the folder {tmp_path}/c.keras.progress and start again" in done.stderr
    assert not (tmp_path / "p.npy").exists()
