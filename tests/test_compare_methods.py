"""util/compare_methods.py: its numbers against plain ones computed here; its summaries, and the transfer curve."""
import json
import re
import shutil

import numpy as np
import pytest
from conftest import CLASSES, convert_all, make_rows, run_script, unverified, write_rows
from sklearn.metrics import roc_auc_score

from util.lib import checksums, label_noise_methods, metrics, other_methods

HELDOUT = (1, 3)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def compared(trained_dir, tmp_path_factory):
    """Verified rows that are rows of all.npy too, two classes held out, and a trained run: the folder and the methods' measures."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    parts = {"train": make_rows(150, seed=11), "val": make_rows(120, seed=12)}
    for split, rows in {**parts, "all": unverified(parts["train"] + parts["val"] + make_rows(200, seed=13))}.items():
        write_rows(folder / f"{split}.tsv", rows)
    convert_all(folder, folder)
    (folder / "heldout.tsv").write_text("".join(f"{name}\t{int(c not in HELDOUT)}\n" for c, name in enumerate(CLASSES)))
    run_script(
        "util/compare_methods.py", f"--data_dir={folder}", f"--checkpoint_dirs={trained_dir}/run", f"--output_dir={folder}/out",
        f"--heldout_class_list={folder}/heldout.tsv", "--methods=all",
    )
    shutil.copy(trained_dir / "run" / "ref.npy", folder)
    assert (folder / "out" / "comparison.png").stat().st_size > 10000
    return folder, json.loads((folder / "out" / "comparison.json").read_text())["methods"]


def test_a_key_in_two_classes_is_two_rows(tmp_path):
    """Methods find the row of the given class; and a class of five rows is enough for all of them."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES[:2]) + "\n")
    rng = np.random.default_rng(0)
    rows = [[f"{i}", name, int(i % 3 > 0), rng.random(4) + 9 * c] for c, name in enumerate(CLASSES[:2]) for i in range(5 + 40 * c)]
    for split in ("train", "val"):
        write_rows(tmp_path / f"{split}.tsv", rows)
    write_rows(tmp_path / "all.tsv", unverified(rows))
    convert_all(tmp_path, tmp_path)
    data = other_methods.Data(str(tmp_path), CLASSES[:2], [])
    own = data.verified(data.ids[data.rows].astype(float))[1]
    assert own.tolist() == data.val.class_ids.tolist()
    run_script("util/compare_methods.py", f"--data_dir={tmp_path}", "--methods=supervised", f"--output_dir={tmp_path}/out")


def measured(compared, name):
    """A method's measures, the only one whose name the pattern matches."""
    (found,) = [value for key, value in compared[1].items() if re.fullmatch(name, key)]
    return found


def percent_wrong(evaluation, group):
    """The average error rate at the chosen threshold, in percent."""
    return 100 * evaluation[group]["chosen"]["average_error_rate"]


def wrong_share(val, group):
    """Mean over the group's classes of the share of wrong labels, in percent: the error of trusting every label."""
    return 100 * np.mean([np.mean(val[val[:, -2] == c, -1] == 0) for c in group])


def test_trusting_is_the_share_of_wrong_labels(compared):
    val = np.load(compared[0] / "val.npy")
    found = measured(compared, "trusting every label")
    assert percent_wrong(found, "all") == pytest.approx(wrong_share(val, range(5)))
    assert percent_wrong(found, "heldout") == pytest.approx(wrong_share(val, HELDOUT))


def test_methods_that_learn_from_verified_rows_have_none_of_held_out_classes(compared):
    val = np.load(compared[0] / "val.npy")
    for name in ("SVM on verified rows", "MLP on verified rows", "label spreading"):
        assert percent_wrong(measured(compared, name), "heldout") == pytest.approx(wrong_share(val, HELDOUT))
        assert percent_wrong(measured(compared, name), "kept") < 0.7 * wrong_share(val, (0, 2, 4))


def test_votes_and_means_are_those_of_a_plain_loop(compared):
    folder, methods = compared
    val, everything = np.load(folder / "val.npy"), np.load(folder / "all.npy")
    keys = (folder / "all_keys.txt").read_text().splitlines()
    indices = [keys.index(key) for key in (folder / "val_keys.txt").read_text().splitlines()]
    features, ids, labels = unit(np.log1p(everything[:, :-1])), everything[:, -1], val[:, -1]
    (k,) = [int(found[1]) for name in methods if (found := re.fullmatch(r"(\d+)-nearest-neighbour vote", name))]
    votes, cosines = [], []
    for index in indices:
        order = np.argsort(-(features @ features[index]))
        votes.append(np.mean(ids[order[order != index][:k]] == ids[index]))
        mean = unit(features[ids == ids[index]].sum(axis=0)[None])[0]
        cosines.append(features[index] @ mean)
    assert measured(compared, r"\d+-nearest-neighbour vote")["all"]["auroc"] == pytest.approx(roc_auc_score(labels, votes), abs=1e-3)
    assert measured(compared, "cosine to the class mean")["all"]["auroc"] == pytest.approx(roc_auc_score(labels, cosines), abs=1e-6)


def test_cleannet_is_what_inference_writes(compared, trained_dir, tmp_path):
    run_script(
        "inference.py", "--mode=val", f"--data_dir={compared[0]}", f"--checkpoint_dir={trained_dir}/run",
        f"--output_file={tmp_path}/scores.txt",
    )
    scores, labels = np.loadtxt(tmp_path / "scores.txt"), np.load(compared[0] / "val.npy")[:, -1]
    assert measured(compared, r"CleanNet run \(cosine\)")["all"]["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


def test_both_commands_cross_fit_the_choice_of_the_checkpoint(sample_dir, trained_dir, tmp_path):
    """They agree; a checkpoint that is named was not chosen. One that is right on a half of a split only misleads the other half."""
    shutil.copytree(trained_dir / "run", tmp_path / "run")
    best = json.loads((tmp_path / "run" / "best.json").read_text())["step"]
    last = sorted((tmp_path / "run").glob("step-*"))[-1]
    val, kept = np.load(sample_dir / "data" / "val.npy"), np.load(last / "val_scores.npy")
    ids, labels = val[:, -2].astype(int), val[:, -1].astype(int)
    half = metrics.split_evenly(2, labels, ids)
    kept[0 if best != 20 else 1] = np.where(half == 0, labels, 1 - labels)
    np.save(last / "val_scores.npy", kept)
    state = json.loads((last / "state.json").read_text())
    (last / "state.json").write_text(json.dumps({**state, "val_scores": checksums.of(kept)}))
    found = {}
    for checkpoint in ("best", str(best)):
        common = [f"--data_dir={sample_dir}/data", f"--checkpoint={checkpoint}"]
        done = run_script(
            "inference.py", "--mode=val", *common, f"--checkpoint_dir={tmp_path}/run", f"--output_file={tmp_path}/val.txt",
            f"--report_dir={tmp_path}",
        )
        compared = run_script(
            "util/compare_methods.py", *common, f"--checkpoint_dirs={tmp_path}/run", "--methods=none", f"--output_dir={tmp_path}/out",
        )
        for output in (done.stdout, compared.stdout):
            assert ("by these very rows" in output) == (checkpoint == "best")
        assert ("with the choice of the checkpoint" in done.stdout) == (checkpoint == "best")
        report = json.loads((tmp_path / "report.json").read_text())["all"]["chosen"]["average_error_rate"]
        chosen = json.loads((tmp_path / "out" / "comparison.json").read_text())["methods"]["CleanNet run (cosine)"]["all"]["chosen"]
        assert chosen["average_error_rate"] == pytest.approx(report["value"])
        assert chosen["interval"] == pytest.approx([report["low"], report["high"]])
        found[checkpoint == "best"] = chosen["average_error_rate"]
    right = np.zeros((metrics.SPLITS, len(val)), bool)
    for seed in range(metrics.SPLITS):
        half = metrics.split_evenly(2, labels, ids, seed=seed)
        for part in (0, 1):  # the training chose by right decisions at 0.1
            other, mine = half != part, half == part
            scores = kept[np.argmax([np.mean((scores[other] >= 0.1) == (labels[other] == 1)) for scores in kept])].astype(float)
            threshold = metrics.best_threshold(scores[other], labels[other], ids[other])
            right[seed, mine] = (scores[mine] >= threshold) == (labels[mine] == 1)
    assert found[True] == pytest.approx(np.mean([1 - right[:, ids == c].mean() for c in range(5)]))
    assert found[True] > found[False]


def test_tables_are_measured_beside_runs(compared, trained_dir, tmp_path):
    table = tmp_path / "second.look.tsv"
    run_script(
        "inference.py", f"--image_feature_list={compared[0]}/all.npy", f"--checkpoint_dir={trained_dir}/run", f"--output_file={table}",
        "--output_format=tsv",
    )
    done = run_script(
        "util/compare_methods.py", f"--data_dir={compared[0]}", f"--checkpoint_dirs={trained_dir}/run", f"--score_files={table}",
        "--methods=none", f"--output_dir={tmp_path}/out",
    )
    assert "checkpoint of step" in done.stdout
    methods = json.loads((tmp_path / "out" / "comparison.json").read_text())["methods"]
    assert list(methods) == ["trusting every label", "scores second.look.tsv", "CleanNet run (cosine)"]
    scored, run = (methods[name]["all"] for name in list(methods)[1:])
    assert scored["auroc"] == pytest.approx(run["auroc"], abs=1e-6)
    low, high = scored["chosen"]["interval"]
    assert low < scored["chosen"]["average_error_rate"] < high


def test_methods_of_today_are_those_of_plain_loops(compared):
    folder, _ = compared
    everything, val = np.load(folder / "all.npy"), np.load(folder / "val.npy")
    keys = (folder / "all_keys.txt").read_text().splitlines()
    indices = [keys.index(key) for key in (folder / "val_keys.txt").read_text().splitlines()]
    features, ids, labels = unit(np.log1p(everything[:, :-1])), everything[:, -1].astype(int), val[:, -1]
    ratios, aligned, ranks = [], [], []
    for i in indices:
        distance = 1 - features @ features[i]
        same = ids == ids[i]
        d_other = distance[~same].min()
        same[i] = False
        ratios.append(d_other**2 / (distance[same].min() ** 2 + d_other**2))
        aligned.append((np.linalg.svd(features[ids == ids[i]])[2][0] @ features[i]) ** 2)
        nearest = [j for j in np.argsort(distance) if j != i][:10]
        h = np.bincount(ids[nearest], minlength=5)
        ranks.append(h[ids[i]] / np.linalg.norm(h))
    for name, scores in (("SelfClean", ratios), ("FINE", aligned), ("SimiFeat, rank", ranks)):
        assert measured(compared, name)["all"]["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-3), name
    for name in ("AUM", "in-sample averaged margin", "reconstruction error ratio", "relation graph"):
        assert measured(compared, name)["all"]["auroc"] > 0.9, name


def test_noise_rates_and_the_rows_they_take():
    """Triples whose classes err at known rates, two classes mostly as each other: the rates are found, and so many rows are taken."""
    rng = np.random.default_rng(0)
    transition = np.array([[0.7, 0.3, 0], [0.1, 0.85, 0.05], [0, 0, 1]])
    true = rng.choice(3, 20000, p=[0.5, 0.3, 0.2])
    triples = np.column_stack([(rng.random(len(true))[:, None] > transition.cumsum(axis=1)[true]).sum(axis=1) for _ in range(3)])
    joint = np.array([0.5, 0.3, 0.2])[:, None] * transition
    expected = 1 - np.diag(joint) / joint.sum(axis=0)
    rates = label_noise_methods.noise_rates(triples, 3)
    np.testing.assert_allclose(rates, expected, atol=0.015)
    _, rank = label_noise_methods.simifeat(triples[:, 1:], triples[:, 0])
    kept = label_noise_methods.below_noise_rates(rank, triples[:, 1:], triples[:, 0], 3)
    for c in range(3):
        ranks, of_class = rank[triples[:, 0] == c], kept[triples[:, 0] == c]
        assert np.mean(of_class == 0) == pytest.approx(rates[c], abs=1e-3)
        assert ranks[of_class == 0].max() <= ranks[of_class == 1].min()


def test_summary_has_the_interval_of_the_paired_difference(tmp_path):
    for i, (a, b) in enumerate([(1.0, 1.0), (2.0, 3.0), (3.0, 5.0)]):
        methods = {
            name: {"all": {"auroc": 0.5, "average_precision": None, "chosen": {"average_error_rate": error / 100}}}
            for name, error in (("ours", a), (f"{5 * i + 5}-nearest-neighbour vote", b))
        }
        (tmp_path / f"{i}.json").write_text(json.dumps({"methods": methods}))
    files = ",".join(f"{tmp_path}/{i}.json" for i in range(3))
    done = run_script("util/summarize_comparisons.py", f"--comparisons={files}", "--reference=ours")
    (line,) = [line for line in done.stdout.splitlines() if "nearest" in line]
    # Differences 0, 1, 2: mean 1, and t(0.975, 2) / sqrt(3) = 4.3027 / 1.7321 for the half width.
    assert line == "| k-nearest-neighbour vote | 3.00 ± 2.00 | +1.00 ± 2.48 | 0.5000 ± 0.0000 | +0.0000 ± 0.0000 |  |"


@pytest.mark.slow
def test_transfer_curve_measures_kept_and_held_out_classes(sample_dir, tmp_path):
    command = (
        "util/transfer_curve.py", f"--data_dir={sample_dir}/data", f"--output_dir={tmp_path}", "--shares=0.4,1", "--seeds=1",
        "--train_flags=--n_step=30 --val_interval=10 --log_interval=5",
    )
    done = run_script(*command)
    some, every = json.loads((tmp_path / "transfer.json").read_text())
    assert (some["classes_verified"], every["classes_verified"]) == (2, 5)
    assert every["heldout"] is None
    last = json.loads((tmp_path / "share0.4_seed1" / "run" / "validation.jsonl").read_text().splitlines()[-1])
    assert [some[group] for group in ("heldout", "kept")] == [
        last[group]["chosen"]["average_error_rate"] for group in ("heldout", "kept")
    ]
    assert f"| 2 of 5 | {100 * some['heldout']:.2f} |" in done.stdout
    weights = tmp_path / "share1_seed1" / "run" / "step-00000030"
    before = weights.stat().st_mtime_ns
    run_script(*command)
    assert weights.stat().st_mtime_ns == before  # what is there is not trained again


def test_hours_of_logistic_regression_are_foreseen():
    """CIFAR-100N's 15,000 rows took two minutes, and 5,000 classes with 40 rows each take hours (docs/speed.md)."""
    assert 1 / 60 < other_methods.hours_of_logistic(15000, 1280, 60) < 0.1
    assert 2 < other_methods.hours_of_logistic(200_000, 256, 5000) < 20
