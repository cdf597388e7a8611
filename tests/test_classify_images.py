"""util/train_classifier.py on images: small networks made here, and pictures whose class is the place of a bright square."""
import json
import shutil
import signal
import time

import cv2
import keras
import numpy as np
import pytest
from commands import Command
from conftest import run_script

from util.lib import classifier, image_rows, images, networks
from util.lib.classifier_data import ImageRows

SCRIPT = "util/train_classifier.py"
NAMES = ["left above", "right above", "left below"]


def make_images(folder, prefix, count, wrong):
    """Writes pictures of 15 x 13 pixels. Returns (key, given class, true class) of each; a share of the classes is wrong."""
    rng, listed = np.random.default_rng(len(prefix)), []
    for i in range(count):
        true = i % 3
        given = (true + 1) % 3 if rng.random() < wrong else true
        pixels = rng.integers(0, 120, (13, 15, 3), np.uint8)
        top, left = (0, 0, 7)[true], (0, 8, 0)[true]
        pixels[top : top + 6, left : left + 7] += np.uint8(110)
        cv2.imwrite(str(folder / "images" / f"{prefix}{i}.png"), pixels)
        listed.append((f"{prefix}{i}.png", NAMES[given], NAMES[true]))
    return listed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with images/, list.tsv with 60 % wrong classes, test.tsv with right ones, scores.tsv that know, and network.keras."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    noisy, clean = make_images(folder, "noisy", 200, 0.6), make_images(folder, "clean", 60, 0)
    (folder / "list.tsv").write_text("".join(f"{key}\t{given}\n" for key, given, _ in noisy))
    (folder / "test.tsv").write_text("".join(f"{key}\t{given}\n" for key, given, _ in clean))
    line = "{}\t{}\t1\t1\t{}\t{}\tleft above\t1\tprobability\n"
    scores = [line.format(key, given, *((0.9, "correct") if given == true else (0.1, "mislabeled"))) for key, given, true in noisy]
    (folder / "scores.tsv").write_text("".join(scores))
    keras.utils.set_random_seed(3)
    keras.Sequential([
        keras.Input((11, 11, 3)), keras.layers.Rescaling(1 / 255, name="scale"), keras.layers.Conv2D(8, 3, activation="relu", name="low"),
        keras.layers.BatchNormalization(name="norm"), keras.layers.Conv2D(16, 3, strides=3, activation="relu", name="high"),
        keras.layers.Flatten(), keras.layers.Dense(7, name="pool"),
    ]).save(folder / "network.keras")
    return folder


def arguments(pictures, folder, **flags):
    flags = {
        "image_dir": pictures / "images", "image_list": pictures / "list.tsv", "class_list": pictures / "classes.txt",
        "keras_model": pictures / "network.keras", "resize": 12, "crop": 11, "mirror": "false", "batch_size": 16, "n_epoch": 8,
        "n_epoch_head": 1, "finetune_rate": 0.01, "dropout_rate": 0.1, "output_file": folder / "c.keras", **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def load(path):
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def test_weights_make_a_better_classifier_whose_features_can_be_extracted(pictures, tmp_path):
    found = {}
    for kind in ("none", "hard"):
        scores = pictures / "scores.tsv" if kind != "none" else None
        flags = {"weights": kind, "score_file": scores, "test_data": pictures / "test.tsv", "report_dir": tmp_path / kind}
        run_script(SCRIPT, *arguments(pictures, tmp_path, **flags))
        found[kind] = json.loads((tmp_path / kind / "test.json").read_text())["top_1"]["value"]
    assert found["none"] < found["hard"]
    assert found["hard"] > 0.95
    # The next round: features of the fine-tuned network.
    run_script(
        "util/extract_features.py", f"--image_dir={pictures}/images", f"--image_list={pictures}/test.tsv", "--resize=12", "--crop=11",
        f"--keras_model={tmp_path}/c.keras", "--layer=feature", f"--output_file={tmp_path}/f.tsv",
    )
    features = np.float32([line.split("\t")[2].split(",") for line in (tmp_path / "f.tsv").read_text().splitlines()])
    net = load(tmp_path / "c.keras")
    kernel, bias = net.get_layer("logits").get_weights()
    true = [NAMES.index(line.split("\t")[1]) for line in (pictures / "test.tsv").read_text().splitlines()]
    assert np.mean((features @ kernel + bias).argmax(axis=1) == true) == pytest.approx(found["hard"])
    # And another round of training goes on from that network.
    again = {"keras_model": tmp_path / "c.keras", "layer": "feature", "output_file": tmp_path / "d.keras", "n_epoch": 1}
    run_script(SCRIPT, *arguments(pictures, tmp_path, **again))
    assert load(tmp_path / "d.keras").get_layer("feature").output.shape == (None, 7)


def test_only_the_layers_asked_for_are_tuned(pictures, tmp_path):
    before = {layer.name: layer.get_weights() for layer in load(pictures / "network.keras").layers}
    run_script(SCRIPT, *arguments(pictures, tmp_path, finetune_from="high", n_epoch=1))
    after = {layer.name: layer.get_weights() for layer in classifier.layers_of(load(tmp_path / "c.keras"))}
    same = {name for name, weights in before.items() if weights and all(map(np.array_equal, weights, after[name]))}
    assert same == {"low", "norm"}
    done = run_script(SCRIPT, *arguments(pictures, tmp_path, finetune_from="hihg"), check=False)
    assert '--finetune_from=hihg: the network has no such layer; the closest is "high"' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_killed_fine_tuning_ends_the_same(pictures, tmp_path, devices):
    """Killed in its second stage, with parts cut out at random, dropout, normalisation of batches, and folds."""
    flags = {"save_interval": 10, "mirror": "true", "folds": 2, "n_epoch_head": 2, "logical_cpus": devices}
    flags["strategy"] = "mirrored" if devices > 1 else "default"
    results = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        command = arguments(pictures, folder, probabilities_file=folder / "p.npy", **flags)
        if name == "killed":
            training = Command(SCRIPT, *command)
            while training.is_running() and not (folder / "c.keras.progress/state-0-1-1.npz").exists():
                time.sleep(0.002)
            training.send_signal(signal.SIGKILL)
            assert training.wait().returncode == -signal.SIGKILL
        run_script(SCRIPT, *command)
        results.append([weight.tobytes() for weight in load(folder / "c.keras").get_weights()] + [(folder / "p.npy").read_bytes()])
    assert results[0] == results[1]


@pytest.mark.slow
def test_an_application_is_fine_tuned_and_resumes(pictures, tmp_path):
    results = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        flags = {"keras_model": None, "model": "MobileNetV2", "network_weights": "none", "resize": 40, "crop": 32, "n_epoch": 2}
        command = arguments(pictures, folder, **flags, finetune_from="block_16_expand", save_interval=3)
        if name == "killed":
            training = Command(SCRIPT, *command)
            while training.is_running() and not (folder / "c.keras.progress/state-0-0-1.npz").exists():
                time.sleep(0.01)
            training.send_signal(signal.SIGKILL)
            training.wait()
        run_script(SCRIPT, *command)
        results.append([weight.tobytes() for weight in load(folder / "c.keras").get_weights()])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121", "EfficientNetB0"])
def test_the_saved_model_preprocesses_as_the_application(tmp_path, name):
    """The four ways of keras.applications: the model gets pixels from 0 to 255."""
    preprocess = networks.application_module(name).preprocess_input
    inputs = keras.Input((5, 5, 3))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    net = classifier.make_image_classifier(network, preprocess, 5, 7, dropout_rate=0.0, seed=1)
    net.save(tmp_path / "c.keras")
    net = load(tmp_path / "c.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    found = keras.Model(net.inputs[0], net.get_layer("feature").output)(pixels)
    np.testing.assert_allclose(np.reshape(found, pixels.shape), preprocess(pixels.copy()), rtol=1e-5, atol=1e-4)


def test_a_grey_network_gets_the_mean_of_the_colours():
    inputs = keras.Input((5, 5, 1))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    net = classifier.make_image_classifier(network, lambda pixels: pixels, 5, 7, dropout_rate=0.0, seed=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    found = keras.Model(net.inputs[0], net.get_layer("feature").output)(pixels)
    np.testing.assert_allclose(np.reshape(found, (2, 5, 5)), pixels.mean(axis=-1), rtol=1e-5)


def test_parts_are_cut_out_at_random_and_the_middle_for_a_test(pictures):
    listed = image_rows.read_list(str(pictures / "test.tsv"), ["key", "class"], "key")
    options = {"image_dir": str(pictures / "images"), "resize": 13, "crop": 11, "path": "test.tsv", "num_threads": 2, "files": []}
    rows = ImageRows(listed, NAMES, mirror=True, **options)
    whole = images.read(str(pictures / "images" / listed[7].path))[0]
    parts = [whole[top : top + 11, left : left + 11] for top in range(3) for left in range(5)]
    allowed = {part.tobytes() for part in parts} | {part[:, ::-1].tobytes() for part in parts}
    found = {rows.inputs(np.array([7]), np.random.default_rng(seed))[0].tobytes() for seed in range(60)}
    assert found <= allowed
    assert len(found) > 10
    assert rows.inputs(np.array([3, 7]))[1].tobytes() == whole[1:12, 2:13].tobytes()


def test_a_test_on_the_images_that_are_trained_on_is_refused(pictures, tmp_path):
    flags = {"test_data": pictures / "list.tsv", "report_dir": tmp_path / "report"}
    done = run_script(SCRIPT, *arguments(pictures, tmp_path, **flags), check=False)
    assert "rows of 0 classes have a weight above 0" in done.stderr


def test_an_image_that_cannot_be_read_is_named(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "p")
    (tmp_path / "p/images/noisy4.png").write_bytes(b"x")
    done = run_script(SCRIPT, *arguments(tmp_path / "p", tmp_path), check=False)
    assert done.returncode == 1
    assert "list.tsv:5: noisy4.png: not an image that can be read" in done.stderr
