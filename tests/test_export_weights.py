"""util/export_weights.py through its command line, on the demo's digits, and the weights in Keras as docs/formats.md has it."""
import csv
import re

import numpy as np
from conftest import ROOT, read_table, run_script, truth

from util.lib import relabelling


def test_weights_and_cleaned_list(digits, tmp_path):
    for kind, expected in (("soft", lambda s: np.maximum(s, 0)), ("hard", lambda s: s >= 0.3)):
        run_script(
            "util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--weights={kind}", "--val_sim_thres=0.3",
            f"--output_file={tmp_path}/{kind}.npy", f"--list_file={tmp_path}/cleaned.tsv",
        )
        cosine = np.array([float(row["cosine"]) for row in read_table(digits / "scores.tsv")])
        np.testing.assert_allclose(np.load(tmp_path / f"{kind}.npy"), expected(cosine), rtol=1e-6)
    header, *cleaned = [line.split("\t") for line in (tmp_path / "cleaned.tsv").read_text().splitlines()]
    assert header == ["key", "given_class", "suggested_class", "action", "score", "reason"]
    assert len(cleaned) == 1797
    table = read_table(digits / "scores.tsv")
    worst_first = sorted(table, key=lambda row: float(row["cosine"]))
    for row, (key, given, name, action, score, _) in zip(worst_first, cleaned):
        assert (key, given, score) == (row["key"], row["class"], row["cosine"])
        keep = float(row["cosine"]) >= 0.3
        relabel = not keep and row["nearest_class"] != row["class"] and float(row["nearest_cosine"]) >= 0.5
        assert action == ("keep" if keep else "relabel" if relabel else "recheck")
        assert name == (row["nearest_class"] if relabel else row["class"])
    true = truth(digits)
    before = np.mean([row["class"] != true[row["key"]] for row in read_table(digits / "scores.tsv")])
    after = np.mean([name != true[key] for key, _, name, action, *_ in cleaned if action != "recheck"])
    assert after < before / 3


def test_cleaned_list_as_csv(digits, tmp_path):
    """The rows of the tab-separated one, below the names of the columns."""
    for name in ("cleaned.tsv", "cleaned.csv"):
        run_script("util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--list_file={tmp_path}/{name}")
    with open(tmp_path / "cleaned.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["key", "given_class", "suggested_class", "action", "score", "reason"]
    assert [header, *rows] == [line.split("\t") for line in (tmp_path / "cleaned.tsv").read_text().splitlines()]


def test_rows_without_a_score_come_last_and_are_to_be_rechecked(tmp_path):
    scores = {"good": 0.9, "none": np.nan, "bad": -0.5, "odd": -0.5, "own": 0.05}
    line = "{0}\ta\t{1}\t{1}\t{1}\t{2}\t{3}\t0.6\tcosine\n"
    lines = [line.format(key, s, "correct" if s > 0.1 else "mislabeled", "a" if key == "own" else "b") for key, s in scores.items()]
    (tmp_path / "scores.tsv").write_text("".join(lines))
    run_script("util/export_weights.py", f"--score_file={tmp_path}/scores.tsv", f"--list_file={tmp_path}/cleaned.tsv")
    rows = [line.split("\t")[:5] for line in (tmp_path / "cleaned.tsv").read_text().splitlines()[1:]]
    assert rows == [
        ["bad", "a", "b", "relabel", "-0.5"], ["odd", "a", "b", "relabel", "-0.5"], ["own", "a", "a", "recheck", "0.05"],
        ["good", "a", "a", "keep", "0.9"], ["none", "a", "a", "recheck", "nan"],
    ]


def test_printed_code_trains_a_keras_classifier_with_the_weights(digits, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "keras" in block)
    (tmp_path / "runs").mkdir()
    run_script("util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--output_file={tmp_path}/runs/weights.npy")
    monkeypatch.chdir(tmp_path)
    rows = [line.split("\t") for line in (digits / "data" / "all.tsv").read_text().splitlines()]
    names = (digits / "data" / "classes.txt").read_text().split()
    scope = {"x": np.float32([row[2].split(",") for row in rows]) / 16, "y": np.array([names.index(row[1]) for row in rows])}
    exec(code, scope)
    assert scope["model"].predict(scope["x"], verbose=0).shape == (1797, 10)


def relabelled(digits, tmp_path, *more):
    """The cleaned list of the digits as {key: (suggested class, action)}, and what the command printed."""
    done = run_script("util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--list_file={tmp_path}/l.tsv", *more)
    rows = [line.split("\t") for line in (tmp_path / "l.tsv").read_text().splitlines()[1:]]
    return {row[0]: (row[2], row[3]) for row in rows}, done


def test_a_share_of_right_classes_is_promised_by_verified_rows(digits, tmp_path):
    """The limit is that of Benjamini and Hochberg: what correct rows reach by chance is a tenth at most of what is relabelled."""
    found, done = relabelled(digits, tmp_path, "--relabel_precision=0.9", f"--val_npy={digits}/data/val.npy", "--val_sim_thres=0.3")
    table = {row["key"]: row for row in read_table(digits / "scores.tsv")}
    verified = [line.split("\t")[:3] for line in (digits / "data" / "val.tsv").read_text().splitlines()]
    absent = np.array([float(table[key]["cosine"]) - float(table[key]["margin"]) for key, _, label in verified if label == "1"])
    flagged = {key: row for key, row in table.items() if float(row["cosine"]) < 0.3}
    asked = {key: float(row["nearest_cosine"]) for key, row in flagged.items() if row["nearest_class"] != row["class"]}
    keeps = [
        q for q in asked.values()
        if len(asked) * (1 + np.sum(absent >= q)) / (1 + len(absent)) <= 0.1 * sum(other >= q for other in asked.values())
    ]
    assert {key for key, (_, action) in found.items() if action == "relabel"} == {key for key, q in asked.items() if q >= min(keeps)}
    assert {key for key, (_, action) in found.items() if action == "drop"} == {key for key, q in asked.items() if q < min(keeps)}
    assert f"relabelled from cosine {min(keeps):.4g} on: 90 % of the new classes right, by the rows verified correct in" in done.stdout
    true = truth(digits)
    assert np.mean([name == true[key] for key, (name, action) in found.items() if action == "relabel"]) >= 0.9


def test_a_promise_by_decisions_is_a_limit_of_decided_cosines(tmp_path):
    """A larger promise has a higher limit; rows below all decided ones are dropped, whatever the decisions say."""
    line = "{0}\ta\t0.05\t-0.5\t0.01\tmislabeled\tb\t{1}\tcosine\n"
    (tmp_path / "scores.tsv").write_text("".join(line.format(i, 0.9 - 0.01 * i) for i in range(61)))
    right = {i: "b" if i < 30 or i % 3 == 0 else "c" for i in range(50)}
    (tmp_path / "d.tsv").write_text("".join(f"{i}\ta\t0\tann\t2024-05-31T12:00:00Z\t{name}\n" for i, name in right.items()))
    limits = []
    for precision in (0.5, 0.8, 0.9, 0.999):
        done = run_script(
            "util/export_weights.py", f"--score_file={tmp_path}/scores.tsv", f"--decisions={tmp_path}/d.tsv",
            f"--list_file={tmp_path}/l.tsv", f"--relabel_precision={precision}",
        )
        actions = [line.split("\t")[3] for line in (tmp_path / "l.tsv").read_text().splitlines()[1:] if int(line.split("\t")[0]) >= 50]
        assert actions == ["drop"] * 11
        found = re.search(rf"relabelled from cosine (.*) on: {100 * precision:g} % of the new classes right, by 50 decisions", done.stdout)
        limits.append(float(found[1]) if found else np.inf)
    assert "no cosine keeps the promise of --relabel_precision=0.999" in done.stderr
    assert 0.41 <= limits[0] < limits[1] < limits[2] < limits[3] == np.inf


def shares_right(share_of, precision, num_decided):
    """The shares of right rows among those that reach the limit and that nobody decided, of the draws of 200 that have a limit."""
    rng, shares = np.random.default_rng(1), []
    for _ in range(200):
        cosines = rng.uniform(0, 1, 4000)
        right = rng.random(4000) < share_of(cosines)
        limit = relabelling.limit_by_decisions(cosines[:num_decided], right[:num_decided], precision, cosines)
        if np.isfinite(limit):
            shares.append(right[num_decided:][cosines[num_decided:] >= limit].mean())
    return shares


def test_a_promise_by_decisions_is_kept_in_the_mean():
    """A share counted at each limit would fall short alone: the luckiest limit would be taken."""
    shares = shares_right(lambda cosines: 1 / (1 + np.exp(-8 * (cosines - 0.7))), 0.8, num_decided=60)
    assert len(shares) > 80
    assert 0.8 <= np.mean(shares) < 0.86


def test_a_promise_that_no_limit_keeps_is_seldom_made():
    """The share levels off below it, which a fitted curve alone would not see."""
    assert len(shares_right(lambda cosines: np.where(cosines > 0.5, 0.8, 0.1), 0.9, num_decided=500)) < 60


def test_few_decisions_and_equal_cosines_promise_nothing_that_they_cannot():
    ones = np.ones(3)
    assert relabelling.limit_by_decisions(ones, ones > 0, 0.9, ones) == np.inf
    cosines, right = np.repeat([0.9, 0.5], 100), np.arange(200) % 100 < np.repeat([95, 50], 100)
    assert relabelling.limit_by_decisions(cosines, right, 0.85, cosines) == 0.9
