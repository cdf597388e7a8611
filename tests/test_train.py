"""train.py through its command line: checkpoints, best, resume, held-out classes."""
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, IMG_DIM, NUM_REF, make_rows, run_script, train_arguments, unverified, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model
from util.lib import metrics, run_folder, scorer


def weights(run, step):
    """All tensors of a checkpoint by name."""
    reader = tf.train.load_checkpoint(str(pathlib.Path(run) / f"step-{step:08d}" / "ckpt"))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


def assert_same_run(one, other, step):
    """Two run folders end with the same weights, momentum, best checkpoint and history, bit for bit."""
    first, second = weights(one, step), weights(other, step)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    kept = [f"step-{step:08d}/{path.name}" for path in (pathlib.Path(one) / f"step-{step:08d}").glob("class_embeddings.npy")]
    for name in ("validation.jsonl", "best.json", *kept):
        assert (pathlib.Path(one) / name).read_bytes() == (pathlib.Path(other) / name).read_bytes()


def history(run):
    return [json.loads(line) for line in (pathlib.Path(run) / "validation.jsonl").read_text().splitlines()]


def test_run_folder_documents_itself(trained_dir):
    run = trained_dir / "run"
    assert [entry["step"] for entry in history(run)] == [20, 40, 60]
    best = json.loads((run / "best.json").read_text())
    accuracies = [entry["fixed"]["accuracy"] for entry in history(run)]
    assert best["step"] == [20, 40, 60][int(np.argmax(accuracies))]  # the first of equals
    assert best["score"] == max(accuracies)
    assert (run / f"step-{best['step']:08d}").is_dir()
    description = json.loads((run / "run.json").read_text())
    assert description["shape"] == {"num_class": 5, "num_ref": 7, "img_dim": 13, "embed_norm": "log"}
    assert description["flags"]["n_step"] == 60
    assert (run / "classes.txt").read_text().splitlines() == CLASSES


def test_summaries(trained_dir):
    """TensorBoard scalars of both splits."""
    found = {}
    for split in ("train", "val"):
        events = EventAccumulator(str(trained_dir / "log" / split), size_guidance={"tensors": 0}).Reload()
        found |= {(split, tag): [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    losses = [f"loss/{term}" for term in ("total", "supervised", "unsupervised", "reconstruction", "weight_penalty")]
    for tag in (*losses, "accuracy", "learning_rate", "examples_per_second"):
        assert found["train", tag] == list(range(5, 61, 5)), tag
    assert found["val", "accuracy"] == [20, 40, 60]


def test_resumed_equals_uninterrupted(sample_dir, trained_dir, tmp_path):
    """60 steps in one go against 25 (in the middle of an interval) + 35."""
    keywords = {"n_step": 25, "val_interval": 20}
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, **keywords))
    done = run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, n_step=60, val_interval=20))
    assert "from step 25 to 60" in done.stdout
    first, second = weights(trained_dir / "run", 60), weights(tmp_path / "run", 60)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


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
        (data / name).write_bytes((sample_dir / "data" / name).read_bytes())
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
    data.mkdir()
    for path in (sample_dir / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    run_script(
        "util/convert_data.py", "--split=train", f"--class_list={sample_dir}/classes.txt", f"--data_path={tmp_path}/train.tsv",
        f"--output_dir={data}",
    )
    run_script("train.py", *train_arguments(data, tmp_path, n_step=60, heldout_class_list=f"{tmp_path}/heldout.tsv"))
    return tmp_path


def test_heldout_classes_are_measured_apart(heldout_run):
    heldout = [CLASSES.index("ramen"), CLASSES.index("tacos")]
    train_array = np.load(heldout_run / "data" / "train.npy")
    assert not np.isin(train_array[:, -2], heldout).any()
    best = json.loads((heldout_run / "run" / "best.json").read_text())
    kept = [entry["fixed"]["kept_accuracy"] for entry in history(heldout_run / "run")]
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


@pytest.fixture
def by_rows_run(sample_dir, tmp_path):
    """A run whose classes are embedded by their rows, since two are held out."""
    (tmp_path / "heldout.tsv").write_text("ramen\t0\ntacos\t0\n")
    arguments = train_arguments(
        sample_dir / "data", tmp_path, class_embedding="auto", class_contrast=1, score="probability", val_sim_thres="auto",
        heldout_class_list=f"{tmp_path}/heldout.tsv",
    )
    (tmp_path / "printed.txt").write_text(run_script("train.py", *arguments).stdout)
    write_rows(tmp_path / "val.tsv", unverified(make_rows(67, seed=2)))
    return tmp_path


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def test_classes_embedded_by_their_rows(by_rows_run, sample_dir):
    """The means, weighted by probability, in NumPy; and scores by them, of a validation, of inference and of its text input."""
    run, best = by_rows_run / "run", json.loads((by_rows_run / "run" / "best.json").read_text())
    net = model.CleanNet(NUM_REF, IMG_DIM)
    run_folder.restore(str(run), best["step"], net)
    phi_s = net.embed_classes(np.load(run / "ref.npy")).numpy()
    everything, val = (np.load(sample_dir / "data" / f"{split}.npy") for split in ("all", "val"))
    phi_q, ids = net.embed_queries(everything[:, :IMG_DIM]).numpy(), everything[:, IMG_DIM].astype(int)
    weights = softmax(phi_q @ phi_s.T / 0.1)[np.arange(len(ids)), ids]
    means = np.stack([(weights[ids == c, None] * phi_q[ids == c]).sum(axis=0) for c in range(len(CLASSES))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(run / f"step-{best['step']:08d}" / "class_embeddings.npy"), means, atol=1e-5)
    assert np.abs(means - phi_s).max() > 0.01

    def inference(*more):
        run_script("inference.py", f"--checkpoint_dir={run}", f"--output_file={by_rows_run}/out.txt", "--val_sim_thres=auto", *more)
        return np.loadtxt(by_rows_run / "out.txt")

    val_ids, labels = val[:, IMG_DIM].astype(int), val[:, -1].astype(int)
    expected = softmax(net.embed_queries(val[:, :IMG_DIM]).numpy() @ means.T / 0.1)[np.arange(len(val)), val_ids]
    np.testing.assert_allclose(inference("--mode=val", f"--data_dir={sample_dir}/data"), expected, atol=1e-5)
    np.testing.assert_allclose(inference(f"--image_feature_list={by_rows_run}/val.tsv"), expected, atol=1e-5)
    kept = ~np.isin(val_ids, [CLASSES.index("ramen"), CLASSES.index("tacos")])
    threshold = metrics.best_threshold(expected[kept], labels[kept], val_ids[kept])
    assert best["threshold"] == pytest.approx(threshold, abs=1e-5)
    chosen = history(run)[-1]["chosen"]
    errors = [100 * chosen[f"{group}average_error_rate"] for group in ("", "kept_", "heldout_")]
    assert "): {:.2f} % (kept classes {:.2f} %, held-out classes {:.2f} %)".format(*errors) in (by_rows_run / "printed.txt").read_text()


def test_means_of_large_classes_are_over_rows_from_all_over_the_file(monkeypatch):
    monkeypatch.setattr(scorer, "MEAN_OVER", 5)
    features = np.random.default_rng(0).random((40, IMG_DIM), np.float32)
    ids = np.repeat(np.int32([0, 1, 2]), [4, 33, 3])
    model_scorer = scorer.Scorer(model.CleanNet(NUM_REF, IMG_DIM), np.random.default_rng(1).random((4, NUM_REF, IMG_DIM), np.float32))
    phi_s, means = model_scorer.class_embeddings.numpy(), []
    for chosen in (np.arange(40), np.r_[0:4, 4:37:8, 37:40]):
        first = np.searchsorted(ids[chosen], range(5))
        model_scorer.embed_by_rows(SimpleNamespace(features=features[chosen], class_ids=ids[chosen], first=first))
        means.append(model_scorer.class_embeddings.numpy())
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)
    np.testing.assert_array_equal(means[0][3], phi_s[3])  # a class without rows keeps the embedding of its references
    assert np.abs(means[0] - phi_s)[:3].max(axis=1).min() > 0.01


def test_classes_are_embedded_by_references_where_none_is_held_out(sample_dir, tmp_path):
    run_script("train.py", *train_arguments(sample_dir / "data", tmp_path, class_embedding="auto", n_step=10))
    assert not list((tmp_path / "run").glob("step-*/class_embeddings.npy"))


def test_class_list_in_another_order_is_refused(sample_dir, trained_dir, tmp_path):
    shuffled = tmp_path / "classes.txt"
    shuffled.write_text("\n".join([CLASSES[1], CLASSES[0], *CLASSES[2:]]) + "\n")
    done = run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--class_list={shuffled}", f"--image_feature_list={sample_dir}/all.tsv",
        f"--output_file={tmp_path}/pred.txt", check=False,
    )
    assert done.returncode == 1
    assert 'class 0 is "ramen", but "apple pie"' in done.stderr
    done = run_script(
        "util/find_reference.py", f"--class_list={shuffled}", f"--input_npy={sample_dir}/data/all.npy", f"--output_dir={tmp_path}",
        check=False,
    )
    assert done.returncode == 1
    assert 'class 0 is "ramen", but "apple pie"' in done.stderr


def test_skipped_empty_class(sample_dir, tmp_path):
    """A class without rows: trained around, and scored nan."""
    rows = [line for line in (sample_dir / "all.tsv").read_text().splitlines(keepends=True) if "\tsushi\t" not in line]
    (tmp_path / "all.tsv").write_text("".join(rows))
    data = tmp_path / "data"
    common = [f"--class_list={sample_dir}/classes.txt", f"--output_dir={data}"]
    for split, folder in (("train", sample_dir), ("val", sample_dir), ("all", tmp_path)):
        run_script("util/convert_data.py", f"--split={split}", f"--data_path={folder}/{split}.tsv", *common)
    run_script("util/find_reference.py", f"--input_npy={data}/all.npy", "--num_ref=7", "--skip_empty_classes", *common)
    done = run_script("train.py", *train_arguments(data, tmp_path), check=False)
    assert done.returncode == 1
    assert "1 classes have no rows in all.npy or no references: sushi" in done.stderr
    run_script("train.py", *train_arguments(data, tmp_path), "--skip_empty_classes")
    run_script(
        "inference.py", f"--checkpoint_dir={tmp_path}/run", f"--image_feature_list={sample_dir}/all.tsv",
        f"--output_file={tmp_path}/pred.txt",
    )
    scores = np.loadtxt(tmp_path / "pred.txt")
    is_sushi = np.array(["\tsushi\t" in line for line in (sample_dir / "all.tsv").read_text().splitlines()])
    np.testing.assert_array_equal(np.isnan(scores), is_sushi)


def test_threshold_by_hand():
    scores = np.float32([0.9, 0.8, 0.3, 0.2, 0.7, 0.6])
    labels = np.array([1, 1, 0, 0, 1, 0])
    class_ids = np.array([0, 0, 0, 0, 2, 2])
    assert metrics.best_threshold(scores, labels, class_ids) == pytest.approx(0.65)
    assert metrics.average_error_rate(scores >= 0.65, labels, class_ids) == 0
    # Class 0 errs on 1 of 4 rows, class 2 on 1 of 2; class 1 has none.
    assert metrics.average_error_rate(scores >= 0.25, labels, class_ids) == pytest.approx((0.25 + 0.5) / 2)


def test_best_threshold_equals_a_search():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = rng.integers(1, 40)
        scores = np.round(rng.normal(size=n), 1).astype(np.float32)
        labels, class_ids = rng.integers(0, 2, n), rng.integers(0, 4, n)
        found = metrics.average_error_rate(scores >= metrics.best_threshold(scores, labels, class_ids), labels, class_ids)
        edges = np.concatenate([[-9], np.unique(scores) + 0.05, [9]])
        assert found == pytest.approx(min(metrics.average_error_rate(scores >= t, labels, class_ids) for t in edges))


def test_cross_fitting_does_not_see_its_own_half():
    """Scores without any information: the error of a threshold chosen on the same rows would look better than chance."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        labels, scores = rng.permutation(np.arange(40) % 2), rng.normal(size=40)
        errors.append(np.mean(metrics.cross_fitted_decisions(scores, labels, np.zeros(40, int)) != (labels == 1)))
    assert np.mean(errors) > 0.48


def test_rows_that_do_not_choose_are_decided_at_the_threshold_of_all_that_do():
    rng = np.random.default_rng(3)
    labels, class_ids = rng.integers(0, 2, 90), np.arange(90) % 3
    scores = labels + rng.normal(size=90)
    kept = class_ids != 2
    decisions = metrics.cross_fitted_decisions(scores, labels, class_ids, choose_on=kept)
    threshold = metrics.best_threshold(scores[kept], labels[kept], class_ids[kept])
    np.testing.assert_array_equal(decisions[~kept], scores[~kept] >= threshold)
    changed = np.where(kept, labels, 1 - labels)  # which change nothing, having no say
    np.testing.assert_array_equal(metrics.cross_fitted_decisions(scores, changed, class_ids, choose_on=kept)[~kept], decisions[~kept])
    first = kept & (metrics.halves(labels, class_ids) == 0)
    assert metrics.best_threshold(scores[first], labels[first], class_ids[first]) != threshold
