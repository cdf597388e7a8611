"""train.py through its command line: checkpoints, best, resume, held-out classes."""
import json
import shutil

import numpy as np
import pytest
from conftest import CLASSES, assert_same_weights, convert, convert_all, find_references, history, run_script, train_arguments


def test_run_folder_documents_itself(trained_dir):
    run = trained_dir / "run"
    assert [entry["step"] for entry in history(run)] == [20, 40, 60]
    best = json.loads((run / "best.json").read_text())
    accuracies = [entry["all"]["fixed"]["accuracy"] for entry in history(run)]
    assert best["step"] == [20, 40, 60][int(np.argmax(accuracies))]  # the first of equals
    assert best["score"] == max(accuracies)
    assert (run / f"step-{best['step']:08d}").is_dir()
    description = json.loads((run / "run.json").read_text())
    assert description["shape"] == {"num_class": 5, "num_ref": 7, "img_dim": 13, "embed_norm": "log"}
    assert description["flags"]["n_step"] == 60
    assert (run / "classes.txt").read_text().splitlines() == CLASSES


def test_resumed_equals_uninterrupted(sample_dir, trained_dir, tmp_path):
    """60 steps at once against 25 (in the middle of an interval) + 35, the 25 in an interpreter of their own."""
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, n_step=25, val_interval=20), fresh=True)
    done = run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, n_step=60, val_interval=20))
    assert "from step 25 to 60" in done.stdout
    assert_same_weights(trained_dir / "run", tmp_path / "run", 60)


def test_only_the_latest_and_the_best_are_kept(sample_dir, tmp_path):
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, n_step=60, val_interval=5, max_to_keep=2))
    best = json.loads((tmp_path / "run" / "best.json").read_text())["step"]
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "run").glob("step-*"))
    assert kept == sorted({best, 55, 60})


def test_a_changed_setting_is_refused_and_a_longer_run_is_not(sample_dir, trained_dir):
    done = run_script("train.py", *train_arguments(sample_dir / "data", trained_dir, n_step=60, momentum=0.8), check=False)
    assert done.returncode == 1
    assert "the run there has momentum=0.9, this command momentum=0.8" in done.stderr


def test_without_unverified_rows_all_npy_is_not_needed(sample_dir, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.npy", "val.npy", "ref.npy", "classes.txt", "train_keys.txt", "val_keys.txt"):
        shutil.copy(sample_dir / "data" / name, data)
    run_script("train.py", *train_arguments(data, tmp_path, n_step=10, batch_size_unsup=0))
    assert (tmp_path / "run" / "step-00000010").is_dir()


def test_nonfinite_loss_stops_with_the_steps(sample_dir, tmp_path):
    done = run_script(
        "train.py", *train_arguments(sample_dir / "data", tmp_path, embed_norm="no_norm", learning_rate=1e6, weight_decay=1e3),
        check=False,
    )
    assert done.returncode == 1
    assert "is not finite; the likely cause is" in done.stderr
    assert "of the steps" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def heldout_run(sample_dir, tmp_path):
    (tmp_path / "heldout.tsv").write_text("ramen\t0\ntacos\t0\nsushi\t1\n")
    run_script(
        "util/heldout_train_data.py", f"--heldout_class_list={tmp_path}/heldout.tsv", f"--input_file={sample_dir}/train.tsv",
        f"--output_file={tmp_path}/train.tsv",
    )
    data = tmp_path / "data"
    shutil.copytree(sample_dir / "data", data)
    convert("train", data, tmp_path / "train.tsv", sample_dir / "classes.txt")
    run_script("train.py", *train_arguments(data, tmp_path, n_step=60, heldout_class_list=f"{tmp_path}/heldout.tsv"))
    return tmp_path


def test_heldout_classes_are_measured_apart(heldout_run):
    heldout = [CLASSES.index("ramen"), CLASSES.index("tacos")]
    train_array = np.load(heldout_run / "data" / "train.npy")
    assert not np.isin(train_array[:, -2], heldout).any()
    best = json.loads((heldout_run / "run" / "best.json").read_text())
    kept = [entry["kept"]["fixed"]["accuracy"] for entry in history(heldout_run / "run")]
    assert best["score"] == max(kept)
    assert best["step"] == history(heldout_run / "run")[int(np.argmax(kept))]["step"]
    done = run_script(
        "inference.py", "--mode=val", f"--data_dir={heldout_run}/data", f"--checkpoint_dir={heldout_run}/run",
        f"--output_file={heldout_run}/val.txt", f"--heldout_class_list={heldout_run}/heldout.tsv",
    )
    scores = np.loadtxt(heldout_run / "val.txt")
    val = np.load(heldout_run / "data" / "val.npy")
    ids, labels = val[:, -2].astype(int), val[:, -1].astype(int)
    for name, classes in (("kept", [0, 2, 3]), ("held-out", heldout)):
        errors = [np.mean((scores[ids == c] >= 0.1) != (labels[ids == c] == 1)) for c in classes]
        assert f"{name} classes at 0.1: average error rate {100 * np.mean(errors):.2f} %" in done.stdout


def test_classes_are_embedded_by_references_where_none_is_held_out(sample_dir, tmp_path):
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, class_embedding="auto", n_step=10))
    assert not list((tmp_path / "run").glob("step-*/class_embeddings.npy"))


def test_skipped_empty_class(sample_dir, tmp_path):
    """A class without rows: trained around, and scored nan."""
    rows = [line for line in (sample_dir / "all.tsv").read_text().splitlines(keepends=True) if "\tsushi\t" not in line]
    (tmp_path / "all.tsv").write_text("".join(rows))
    for name in ("classes.txt", "train.tsv", "val.tsv"):
        shutil.copy(sample_dir / name, tmp_path)
    data = tmp_path / "data"
    convert_all(data, tmp_path)
    find_references(data, tmp_path / "classes.txt", 7, "--skip_empty_classes")
    done = run_script("train.py", *train_arguments(data, tmp_path), check=False)
    assert done.returncode == 1
    assert "1 class without rows in all.npy or without references: sushi" in done.stderr
    run_script("train.py", *train_arguments(data, tmp_path), "--skip_empty_classes")
    run_script(
        "inference.py", f"--checkpoint_dir={tmp_path}/run", f"--image_feature_list={sample_dir}/all.tsv",
        f"--output_file={tmp_path}/pred.txt",
    )
    scores = np.loadtxt(tmp_path / "pred.txt")
    is_sushi = np.array(["\tsushi\t" in line for line in (sample_dir / "all.tsv").read_text().splitlines()])
    np.testing.assert_array_equal(np.isnan(scores), is_sushi)


@pytest.fixture
def unverified_data(sample_dir, tmp_path):
    """The sample without train.npy and val.npy."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("all.npy", "all_keys.txt", "ref.npy", "classes.txt"):
        shutil.copy(sample_dir / "data" / name, data)
    return data


def from_nothing(data, folder, n_step, **more):
    """Trains without any verified row. Returns the finished process."""
    flags = {"batch_size_sup": 0, "class_contrast": 1, "val_interval": 10, "val_sim_thres": "auto", "score": "probability", **more}
    return run_script("train.py", *train_arguments(data, folder, n_step=n_step, **flags))


def test_without_verified_rows_the_threshold_is_an_estimate_and_said_to_be_one(sample_dir, unverified_data, tmp_path):
    """From all.npy alone: training, resumed too, scores, and a report once there are verified rows."""
    done = from_nothing(unverified_data, tmp_path, 30)
    assert "0 verified rows, 211 unverified" in done.stdout
    assert "step 10: no val.npy, so nothing is measured; threshold estimated from the scores alone" in done.stdout
    assert "is an estimate from the scores alone" in done.stdout.splitlines()[-1]
    run = tmp_path / "run"
    best, entries = json.loads((run / "best.json").read_text()), history(run)
    assert [sorted(entry) for entry in entries] == [["estimated_threshold", "step"]] * 3
    assert best == {"step": 30, "score": 30.0, "criterion": "latest step", "threshold": entries[-1]["estimated_threshold"]}

    (tmp_path / "parts").mkdir()
    from_nothing(unverified_data, tmp_path / "parts", 10)
    assert "from step 10 to 30" in from_nothing(unverified_data, tmp_path / "parts", 30).stdout
    assert_same_weights(run, tmp_path / "parts" / "run", 30)

    common = [f"--checkpoint_dir={run}", "--val_sim_thres=auto"]
    done = run_script(
        "inference.py", *common, f"--image_feature_list={sample_dir}/all.tsv", f"--output_file={tmp_path}/scores.tsv", "--output_format=tsv"
    )
    assert f"below {best['threshold']:g}, a threshold estimated from the scores alone" in done.stdout
    rows = [line.split("\t") for line in (tmp_path / "scores.tsv").read_text().splitlines()]
    assert {row[8] for row in rows} == {"probability (estimated threshold)"}
    assert all((float(row[4]) >= best["threshold"]) == (row[5] == "correct") for row in rows)
    run_script("util/export_weights.py", f"--score_file={tmp_path}/scores.tsv", f"--list_file={tmp_path}/cleaned.tsv")
    done = run_script(
        "inference.py", *common, "--mode=val", f"--data_dir={sample_dir}/data", f"--output_file={tmp_path}/val.txt",
        f"--report_dir={tmp_path}/report",
    )
    assert f"at {best['threshold']:.4g}, a threshold estimated from the scores alone: accuracy" in done.stdout
    assert json.loads((tmp_path / "report" / "report.json").read_text())["threshold_estimated"] is True
    assert "(estimated from scores alone)" in (tmp_path / "report" / "report.html").read_text()


def test_without_verified_rows_to_train_on_val_npy_still_measures(sample_dir, unverified_data, tmp_path):
    for name in ("val.npy", "val_keys.txt"):
        shutil.copy(sample_dir / "data" / name, unverified_data)
    done = from_nothing(unverified_data, tmp_path, 200, val_interval=100)
    assert "chosen average_error_rate" in done.stdout
    assert history(tmp_path / "run")[-1]["all"]["auroc"] > 0.8


def test_auto_normalises_signed_features_and_a_resumed_run_keeps_it(sample_dir, tmp_path):
    rows = {split: (sample_dir / f"{split}.tsv").read_text().splitlines() for split in ("train", "val", "all")}
    shutil.copy(sample_dir / "classes.txt", tmp_path)
    for split, lines in rows.items():
        columns = [line.rpartition("\t") for line in lines]
        signed = [",".join(str(float(x) - 2) for x in feature.split(",")) for *_, feature in columns]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{front}\t{x}\n" for (front, *_), x in zip(columns, signed)))
    convert_all(tmp_path / "data", tmp_path)
    find_references(tmp_path / "data", tmp_path / "classes.txt", 7)
    command = ["train.py", *train_arguments(tmp_path / "data", tmp_path, n_step=None, embed_norm="auto")]
    done = run_script(*command, "--n_step=200")
    assert "--embed_norm=auto: scaled_log, since the lowest feature is -2" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["shape"]["embed_norm"] == "scaled_log"
    assert "from step 200 to 210" in run_script(*command, "--n_step=210").stdout
    assert history(tmp_path / "run")[-1]["all"]["auroc"] > 0.9
    flags = [f"--image_feature_list={tmp_path}/all.tsv", f"--checkpoint_dir={tmp_path}/run", f"--output_file={tmp_path}/pred.txt"]
    run_script("inference.py", *flags, "--embed_norm=scaled_log")
    assert len((tmp_path / "pred.txt").read_text().splitlines()) == len(rows["all"])


def test_few_verified_rows_for_the_batch_bring_advice(sample_dir, tmp_path):
    """With the class contrast alone: the paper's training is left as it is."""
    num_rows = len(np.load(sample_dir / "data" / "train.npy"))
    for contrast, batch, expected in ((1, 32, True), (1, 2, False), (0, 32, False)):
        flags = {"n_step": 5, "class_contrast": contrast, "batch_size_sup": batch}
        done = run_script("train.py", *train_arguments(sample_dir / "data", tmp_path / f"{contrast}_{batch}", **flags))
        assert (f"{num_rows} verified rows are few for --batch_size_sup={batch}: 2 was better" in done.stdout) == expected
