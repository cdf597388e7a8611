"""util/combine_scores.py through its command line: probabilities averaged in logits, joined by key, with a threshold from verified rows."""
import json
import re

import numpy as np
import pytest
from conftest import CLASSES, convert, make_rows, read_table, run_script, unverified, write_rows

from util.lib import metrics, score_table

SCRIPT = "util/combine_scores.py"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with a.tsv and b.tsv, noisy probabilities of the same rows in two orders, and val.npy of 83 of them and of 5 others."""
    folder, rng = tmp_path_factory.mktemp("scored"), np.random.default_rng(7)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    rows = make_rows(157, seed=8)
    verified = [*rows[:83], *make_rows(5, seed=9)]
    convert("val", folder, write_rows(folder / "val.tsv", verified), folder / "classes.txt")
    for name, order in (("a", range(157)), ("b", rng.permutation(157))):
        probability = 1 / (1 + np.exp(-rng.normal(np.where([row[2] for row in rows], 1, -1), 1.5)))
        line = "{}\t{}\t0.25\t0.125\t{:.9g}\tcorrect\t{}\t0.75\tcosine\n"
        lines = [line.format(*rows[i][:2], probability[i], CLASSES[i % 5]) for i in order]
        (folder / f"{name}.tsv").write_text("".join(lines))
    (folder / "rows.tsv").write_text("".join(f"{row[0]}\t{row[1]}\t{row[2]}\n" for row in unverified(rows)))
    return folder


def combine(folder, output, *more, files="a.tsv,b.tsv"):
    files = ",".join(f"{folder}/{name}" for name in files.split(","))
    return run_script(SCRIPT, f"--score_files={files}", f"--val_npy={folder}/val.npy", f"--output_file={output}", *more)


def test_the_combination(scored, tmp_path):
    done = combine(scored, tmp_path / "c.tsv")
    a, b, c = (read_table(path) for path in (scored / "a.tsv", scored / "b.tsv", tmp_path / "c.tsv"))
    p_b = {row["key"]: float(row["probability"]) for row in b}
    p = np.array([[float(row["probability"]), p_b[row["key"]]] for row in a])
    odds = np.sqrt((p / (1 - p)).prod(axis=1))
    combined = np.array([float(row["probability"]) for row in c])
    np.testing.assert_allclose(combined, odds / (1 + odds), rtol=1e-6)
    same = ("key", "class", "cosine", "margin", "nearest_class", "nearest_cosine")
    assert [[row[name] for name in same] for row in c] == [[row[name] for name in same] for row in a]
    # The threshold and the printed error are those of metrics.evaluate on the verified rows.
    number = {row["key"]: i for i, row in enumerate(c)}
    verified = [line.split("\t")[:3] for line in (scored / "val.tsv").read_text().splitlines()]
    index = [(number[key], int(label), CLASSES.index(name)) for key, name, label in verified if key in number]
    rows, labels, class_ids = map(np.array, zip(*index))
    assert len(rows) == 83
    evaluation = metrics.evaluate(combined[rows], labels, class_ids, 0.1)
    error = 100 * evaluation["all"]["chosen"]["average_error_rate"]
    assert f"combined: AUROC {evaluation['all']['auroc']:.4f}, average error rate over classes {error:.2f} % (cross-fitted)" in done.stdout
    threshold = float(re.search(r"below (.*)$", done.stdout)[1])
    assert threshold == pytest.approx(evaluation["chosen_threshold"], rel=1e-5)
    assert [row["verdict"] for row in c] == ["correct" if q >= threshold else "mislabeled" for q in combined]
    assert "5 rows without a score" in done.stderr
    assert score_table.read(str(tmp_path / "c.tsv")).score == pytest.approx(combined)  # decided by the probability


def test_a_table_is_combined_with_none(scored, tmp_path):
    """A single table, as parquet: its threshold is chosen."""
    combine(scored, tmp_path / "c.parquet", files="a.tsv")
    p = [float(row["probability"]) for row in read_table(scored / "a.tsv")]
    np.testing.assert_allclose(score_table.read(str(tmp_path / "c.parquet")).score, p, rtol=1e-6)


def test_tables_of_csv(scored, tmp_path):
    for name in ("c.csv", "c.tsv"):
        combine(scored, tmp_path / name)
    (tmp_path / "d.csv").write_bytes((tmp_path / "c.csv").read_bytes())
    again = [f"--score_files={tmp_path}/c.csv,{tmp_path}/d.csv", f"--val_npy={scored}/val.npy", f"--output_file={tmp_path}/e.tsv"]
    run_script(SCRIPT, *again)
    assert (tmp_path / "e.tsv").read_bytes() == (tmp_path / "c.tsv").read_bytes()


def test_rows_without_a_score_stay_without(scored, tmp_path):
    lines = (scored / "b.tsv").read_text().splitlines()
    key = lines[3].split("\t")[0]
    lines[3] = "\t".join("nan" if i == 4 else cell for i, cell in enumerate(lines[3].split("\t")))
    (scored / "nan.tsv").write_text("\n".join(lines) + "\n")
    combine(scored, tmp_path / "c.tsv", files="a.tsv,nan.tsv")
    unknown = [row["key"] for row in read_table(tmp_path / "c.tsv") if row["verdict"] == "unknown"]
    assert unknown == [key]


def test_held_out_classes_choose_no_threshold(scored, tmp_path):
    (tmp_path / "held.tsv").write_text("".join(f"{name}\t0\n" for name in CLASSES[:4]))
    lines = [combine(scored, tmp_path / "c.tsv", *more).stdout for more in ([], [f"--heldout_class_list={tmp_path}/held.tsv"])]
    assert lines[0] != lines[1]


def labels_of(folder, table):
    """{row of the table: verification label} for the verified rows that the table has."""
    number = {row["key"]: i for i, row in enumerate(table)}
    verified = [line.split("\t")[:3] for line in (folder / "val.tsv").read_text().splitlines()]
    return {number[key]: int(label) for key, _, label in verified if key in number}


def test_calibrated_probabilities_are_shares(scored, tmp_path):
    """Of overconfident probabilities: their sum over verified rows is the number of correct ones, and 0.5 is the threshold."""
    done = combine(scored, tmp_path / "c.tsv", "--calibrate", files="a.tsv")
    table, before = read_table(tmp_path / "c.tsv"), read_table(scored / "a.tsv")
    p = np.array([float(row["probability"]) for row in table])
    label = labels_of(scored, table)
    assert np.mean(p[list(label)]) == pytest.approx(np.mean(list(label.values())), abs=0.02)
    assert [row["verdict"] for row in table] == ["correct" if q >= 0.5 else "mislabeled" for q in p]
    for name in CLASSES:  # within a class the order stays
        q, r = (np.array([float(row["probability"]) for row in rows if row["class"] == name]) for rows in (before, table))
        assert (np.argsort(q) == np.argsort(r)).all()
    raw, calibrated = map(float, re.search(r"expected calibration error (\S+), calibrated (\S+) ", done.stdout).groups())
    assert calibrated < raw
    assert f"{np.sum(p < 0.5)} below 0.5" in done.stdout


def test_a_calibrated_table_is_said_to_be_one(scored, tmp_path):
    """Where it would be measured by the rows that made it; its verdicts are read as any others."""
    rows = make_rows(157, seed=8)
    for split, part in {"all": unverified(rows), "train": rows[100:], "val": rows[:83]}.items():
        convert(split, tmp_path / "data", write_rows(tmp_path / f"{split}.tsv", part), scored / "classes.txt")
    for more in ([], ["--calibrate"]):
        combine(scored, tmp_path / "c.tsv", *more)
        endings = {line.split("\t")[-1] for line in (tmp_path / "c.tsv").read_text().splitlines()}
        assert endings == {"probability" + " (calibrated)" * bool(more)}
        done = run_script(
            "util/compare_methods.py", f"--data_dir={tmp_path}/data", "--methods=none", f"--score_files={tmp_path}/c.tsv",
            f"--output_dir={tmp_path}/out",
        )
        assert ("c.tsv: was calibrated; if by rows of" in done.stderr) == bool(more)
        run_script("util/export_weights.py", f"--score_file={tmp_path}/c.tsv", f"--output_file={tmp_path}/w.npy")


def test_rows_without_a_class_or_a_score_are_calibrated_too(scored, tmp_path):
    """A class that the class list does not have gets the shift of the others, and a row without a score none."""
    line = "{}\t{}\t0\t0\t{}\tcorrect\tramen\t0\tcosine\n"
    more = line.format("new", "noodles", 0.5) + line.format("none", "ramen", "nan")
    bad = 2 * line.replace("ramen", "").replace("correct", "unknown").format("", "", "nan")  # rows that were skipped
    (scored / "more.tsv").write_text((scored / "a.tsv").read_text() + bad + more)
    combine(scored, tmp_path / "c.tsv", "--calibrate", files="more.tsv")
    *_, new, none = read_table(tmp_path / "c.tsv")
    assert 0 < float(new["probability"]) < 1
    assert none["verdict"] == "unknown"


def test_heldout_classes_have_a_share_of_wrong_labels_of_their_own(tmp_path):
    """Theirs is estimated from their scores: 70 % of them are correct in kept classes, 30 % in held-out ones, and none is verified."""
    rng, heldout = np.random.default_rng(3), CLASSES[3:]
    given = np.array(CLASSES)[np.arange(500) % 5]
    correct = rng.random(500) < np.where(np.isin(given, heldout), 0.3, 0.7)
    probability = 1 / (1 + np.exp(-rng.normal(np.where(correct, 2, -2), 1.5)))
    line = "{}\t{}\t0.25\t0.125\t{:.9g}\tcorrect\tramen\t0.75\tcosine\n"
    rows = list(zip(range(500), given, correct.astype(int), probability))
    (tmp_path / "a.tsv").write_text("".join(line.format(i, name, p) for i, name, _, p in rows))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "held.tsv").write_text("".join(f"{name}\t{int(name not in heldout)}\n" for name in CLASSES))
    verified = [[str(i), name, label, [1.0]] for i, name, label, _ in rows if name not in heldout][::2]
    convert("val", tmp_path, write_rows(tmp_path / "val.tsv", verified), tmp_path / "classes.txt")
    of_heldout, found = np.isin(given, heldout), {}
    for more in ((), (f"--heldout_class_list={tmp_path}/held.tsv",)):
        combine(tmp_path, tmp_path / "c.tsv", "--calibrate", *more, files="a.tsv")
        found[len(more)] = np.array([float(row["probability"]) for row in read_table(tmp_path / "c.tsv")])
    off = {known: abs(p[of_heldout].mean() - correct[of_heldout].mean()) for known, p in found.items()}
    assert off[1] < 0.02 < off[0]
    np.testing.assert_array_equal(found[0][~of_heldout], found[1][~of_heldout])


@pytest.mark.parametrize("more", [[], ["--calibrate"]])
def test_at_most_a_share_of_the_flagged_is_correct(scored, tmp_path, more):
    found = []
    for rate in (0.05, 0.2, 0.4):
        done = combine(scored, tmp_path / "c.tsv", f"--val_sim_thres=fdr:{rate}", *more)
        table = read_table(tmp_path / "c.tsv")
        flagged = [i for i, row in enumerate(table) if row["verdict"] == "mislabeled"]
        label = labels_of(scored, table)
        low = sum(label[i] for i in flagged if i in label)
        if not more:  # the rule, counted anew
            assert not flagged or 157 * (1 + low) / 84 <= rate * len(flagged)
        assert ("flags no row" in done.stderr) == (not flagged)
        found.append(len(flagged))
    assert found == sorted(found)
    assert found[2] > found[0]


def test_a_threshold_of_ones_own(scored, tmp_path):
    assert "below 0.25" in combine(scored, tmp_path / "c.tsv", "--val_sim_thres=0.25").stdout


def test_tables_that_count_in_heldout_classes(scored, tmp_path):
    """Held-out classes get what the second table alone gives them, and the others what both give."""
    (tmp_path / "held.tsv").write_text("".join(f"{name}\t{int(name != 'ramen')}\n" for name in CLASSES))
    held, found = f"--heldout_class_list={tmp_path}/held.tsv", {}
    b_in_heldout = f"--heldout_score_files={scored}/b.tsv"
    for name, files, more in (("both", "a.tsv,b.tsv", ()), ("b", "b.tsv", ()), ("c", "a.tsv,b.tsv", (b_in_heldout,))):
        done = combine(scored, tmp_path / "out.tsv", "--calibrate", held, *more, files=files)
        found[name] = {row["key"]: (row["class"], row["probability"]) for row in read_table(tmp_path / "out.tsv")}
    assert found["c"] == {key: found["b" if given == "ramen" else "both"][key] for key, (given, _) in found["c"].items()}
    assert re.search(r"calibrated: AUROC \S+ \(kept classes \S+, held-out classes \S+\), .* % \(kept classes \S+ %, held-out", done.stdout)


@pytest.mark.parametrize("more", [[], ["--calibrate"]])
def test_the_report_is_of_the_result(scored, tmp_path, more):
    """A single table, as train_classifier writes it, is reported as well: that of a calibrated one is cross-fitted."""
    images = tmp_path / "images"
    images.mkdir()
    done = combine(
        scored, tmp_path / "c.tsv", *more, f"--report_dir={tmp_path}/report", f"--image_dir={images}", "--val_sim_thres=0.4", files="b.tsv"
    )
    assert f"{tmp_path}/report: report.json, report.html" in done.stdout
    found = json.loads((tmp_path / "report/report.json").read_text())
    assert (found["score"], found["thresholds"]["fixed"], found["all"]["rows"]) == ("probability", 0.4, 83)
    name = "calibrated" if more else "combined"
    auroc, error = re.search(rf"{name}: AUROC (.*?), .* classes (.*?) % \(cross-fitted\)", done.stdout).groups()
    assert f"{found['all']['auroc']['value']:.4f}" == auroc
    if not more:
        assert f"{100 * found['all']['chosen']['average_error_rate']['value']:.2f}" == error
    page = (tmp_path / "report/report.html").read_text()
    assert "Reliability" in page
    assert "no image" in page
    assert str(found["lowest"][0]["rows"]) in page
