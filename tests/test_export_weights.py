"""util/export_weights.py through its command line, on the demo's digits, and the weights in Keras as docs/formats.md has it."""
import csv
import re

import numpy as np
from conftest import ROOT, read_table, run_script, truth


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


def test_cleaned_list_as_csv(digits, tmp_path):
    """The rows of the tab-separated one, below the names of the columns."""
    for name in ("cleaned.tsv", "cleaned.csv"):
        run_script("util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--list_file={tmp_path}/{name}")
    with open(tmp_path / "cleaned.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["key", "class", "action"]
    assert rows == [line.split("\t") for line in (tmp_path / "cleaned.tsv").read_text().splitlines()]


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
