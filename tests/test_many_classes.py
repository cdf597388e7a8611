"""The commands with some hundred classes of a few rows, as tests/benchmark.py measures them with thousands."""
import json

import benchmark
import numpy as np
from conftest import run_script

from util.lib import report

NUM_CLASSES, ROWS_PER_CLASS = 203, 7


def test_every_command_with_many_classes_of_few_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROWS_PER_CLASS", ROWS_PER_CLASS)
    benchmark.make_classes(tmp_path, NUM_CLASSES)
    for name, line in benchmark.commands_of(tmp_path).items():
        run_script(*line, *(["--n_step=30", "--val_interval=30"] if name.startswith("train,") else []))
    num_rows = NUM_CLASSES * ROWS_PER_CLASS
    assert np.load(tmp_path / "converted" / "all.npy").shape == np.load(tmp_path / "all.npy").shape
    assert np.load(tmp_path / "ref.npy").shape == (NUM_CLASSES, benchmark.CLASS_REF, benchmark.CLASS_DIM)
    for table in ("scores", "second", "combined"):
        assert len((tmp_path / f"{table}.tsv").read_text().splitlines()) == num_rows
    probabilities = np.load(tmp_path / "second.npy", mmap_mode="r")
    assert probabilities.shape == (num_rows, NUM_CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert len((tmp_path / "noise.tsv").read_text().splitlines()) == NUM_CLASSES + 2
    assert len(json.loads((tmp_path / "report" / "report.json").read_text())["classes"]) == NUM_CLASSES
    with_rows = len(np.unique(np.load(tmp_path / "val.npy")[:, -2]))
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"The {min(report.MOST_LISTED, with_rows)} worst of {NUM_CLASSES} classes" in page
    methods = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["methods"]
    assert {"SelfClean", "FINE", "reconstruction error ratio", "relation graph"} < methods.keys()
