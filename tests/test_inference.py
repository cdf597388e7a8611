"""inference.py: scores against NumPy, rows in any number, order and format; a case of each through the command line."""
import json

import numpy as np
import pytest
from conftest import CLASSES, load_command, read_table, run_script, score_digits
from sklearn.metrics import roc_auc_score

from util.lib import rows, scoring


def score(trained_dir, path, out, *more):
    """The scores that the command writes for a file of rows, float [N]."""
    run_script("inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={path}", f"--output_file={out}", *more)
    return np.loadtxt(out, ndmin=1)


def score_here(trained_dir, path, *, checkpoint="best", batch_size=512, on_bad_row="error", num_samples=-1):
    """The same in this process."""
    run = scoring.open_run(f"{trained_dir}/run", checkpoint)
    source = rows.open_source(str(path), run.make_parser(), columns=None, num_workers=2)
    blocks = load_command("inference").score_rows(
        source, run.make_scorer(batch_size=batch_size), on_bad_row=on_bad_row, rejected_path=f"{path}.rejected.tsv",
        num_workers=2, num_samples=num_samples,
    )
    return np.concatenate([scored.scores.cosine for scored in blocks])


@pytest.fixture(scope="module")
def many_rows(sample_dir, tmp_path_factory):
    """1,000 rows: those of all.tsv, repeated, under other keys."""
    lines = (sample_dir / "all.tsv").read_text().splitlines()
    path = tmp_path_factory.mktemp("many") / "rows.tsv"
    path.write_text("".join(f"{i}-{lines[i % len(lines)]}\n" for i in range(1000)))
    return path


@pytest.fixture(scope="module")
def together(trained_dir, many_rows):
    """The scores of the 1,000 rows, in batches of 256."""
    return score_here(trained_dir, many_rows, batch_size=256)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_a_score_per_row_whatever_its_neighbours(trained_dir, many_rows, together, tmp_path, rows):
    """Some of the rows, in another order and in other batches, score as all of them together."""
    part = tmp_path / "part.tsv"
    lines = many_rows.read_text().splitlines(keepends=True)
    order = np.random.default_rng(rows).permutation(1000)[:rows]
    part.write_text("".join(lines[i] for i in order))
    alone = score_here(trained_dir, part, batch_size=1 if rows < 100 else 7)
    assert len(alone) == rows
    np.testing.assert_allclose(alone, together[order], atol=1e-6)


def test_the_command_writes_a_line_per_row(trained_dir, many_rows, together, tmp_path):
    """All rows, and with --num_samples the first ones."""
    np.testing.assert_allclose(score(trained_dir, many_rows, tmp_path / "all.txt", "--batch_size=7"), together, atol=1e-6)
    np.testing.assert_allclose(score(trained_dir, many_rows, tmp_path / "some.txt", "--num_samples=70"), together[:70], atol=1e-6)


def test_scores_equal_an_independent_computation(trained_dir, sample_dir):
    """cos(phi_q, phi_s) from the checkpoint's weights in NumPy."""
    import tensorflow as tf

    best = json.loads((trained_dir / "run" / "best.json").read_text())["step"]
    reader = tf.train.load_checkpoint(str(trained_dir / "run" / f"step-{best:08d}" / "ckpt"))
    w = {}
    for name in reader.get_variable_to_shape_map():
        if name.startswith("weights/"):
            w[name.split("/")[1].replace(".S", "/").removeprefix("cleannet/")] = reader.get_tensor(name)

    def dense(layer, x):
        return np.tanh(x @ w[f"{layer}/kernel"] + w[f"{layer}/bias"])

    references = np.log1p(np.load(trained_dir / "run" / "ref.npy"))
    h = dense("ref_set_encoder/hidden_2", dense("ref_set_encoder/hidden_1", references))
    logits = dense("ref_set_encoder/attention", h) @ w["ref_set_encoder/context"]
    alpha = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    phi_s = dense("ref_set_encoder/embedding", (alpha[:, :, None] * h).sum(axis=1))
    lines = [line.split("\t") for line in (sample_dir / "all.tsv").read_text().splitlines()]
    features = np.log1p(np.float32([[float(x) for x in line[2].split(",")] for line in lines]))
    phi_q = dense("query_encoder/encode_2", dense("query_encoder/encode_1", features))
    given = phi_s[[CLASSES.index(line[1]) for line in lines]]
    expected = (phi_q * given).sum(1) / np.linalg.norm(phi_q, axis=1) / np.linalg.norm(given, axis=1)
    np.testing.assert_allclose(score_here(trained_dir, sample_dir / "all.tsv"), expected, atol=2e-6)


def test_npy_input_scores_like_text(trained_dir, sample_dir, tmp_path):
    from_text = score_here(trained_dir, sample_dir / "all.tsv")
    class_ids = [CLASSES.index(line.split("\t")[1]) for line in (sample_dir / "all.tsv").read_text().splitlines()]
    from_array = score(trained_dir, sample_dir / "data" / "all.npy", tmp_path / "array.txt")
    np.testing.assert_allclose(from_array, from_text[np.argsort(class_ids, kind="stable")], atol=1e-6)


def test_checkpoints_by_name(trained_dir, sample_dir, tmp_path):
    best = json.loads((trained_dir / "run" / "best.json").read_text())["step"]
    scores = {
        which: score_here(trained_dir, sample_dir / "all.tsv", checkpoint=which) for which in ("latest", "best", "60", "20", str(best))
    }
    np.testing.assert_array_equal(scores["latest"], scores["60"])
    assert np.abs(scores["20"] - scores["60"]).max() > 1e-3
    np.testing.assert_array_equal(scores["best"], scores[str(best)])
    by_command = {
        which: score(trained_dir, sample_dir / "all.tsv", tmp_path / "p.txt", *more)
        for which, more in (("best", ()), ("20", ("--checkpoint=20",)))
    }
    for which, found in by_command.items():
        np.testing.assert_allclose(found, scores[which], atol=1e-6)


def test_val_mode_prints_both_metrics(trained_dir, sample_dir, tmp_path):
    done = run_script(
        "inference.py", "--mode=val", f"--data_dir={sample_dir}/data", f"--checkpoint_dir={trained_dir}/run",
        f"--output_file={tmp_path}/val.txt",
    )
    scores, val = np.loadtxt(tmp_path / "val.txt"), np.load(sample_dir / "data" / "val.npy")
    right = (scores >= 0.1) == (val[:, -1] == 1)
    by_class = [1 - right[val[:, -2] == c].mean() for c in range(5)]
    assert f"at 0.1: accuracy {right.mean():.4f}, average error rate over classes {100 * np.mean(by_class):.2f} %" in done.stdout


def test_a_part_of_val_is_cross_fitted_with_the_choice_of_the_checkpoint_too(trained_dir, sample_dir, tmp_path):
    done = run_script(
        "inference.py", "--mode=val", f"--data_dir={sample_dir}/data", f"--checkpoint_dir={trained_dir}/run", "--num_samples=50",
        f"--output_file={tmp_path}/val.txt",
    )
    assert "50 verified rows" in done.stdout
    assert "(cross-fitted, with the choice of the checkpoint)" in done.stdout


def test_bad_rows_are_skipped_but_keep_their_line(trained_dir, sample_dir, tmp_path):
    lines = (sample_dir / "all.tsv").read_text().splitlines()
    bad = list(lines)
    bad[3], bad[150] = "k\tramen\t1,2,3", bad[150].replace("\t", " ")
    (tmp_path / "bad.tsv").write_text("\n".join(bad))
    scores = score(trained_dir, tmp_path / "bad.tsv", tmp_path / "bad.txt", "--on_bad_row=skip")
    good = score_here(trained_dir, sample_dir / "all.tsv")
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 150]
    np.testing.assert_allclose(np.delete(scores, [3, 150]), np.delete(good, [3, 150]), atol=1e-6)
    rejected = (tmp_path / "bad.txt.rejected.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in rejected] == ["4", "151"]
    assert "a feature of 3 values, expected 13" in rejected[0]
    first = score_here(trained_dir, tmp_path / "bad.tsv", on_bad_row="skip", num_samples=5)
    np.testing.assert_allclose(first, scores[:5], atol=1e-6)


def test_a_block_without_a_good_row(trained_dir, sample_dir, tmp_path):
    """Only bad rows in one file; and a file whose last megabyte is a part of one line."""
    (tmp_path / "bad.tsv").write_text("x\ny\n")
    done = run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={tmp_path}/bad.tsv",
        f"--output_file={tmp_path}/bad.txt", "--on_bad_row=skip", check=False,
    )
    assert "none of the 2 rows can be used" in done.stderr
    line = (sample_dir / "all.tsv").read_text().splitlines()[0]
    long_key = "k" * (1 << 20) + line
    (tmp_path / "long.tsv").write_text(f"{line}\n{long_key}\n{long_key}\n\n\n")
    scores = score_here(trained_dir, tmp_path / "long.tsv")
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)
    assert len(scores) == 3


def test_explicit_data_dir_brings_its_references(trained_dir, sample_dir, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    np.save(data / "ref.npy", np.load(sample_dir / "data" / "ref.npy") * np.float32(1.5))
    own = score_here(trained_dir, sample_dir / "all.tsv")
    other = score(trained_dir, sample_dir / "all.tsv", tmp_path / "other.txt", f"--data_dir={data}")
    assert np.abs(own - other).max() > 1e-4


def test_class_list_in_another_order_is_refused(sample_dir, trained_dir, tmp_path):
    shuffled = tmp_path / "classes.txt"
    shuffled.write_text("\n".join([CLASSES[1], CLASSES[0], *CLASSES[2:]]) + "\n")
    done = run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--class_list={shuffled}", f"--image_feature_list={sample_dir}/all.tsv",
        f"--output_file={tmp_path}/pred.txt", check=False,
    )
    assert done.returncode == 1
    assert 'class 0 is "ramen", but "apple pie"' in done.stderr


def test_automatic_threshold_is_the_one_kept_with_the_checkpoint(digits, tmp_path):
    """Verdicts by it, through the command line; and no other threshold has a lower error on the validation rows."""
    best = json.loads((digits / "run" / "best.json").read_text())
    table = read_table(score_digits(digits, tmp_path / "auto.tsv", "--output_format=tsv", "--val_sim_thres=auto"))
    for row in table:
        assert row["verdict"] == ("correct" if float(row["cosine"]) >= best["threshold"] else "mislabeled")
    val = np.load(digits / "data" / "val.npy")
    labels, ids = val[:, -1] == 1, val[:, -2]
    scores = scoring.open_run(f"{digits}/run").make_scorer().score(val[:, :-2], ids.astype(np.int32)).cosine

    def error(threshold):
        return np.mean([np.mean((scores >= threshold)[ids == c] != labels[ids == c]) for c in range(10)])

    assert error(best["threshold"]) == pytest.approx(min(error(t) for t in np.linspace(-1, 1, 2001)), abs=2e-3)


def test_report_through_the_command_line(trained_dir, sample_dir, tmp_path):
    (tmp_path / "heldout.tsv").write_text("ramen\t0\n")
    run_script(
        "inference.py", "--mode=val", f"--data_dir={sample_dir}/data", f"--checkpoint_dir={trained_dir}/run",
        f"--output_file={tmp_path}/val.txt", f"--report_dir={tmp_path}/report", f"--heldout_class_list={tmp_path}/heldout.tsv",
    )
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    val, scores = np.load(sample_dir / "data" / "val.npy"), np.loadtxt(tmp_path / "val.txt")
    assert found["all"]["auroc"]["value"] == pytest.approx(roc_auc_score(val[:, -1], scores))
    assert found["heldout"]["rows"] == np.sum(val[:, -2] == 1)
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert "http" not in page.replace("http-equiv", "")


def test_at_most_a_share_of_the_flagged_is_correct(trained_dir, sample_dir, tmp_path):
    """The rule of --val_sim_thres=fdr, counted anew: 211 (1 + c) / 68 of 211 rows are expected to be."""
    common = [f"--checkpoint_dir={trained_dir}/run", f"--data_dir={sample_dir}/data", f"--output_file={tmp_path}/s.tsv"]
    run_script("inference.py", "--mode=val", *common)
    val, labels = np.loadtxt(tmp_path / "s.tsv"), np.load(sample_dir / "data" / "val.npy")[:, -1]
    rows = [f"--image_feature_list={sample_dir}/all.tsv", "--output_format=tsv", f"--probabilities_file={tmp_path}/p.npy"]

    def promised(highest):
        return 211 * (1 + np.sum((val <= highest) & (labels == 1))) / 68 <= 0.5 * np.sum(scores <= highest)

    run_script("inference.py", *common, *rows, "--val_sim_thres=fdr:0.5")
    table = read_table(tmp_path / "s.tsv")
    scores, flagged = np.array([float(row["cosine"]) for row in table]), np.array([row["verdict"] == "mislabeled" for row in table])
    assert len(table) == 211
    assert flagged.any()
    assert scores[flagged].max() < scores[~flagged].min()
    assert promised(scores[flagged].max())
    assert not any(map(promised, scores[~flagged]))
    assert np.load(tmp_path / "p.npy").shape == (211, 5)
    done = run_script("inference.py", *common, *rows, "--val_sim_thres=fdr:0.001")
    assert "fdr:0.001 flags no row, by 67 verified rows" in done.stderr
    assert "0 below -inf" in done.stdout
