"""Tables of scores, sample weights, the cleaned list and the mosaic, through the command lines, on a model of the digits."""
import json
import re
import subprocess
import sys
import urllib.request

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_script

COLUMNS = ["key", "class", "cosine", "margin", "probability", "verdict", "nearest_class", "nearest_cosine"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo, shorter: data, run, log, and scores.tsv of every row."""
    folder = tmp_path_factory.mktemp("digits")
    data = folder / "data"
    run_script("util/make_digits.py", f"--output_dir={data}", "--image_size=16")
    for split in ("train", "val", "all"):
        run_script(
            "util/convert_data.py", f"--split={split}", f"--class_list={data}/classes.txt", f"--data_path={data}/{split}.tsv",
            f"--output_dir={data}",
        )
    run_script(
        "util/find_reference.py", f"--class_list={data}/classes.txt", f"--input_npy={data}/all.npy", f"--output_dir={data}", "--num_ref=16"
    )
    run_script(
        "train.py", f"--data_dir={data}", f"--checkpoint_dir={folder}/run", f"--log_dir={folder}/log", "--n_step=3000",
        "--val_interval=1000",
    )
    score(folder, "scores.tsv", "--output_format=tsv")
    return folder


def score(folder, name, *more):
    run_script(
        "inference.py", f"--image_feature_list={folder}/data/all.tsv", f"--checkpoint_dir={folder}/run",
        f"--output_file={folder}/{name}", *more,
    )
    return folder / name


def read_table(path):
    return [dict(zip(COLUMNS, line.split("\t"))) for line in path.read_text().splitlines()]


def truth(folder):
    return dict(line.split("\t") for line in (folder / "data" / "truth.tsv").read_text().splitlines())


def test_table_agrees_with_the_plain_output(digits):
    plain = np.loadtxt(score(digits, "plain.txt"))
    table = read_table(digits / "scores.tsv")
    rows = [line.split("\t")[:2] for line in (digits / "data" / "all.tsv").read_text().splitlines()]
    assert [[row["key"], row["class"]] for row in table] == rows
    np.testing.assert_array_equal([float(row["cosine"]) for row in table], plain)
    for row in table:
        assert row["verdict"] == ("correct" if float(row["cosine"]) >= 0.1 else "mislabeled")
        # The margin is positive exactly where the given class is the nearest.
        assert (float(row["margin"]) >= 0) == (row["nearest_class"] == row["class"])
        gap = float(row["cosine"]) - float(row["nearest_cosine"])
        assert gap == pytest.approx(min(float(row["margin"]), 0), abs=1e-6)


def test_probability_is_the_softmax_of_the_cosines_to_all_classes(digits):
    classes = (digits / "data" / "classes.txt").read_text().split()
    images = [line.split("\t") for line in (digits / "data" / "all.tsv").read_text().splitlines()[:20]]
    lines = [f"{key}\t{name}\t{feature}\n" for key, _, feature in images for name in classes]  # every image under every class
    (digits / "every_class.tsv").write_text("".join(lines))
    more = (f"--image_feature_list={digits}/every_class.tsv", "--output_format=tsv")
    table = read_table(score(digits, "every_class_scores.tsv", *more))
    cosines, probabilities = (np.array([float(row[name]) for row in table]).reshape(20, 10) for name in ("cosine", "probability"))
    softmax = np.exp(cosines / 0.1)
    np.testing.assert_allclose(probabilities, softmax / softmax.sum(axis=1, keepdims=True), rtol=1e-4)


def test_formats_by_suffix(digits):
    import pyarrow.parquet

    plain = np.loadtxt(score(digits, "plain.txt")).astype(np.float32)
    np.testing.assert_array_equal(np.load(score(digits, "scores.npy"), allow_pickle=False), plain)
    columns = pyarrow.parquet.read_table(score(digits, "scores.parquet", "--output_format=tsv")).to_pydict()
    assert list(columns) == COLUMNS
    np.testing.assert_array_equal(np.float32(columns["cosine"]), plain)
    for name in ("margin", "probability"):
        np.testing.assert_allclose(np.loadtxt(score(digits, f"{name}.txt", f"--score={name}")), columns[name], atol=1e-6)


def test_automatic_threshold_is_the_one_kept_with_the_checkpoint(digits):
    best = json.loads((digits / "run" / "best.json").read_text())
    table = read_table(score(digits, "auto.tsv", "--output_format=tsv", "--val_sim_thres=auto"))
    for row in table:
        assert row["verdict"] == ("correct" if float(row["cosine"]) >= best["threshold"] else "mislabeled")
    val = np.load(digits / "data" / "val.npy")
    run_script(
        "inference.py", "--mode=val", f"--data_dir={digits}/data", f"--checkpoint_dir={digits}/run", f"--output_file={digits}/val.txt"
    )
    scores, labels, ids = np.loadtxt(digits / "val.txt"), val[:, -1] == 1, val[:, -2]

    def error(threshold):
        return np.mean([np.mean((scores >= threshold)[ids == c] != labels[ids == c]) for c in range(10)])

    assert error(best["threshold"]) == pytest.approx(min(error(t) for t in np.linspace(-1, 1, 2001)), abs=2e-3)


def test_suggested_class_is_right_for_most_of_the_mislabeled_validation_rows(digits):
    true, table = truth(digits), {row["key"]: row for row in read_table(digits / "scores.tsv")}
    val = [line.split("\t")[:3] for line in (digits / "data" / "val.tsv").read_text().splitlines()]
    wrong = [key for key, _, label in val if label == "0"]
    right = [table[key]["nearest_class"] == true[key] for key in wrong]
    print(f"\nsuggested class right: {np.mean(right):.3f} of {len(wrong)}")
    assert np.mean(right) >= 0.7


def test_lowest_scoring_rows_drawn_are_wrong(digits):
    done = run_script(
        "util/draw_examples.py", f"--score_file={digits}/scores.tsv", f"--image_feature_list={digits}/data/all.tsv",
        f"--image_dir={digits}/data/images", f"--verified_list={digits}/data/train.tsv,{digits}/data/val.tsv",
        f"--output_file={digits}/examples.png",
    )
    assert "200 images of 10 classes" in done.stdout
    assert cv2.imread(str(digits / "examples.png")).shape[1] > 1500
    true, table = truth(digits), read_table(digits / "scores.tsv")
    drawn = []
    for name in set(true.values()):
        lowest = sorted((row for row in table if row["class"] == name), key=lambda row: float(row["cosine"]))[:10]
        drawn += [true[row["key"]] != name for row in lowest]
    print(f"\ntruly wrong among the ten lowest of each class: {np.mean(drawn):.3f}")
    assert np.mean(drawn) >= 0.8


def test_mosaic_of_two_files_with_missing_and_hostile_keys(digits, tmp_path):
    lines = (digits / "data" / "all.tsv").read_text().splitlines()[:40]
    outside = tmp_path / "outside.png"
    cv2.imwrite(str(outside), np.zeros((8, 8), np.uint8))
    images = tmp_path / "images"
    images.mkdir()
    (images / "digit_0001.png").write_bytes(b"")
    listed = tmp_path / "list.tsv"
    rows = []
    for i, line in enumerate(lines):
        key, name, feature = line.split("\t")
        url = str(digits / "data" / "images" / key) if i >= 4 else ""
        rows.append(f"{'../outside.png' if i == 0 else key}\t{url}\t{name}\t{feature}\n")
    listed.write_text("".join(rows))
    for name in ("f.txt", "d.txt"):
        (tmp_path / name).write_text("".join(f"{i / 40}\n" for i in range(40)))
    done = run_script(
        "util/draw_examples.py", f"--score_file={tmp_path}/f.txt", f"--second_score_file={tmp_path}/d.txt",
        f"--image_feature_list={listed}", f"--image_dir={images}", f"--output_file={tmp_path}/out.png", "--num_examples=2",
    )
    assert "4 of them unreadable" in done.stdout  # ../outside.png, the empty file and two that are not there


def test_weights_and_cleaned_list(digits, tmp_path):
    for kind, expected in (("soft", lambda s: np.maximum(s, 0)), ("hard", lambda s: s >= 0.3)):
        run_script(
            "util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--weights={kind}", "--val_sim_thres=0.3",
            f"--output_file={tmp_path}/{kind}.npy", f"--list_file={tmp_path}/cleaned.tsv",
        )
        cosine = np.array([float(row["cosine"]) for row in read_table(digits / "scores.tsv")])
        np.testing.assert_allclose(np.load(tmp_path / f"{kind}.npy"), expected(cosine), rtol=1e-6)
    cleaned = [line.split("\t") for line in (tmp_path / "cleaned.tsv").read_text().splitlines()]
    assert len(cleaned) == 1797
    for row, (key, name, action, _) in zip(read_table(digits / "scores.tsv"), cleaned):
        assert key == row["key"]
        keep = float(row["cosine"]) >= 0.3
        relabel = not keep and row["nearest_class"] != row["class"] and float(row["nearest_cosine"]) >= 0.5
        assert action == ("keep" if keep else "relabel" if relabel else "recheck")
        assert name == (row["nearest_class"] if relabel else row["class"])
    true = truth(digits)
    before = np.mean([row["class"] != true[row["key"]] for row in read_table(digits / "scores.tsv")])
    after = np.mean([name != true[key] for key, name, action, _ in cleaned if action != "recheck"])
    assert after < before / 3


def test_readme_code_trains_a_keras_classifier_with_the_weights(digits, tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.S) if "keras" in block)
    (tmp_path / "runs").mkdir()
    run_script("util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--output_file={tmp_path}/runs/weights.npy")
    monkeypatch.chdir(tmp_path)
    rows = [line.split("\t") for line in (digits / "data" / "all.tsv").read_text().splitlines()]
    names = (digits / "data" / "classes.txt").read_text().split()
    scope = {"x": np.float32([row[2].split(",") for row in rows]) / 16, "y": np.array([names.index(row[1]) for row in rows])}
    exec(code, scope)
    assert scope["model"].predict(scope["x"], verbose=0).shape == (1797, 10)


@pytest.mark.slow
def test_tensorboard_shows_both_splits(digits):
    """TensorBoard itself, on the log folder, asked through its HTTP API."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={digits}/log", "--port=0", "--host=127.0.0.1"],
        stderr=subprocess.PIPE, text=True,
    )
    try:
        address = next(line.split("at ")[1].split()[0] for line in process.stderr if "http://" in line)
        tags = json.load(urllib.request.urlopen(address + "data/plugin/scalars/tags"))
        while not {"train", "val"} <= tags.keys():  # it loads while it serves
            tags = json.load(urllib.request.urlopen(address + "data/plugin/scalars/tags"))
        assert {"accuracy", "loss/supervised"} <= tags["train"].keys() & tags["val"].keys()
        points = json.load(urllib.request.urlopen(address + "data/plugin/scalars/scalars?run=val&tag=accuracy"))
        assert [step for _, step, _ in points] == [1000, 2000, 3000]
        histograms = json.load(urllib.request.urlopen(address + "data/plugin/histograms/tags"))
        assert {"cosine/correct", "cosine/mislabeled"} <= histograms["val"].keys()
        runs = json.load(urllib.request.urlopen(address + "data/plugin/projector/runs"))
        assert any("val" in run for run in runs)
    finally:
        process.kill()
        process.wait()
