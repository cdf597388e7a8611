"""util/lib/scorer.py: classes embedded by their rows, against NumPy."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, NUM_REF, history, make_rows, run_script, train_arguments, unverified, write_rows

import model
from util.lib import arrays, metrics, run_folder, scorer


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
    errors = [100 * history(run)[-1][group]["chosen"]["average_error_rate"] for group in ("all", "kept", "heldout")]
    line = ", average error {:.2f} % (kept classes {:.2f} %, held-out classes {:.2f} %)".format(*errors)
    assert line in (by_rows_run / "printed.txt").read_text()


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


@pytest.mark.parametrize("embed_norm", ["l2_norm", "signed_log", "scaled_log"])
@pytest.mark.parametrize("factor", [1e-30, 1e-8, 0.01, 100, 1e20, 1e30])
def test_scores_are_those_of_any_scale(embed_norm, factor):
    rng = np.random.default_rng(2)
    features, ids = rng.normal(size=(50, IMG_DIM)).astype(np.float32), rng.integers(5, size=50).astype(np.int32)
    references = rng.normal(size=(5, NUM_REF, IMG_DIM)).astype(np.float32)

    def score(scale):
        net = model.CleanNet(NUM_REF, IMG_DIM, embed_norm, seed=3, embed_scale=arrays.scale_for(references * scale))
        return scorer.Scorer(net, references * scale).score(features * scale, ids)

    one, other = score(np.float32(1)), score(np.float32(factor))
    np.testing.assert_allclose(other.cosine, one.cosine, atol=1e-5)
    assert np.ptp(one.cosine) > 0.1
