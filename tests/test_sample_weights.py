"""util/lib/sample_weights.py: what each row of an array is trained with, and classifier.py's loss of it."""
import numpy as np
import pytest
from conftest import run_script

from util.lib import arrays, sample_weights
from util.lib.errors import UserError

NAMES = ["ant", "bee", "cow"]
GIVEN = [0, 0, 1, 1, 2, 2, 2]


def write_array(folder, split, keys, columns):
    features = np.ones((len(keys), 5), np.float32)
    np.save(folder / f"{split}.npy", np.concatenate([features, np.float32(columns).reshape(len(keys), -1)], axis=1))
    (folder / f"{split}_keys.txt").write_text("".join(f"{key}\n" for key in keys))
    return arrays.FeatureArray(str(folder / f"{split}.npy"), class_names=NAMES, verified=split != "all")


@pytest.fixture
def rows(tmp_path):
    return sample_weights.Rows(list("abcdefg"), np.int32(GIVEN), NAMES, "all.npy")


def write_table(path, order):
    values = {"a": 0.9, "b": -0.2, "c": 0.5, "d": "nan", "e": 0.3, "f": 0.1, "g": 1, "z": 0.7}
    verdict = {"a": "correct", "c": "correct", "g": "correct", "d": "unknown"}
    name = {key: NAMES[c] for key, c in zip("abcdefg", GIVEN)}
    line = "{}\t{}\t{}\t0\t0\t{}\tant\t0.5\tcosine\n"
    lines = [line.format(key, name.get(key, "ant"), values[key], verdict.get(key, "mislabeled")) for key in order]
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.parametrize("order", ["abcdefg", "gfzedcba"])
def test_scores_are_joined_by_key(rows, tmp_path, order):
    path = write_table(tmp_path / "s.tsv", order)
    rows.weight_by_scores(path, "soft")
    np.testing.assert_allclose(rows.weights, [0.9, 0, 0.5, 0, 0.3, 0.1, 1])
    rows.weight_by_scores(path, "hard")
    assert rows.weights.tolist() == [1, 0, 1, 0, 0, 0, 1]


def test_plain_scores_are_in_order(rows, tmp_path):
    (tmp_path / "s.txt").write_text("1\n-1\n0.5\n0\n0\n0\n2\n")
    rows.weight_by_scores(str(tmp_path / "s.txt"), "soft")
    assert rows.weights.tolist() == [1, 0, 0.5, 0, 0, 0, 2]


@pytest.mark.parametrize("name", ["w.npy", "w.txt", "w.txt.gz"])
def test_weights_are_read_as_written(rows, tmp_path, name):
    weights = np.float32([0.1, 0, 1, 2, 3, 1e-9, 0.25])
    sample_weights.write(str(tmp_path / name), weights)
    np.testing.assert_array_equal(sample_weights.read(str(tmp_path / name), 7, "all.npy"), weights)


def test_verified_rows_and_the_cleaned_list(rows, tmp_path):
    """A correct row keeps its class, a mislabeled one is left out, unless the list knows a better class for it."""
    (tmp_path / "l.tsv").write_text(
        "key\tgiven_class\tsuggested_class\taction\tscore\treason\n"
        "b\tant\tcow\trelabel\t0\t\nc\tbee\tant\trelabel\t0\t\na\tant\tant\tkeep\t1\t\nf\tcow\tbee\trecheck\t0\t\ne\tcow\tcow\tdrop\t0\t\nnone\tant\tcow\trelabel\t0\t\n"
    )
    rows.weights[:] = 0.5
    assert rows.relabel(str(tmp_path / "l.tsv")) == (2, 1)
    assert rows.class_ids.tolist() == [0, 2, 0, 1, 2, 2, 2]
    verified = write_array(tmp_path, "train", "gbcdx", [[2, 0], [0, 0], [1, 1], [1, 1], [0, 1]])
    assert rows.verify(verified) == 4
    assert rows.class_ids.tolist() == [0, 2, 1, 1, 2, 2, 2]
    assert rows.weights.tolist() == [0.5, 1, 1, 1, 0, 0.5, 0]
    assert rows.leave_out(["a", "y"], "test") == 1
    assert rows.weights.tolist() == [0, 1, 1, 1, 0, 0.5, 0]
    assert rows.given.tolist() == GIVEN


@pytest.mark.parametrize("name", ["l.tsv", "l.csv", "l.csv.gz"])
def test_the_cleaned_list_is_read_as_written(tmp_path, name):
    """Whatever the names of the classes, and with decisions of people."""
    names = ['ant, "red"', "bee", "cow"]
    line = "{}\t{}\t{}\t0\t0\t{}\t{}\t0.9\tcosine\n"
    given = dict(zip("abcde", (0, 1, 1, 2, 2)))
    scores = {
        "a": (0.9, "correct", 0), "b": (-0.9, "mislabeled", 0), "c": (0.1, "mislabeled", 1), "d": (0.2, "mislabeled", 0),
        "e": (0.3, "correct", 2),
    }
    (tmp_path / "s.tsv").write_text("".join(line.format(key, names[given[key]], s, v, names[c]) for key, (s, v, c) in scores.items()))
    decided = [("d", "0", ""), ("e", "0", names[0])]
    lines = [f"{key}\t{names[given[key]]}\t{label}\tann\t2026-01-02T03:04:05Z\t{right}\n" for key, label, right in decided]
    (tmp_path / "v.tsv").write_text("".join(lines))
    inputs = [f"--score_file={tmp_path}/s.tsv", f"--decisions={tmp_path}/v.tsv"]
    run_script("util/export_weights.py", *inputs, f"--list_file={tmp_path}/{name}")
    assert sample_weights.read_list(str(tmp_path / name)) == {
        "line": [2, 3, 4, 5, 6], "key": list("bcdea"), "given_class": [names[given[key]] for key in "bcdea"],
        "suggested_class": [names[0], "bee", "cow", names[0], names[0]], "action": ["relabel", "recheck", "drop", "relabel", "keep"],
    }


def test_balance_gives_classes_the_same_sum(rows):
    rows.weights[:] = [1, 3, 0, 0, 1, 1, 2]
    rows.balance()
    np.testing.assert_allclose(rows.weights, [1, 3, 0, 0, 1, 1, 2])
    rows.weights[2] = 1
    rows.balance()
    np.testing.assert_allclose(rows.weights, [0.75, 2.25, 3, 0, 0.75, 0.75, 1.5])


def test_keys_that_repeat():
    twice = sample_weights.Rows(list("abcdefa"), np.int32(GIVEN), NAMES, "all.npy")
    assert twice.leave_out(list("abcdefa"), "test") == 7
    with pytest.raises(UserError, match='has the key "a" twice'):
        twice.leave_out(["b"], "test")


def test_the_loss_is_a_weighted_mean():
    """One step against NumPy: cross-entropy with smoothing, weights of mean 1 over the training, and the accuracy."""
    import keras
    import tensorflow as tf

    from util.lib.classifier import LOGITS, Batches, Trainer
    rng = np.random.default_rng(0)
    x, classes, weights = rng.normal(size=(7, 5)).astype(np.float32), np.int32(GIVEN), np.float32([1, 2, 0, 1, 5, 0, 3])
    inputs = keras.Input((5,))
    net = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3, name=LOGITS)(inputs)))
    kernel, bias = net.get_weights()
    used = np.array([0, 1, 3, 4, 6])
    chunk = Batches(used, lambda rows, _: x[rows], classes, weights, batch_size=5, seed=[1]).chunk(0, 1)
    trainer = Trainer(net, learning_rate=0.1, weight_decay=0.0, n_step=3, label_smoothing=0.2, strategy=tf.distribute.get_strategy())
    ((loss, accuracy),) = trainer(*chunk)
    logits = x[used] @ kernel + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(5), classes[used]]
    expected = np.average(-0.8 * own - 0.2 * log_p.mean(axis=1), weights=weights[used])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == pytest.approx(np.mean(log_p.argmax(axis=1) == classes[used]))
    assert all((before != after).all() for before, after in zip((kernel, bias), net.get_weights()))
