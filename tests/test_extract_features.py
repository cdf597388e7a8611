"""util/extract_features.py through its command line, with small Keras models made here and the demo's digits as PNG."""
import gzip
import pathlib
import shutil
import signal
import time

import cv2
import keras
import numpy as np
import pytest
from commands import Command
from conftest import convert, convert_all, find_references, run_script

from util.lib import networks

SCRIPT = "util/extract_features.py"
WIDTHS = {  # of the applications that docs/images.md names
    "ResNet50": 2048, "ResNet50V2": 2048, "InceptionV3": 2048, "DenseNet121": 1024, "VGG16": 512, "MobileNetV2": 1280,
    "MobileNetV3Large": 960, "EfficientNetB0": 1280, "EfficientNetV2B0": 1280, "ConvNeXtTiny": 768,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """images/<class>/<key> of 100 digits, list.tsv, and net.keras, a small convolutional network."""
    folder = tmp_path_factory.mktemp("images")
    run_script("util/make_digits.py", f"--output_dir={folder}/data", "--image_size=24")
    rows = [line.split("\t")[:2] for line in (folder / "data" / "all.tsv").read_text().splitlines()[:100]]
    for key, name in rows:
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "data" / "images" / key, folder / "images" / name / key)
    (folder / "list.tsv").write_text("".join(f"{name}/{key}\t{name}\n" for key, name in rows))
    inputs = keras.Input((20, 20, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    network = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))
    network.save(folder / "net.keras")
    return folder


def extract(folder, *arguments, **keywords):
    own = [f"--keras_model={folder}/net.keras", "--layer=pool", "--resize=20", "--crop=20", f"--image_dir={folder}/images"]
    return run_script(SCRIPT, *own, *arguments, **keywords)


def expected_features(folder, keys):
    """The model's own output on the same pixels."""
    network = keras.saving.load_model(folder / "net.keras")
    network = keras.Model(network.inputs, network.get_layer("pool").output)
    images = [cv2.imread(str(folder / "images" / key)) for key in keys]
    pixels = [cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA)[:, :, ::-1] for image in images]
    return network.predict(np.float32(pixels), verbose=0)


def read(path):
    data = pathlib.Path(path).read_bytes()
    text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    return [row[:-1] for row in rows], np.float32([row[-1].split(",") for row in rows])


@pytest.mark.parametrize(("batch_size", "name"), [(7, "a.tsv"), (64, "b.tsv.gz")])
def test_features_equal_the_models_own_in_the_order_of_the_list(folder, tmp_path, batch_size, name):
    extract(folder, f"--image_list={folder}/list.tsv", f"--output_file={tmp_path}/{name}", f"--batch_size={batch_size}")
    columns, features = read(tmp_path / name)
    listed = [line.split("\t") for line in (folder / "list.tsv").read_text().splitlines()]
    assert columns == listed
    np.testing.assert_allclose(features, expected_features(folder, [key for key, _ in listed]), atol=1e-5)
    assert not (tmp_path / f"{name}.progress").exists()


def test_folder_of_class_folders_and_arrays(folder, tmp_path):
    extract(folder, f"--output_file={tmp_path}/all.tsv", f"--write_class_list={tmp_path}/classes.txt")
    columns, features = read(tmp_path / "all.tsv")
    assert [key.split("/")[0] for key, _ in columns] == [name for _, name in columns]
    assert columns == sorted(columns)
    names = (tmp_path / "classes.txt").read_text().split()
    assert names == sorted({name for _, name in columns})
    extract(folder, f"--class_list={tmp_path}/classes.txt", "--split=all", f"--output_dir={tmp_path}/arrays")
    array = np.load(tmp_path / "arrays" / "all.npy", allow_pickle=False)
    np.testing.assert_allclose(array[:, :-1], features, atol=1e-6)  # sorted folders are grouped by class already
    np.testing.assert_array_equal(array[:, -1], [names.index(name) for _, name in columns])


def test_verified_list_keeps_its_columns(folder, tmp_path):
    lines = [line.split("\t") for line in (folder / "list.tsv").read_text().splitlines()[:12]]
    rows = [[f"k{i}", path, name, str(i % 3 - 1)] for i, (path, name) in enumerate(lines)]
    (tmp_path / "list.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    names = sorted({name for _, name in lines})
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    common = [f"--image_list={tmp_path}/list.tsv", "--list_columns=key,url,class,label", "--path_column=url"]
    extract(folder, *common, f"--output_file={tmp_path}/train.tsv")
    assert read(tmp_path / "train.tsv")[0] == rows
    extract(folder, *common, f"--class_list={tmp_path}/classes.txt", "--split=train", f"--output_dir={tmp_path}/direct")
    convert("train", tmp_path / "converted", tmp_path / "train.tsv", tmp_path / "classes.txt")
    direct, converted = (np.load(tmp_path / way / "train.npy") for way in ("direct", "converted"))
    np.testing.assert_allclose(direct, converted, atol=1e-6)
    assert (tmp_path / "direct" / "train_keys.txt").read_text() == (tmp_path / "converted" / "train_keys.txt").read_text()


def test_killed_and_started_again(folder, tmp_path):
    extract(folder, f"--output_file={tmp_path}/whole.tsv", "--batch_size=3")
    command = (
        SCRIPT, f"--keras_model={folder}/net.keras", "--layer=pool", "--resize=20", "--crop=20",
        f"--image_dir={folder}/images", f"--output_file={tmp_path}/killed.tsv", "--batch_size=3",
    )
    running = Command(*command)
    spool = tmp_path / "killed.tsv.progress" / "features"
    while running.is_running() and (not spool.exists() or spool.stat().st_size < 9 * 4 * 12):
        time.sleep(0.001)  # until some batches are done
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed.tsv").exists()
    assert spool.exists()
    with open(spool, "ab") as file:
        file.write(b"half a batch")
    run_script(*command)
    assert (tmp_path / "killed.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def odd_images(folder):
    """{file name: None if it is accepted, else a part of the reason}, made in a folder."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    grey = image[:, :, 0]
    made = {
        "colour.jpg": image, "grey.jpg": grey, "colour.png": image, "grey.png": grey, "deep.png": image.astype(np.uint16) * 257,
        "alpha.png": np.dstack([image, np.full(image.shape[:2], 128, np.uint8)]), "colour.webp": image, "colour.tiff": image,
        "deep.tiff": grey.astype(np.uint16) * 257, "pixel.png": image[:1, :1], "large.png": np.zeros((12000, 12000), np.uint8),
    }
    for name, pixels in made.items():
        assert cv2.imwrite(str(folder / name), pixels)
    jpeg = (folder / "colour.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn by 90 degrees
    (folder / "turned.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes((folder / "colour.png").read_bytes()[:-100])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder.parent / "outside.png").write_bytes((folder / "colour.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    rejected = {
        "cut.jpg": "the JPEG is cut off", "cut.png": "the PNG is cut off", "text.jpg": "not an image", "empty.jpg": "the file is empty",
        "../outside.png": "lies outside image_dir", "link.png": "lies outside image_dir", "missing.png": "No such file",
    }
    return {**dict.fromkeys([*made, "turned.jpg"]), **rejected}


def test_odd_images(folder, tmp_path):
    (tmp_path / "images").mkdir()
    expected = odd_images(tmp_path / "images")
    (tmp_path / "list.tsv").write_text("".join(f"{name}\tx\n" for name in expected))
    common = [
        f"--keras_model={folder}/net.keras", "--layer=pool", "--resize=20", "--crop=20", f"--image_dir={tmp_path}/images",
        f"--image_list={tmp_path}/list.tsv", f"--output_file={tmp_path}/out.tsv",
    ]
    done = run_script(SCRIPT, *common)
    columns, features = read(tmp_path / "out.tsv")
    assert [key for key, _ in columns] == [name for name, why in expected.items() if why is None]
    rejected = dict(line.split("\t")[:0:-1] for line in (tmp_path / "out.tsv.rejected.tsv").read_text().splitlines())
    assert rejected.keys() == {name for name, why in expected.items() if why}
    for name, why in rejected.items():
        assert expected[name] in why
    assert f"left out: {len(rejected)}" in done.stdout
    by_name = dict(zip((key for key, _ in columns), features))
    np.testing.assert_allclose(by_name["colour.png"], by_name["colour.tiff"], atol=1e-6)
    np.testing.assert_allclose(by_name["deep.png"], by_name["colour.png"], atol=2e-3)
    np.testing.assert_allclose(by_name["alpha.png"], by_name["colour.png"], atol=1e-6)
    np.testing.assert_allclose(by_name["grey.png"], by_name["deep.tiff"], atol=2e-3)
    assert np.abs(by_name["turned.jpg"] - by_name["colour.jpg"]).max() > 1e-3
    done = run_script(SCRIPT, *common, "--on_bad_row=error", check=False)
    assert done.returncode == 1
    assert "the JPEG is cut off (--on_bad_row=skip" in done.stderr


def test_models_that_could_run_code_are_refused(folder, tmp_path):
    inputs = keras.Input((20, 20, 3))
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Lambda(lambda x: x * 2)(inputs)))
    network.save(tmp_path / "lambda.keras")
    (tmp_path / "old.h5").write_bytes(b"x")
    common = ["--resize=20", "--crop=20", f"--image_dir={folder}/images", f"--output_file={tmp_path}/out.tsv"]
    for name, message in (("lambda.keras", "it has a Lambda layer"), ("old.h5", "expected a .keras file; other formats, .h5 among them")):
        done = run_script(SCRIPT, *common, f"--keras_model={tmp_path}/{name}", check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_applications_have_the_documented_width_and_their_own_preprocessing(name):
    network, preprocess, _ = networks.load_network(model=name, weights="none", keras_model=None, layer=None, crop=96)
    assert network.outputs[0].shape[-1] == WIDTHS[name]
    pixels = np.random.default_rng(0).integers(0, 255, (1, 96, 96, 3)).astype(np.float32)
    module = networks.application_module(name)
    np.testing.assert_allclose(preprocess(pixels.copy()), module.preprocess_input(pixels.copy()))


def test_from_image_folder_to_mosaic(folder, tmp_path):
    """The whole way through the command line."""
    extract(folder, f"--output_file={tmp_path}/all.tsv", f"--write_class_list={tmp_path}/classes.txt")
    rows = (tmp_path / "all.tsv").read_text().splitlines()
    for split, part in (("train", rows[::2]), ("val", rows[1::2])):
        verified = [line.split("\t") for line in part]
        text = "".join(f"{key}\t{name}\t{i % 3 and 1}\t{feature}\n" for i, (key, name, feature) in enumerate(verified))
        (tmp_path / f"{split}.tsv").write_text(text)
    convert_all(tmp_path / "data", tmp_path)
    find_references(tmp_path / "data", tmp_path / "classes.txt", 4)
    run_script(
        "train.py", f"--data_dir={tmp_path}/data", f"--checkpoint_dir={tmp_path}/run", f"--log_dir={tmp_path}/log", "--n_step=20",
        "--val_interval=20",
    )
    run_script(
        "inference.py", f"--image_feature_list={tmp_path}/all.tsv", f"--checkpoint_dir={tmp_path}/run",
        f"--output_file={tmp_path}/scores.tsv", "--output_format=tsv",
    )
    done = run_script(
        "util/draw_examples.py", f"--score_file={tmp_path}/scores.tsv", f"--image_feature_list={tmp_path}/all.tsv",
        f"--image_dir={folder}/images", f"--output_file={tmp_path}/examples.png", "--num_examples=3",
    )
    assert "unreadable" not in done.stdout
    assert cv2.imread(str(tmp_path / "examples.png")) is not None
