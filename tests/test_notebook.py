"""docs/notebook.md runs as printed, and what it promises of its functions holds."""
import inspect
import json
import os
import re

import numpy as np
import pytest
from conftest import ROOT, run_script

from util.lib import decisions, kmeans, score_table, scoring
from util.lib.errors import UserError

PAGE = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    """What the names of the page stand for, after all its code ran where README's steps have been done."""
    folder, scope = tmp_path_factory.mktemp("notebook"), {}
    (folder / "runs").mkdir()
    for name, target in (("data", "data"), ("runs/digits", "run"), ("runs/scores.tsv", "scores.tsv")):
        (folder / name).symlink_to(digits / target)
    before = os.getcwd()
    os.chdir(folder)
    try:
        for block in re.findall(r"(?<!FiftyOne -->\n)```python\n(.*?)```", PAGE, flags=re.S):
            exec(block, scope)
    finally:
        os.chdir(before)
    return {**scope, "tasks": json.loads((folder / "runs" / "tasks.json").read_text())}


def test_scores_in_memory_are_those_of_the_command(digits, found):
    table = score_table.read(f"{digits}/scores.tsv", "cosine")
    keys = (digits / "data" / "all_keys.txt").read_text().splitlines()
    by_key = dict(zip(table.key, table.score))
    np.testing.assert_allclose(found["scores"].cosine, [by_key[key] for key in keys], atol=1e-6)
    assert found["scores"].nearest.shape == (1797,)
    assert 200 < found["mislabeled"].sum() < 700
    np.testing.assert_allclose(np.concatenate([part.cosine for part in found["parts"]]), found["scores"].cosine, atol=1e-6)


def test_references_in_memory_are_those_of_the_command(digits, found):
    run, references = scoring.open_run(f"{digits}/run"), kmeans.find_references(found["features"], found["class_ids"], 10, 16)
    np.testing.assert_array_equal(references, np.load(digits / "data" / "ref.npy"))
    np.testing.assert_allclose(
        run.with_references(references).score_rows(found["features"], found["class_ids"]).cosine, found["scores"].cosine, atol=1e-6
    )


def test_classes_that_the_run_never_saw(found):
    """As good as under their own names: the references differ only by their seeds."""
    new, odd = found["of_new_classes"], found["odd"]
    assert new.cosine.shape == (odd.sum(),)
    assert set(new.nearest.tolist()) == set(range(5))
    assert np.mean((new.cosine >= 0.1) == (found["scores"].cosine[odd] >= 0.1)) > 0.9


def test_tasks_for_label_studio(found, tmp_path):
    """Each suggestion, once somebody accepts it, is a decision that verify_images takes."""
    tasks = found["tasks"]
    assert len(tasks) == len(found["rows"]) > 200
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    run_script("util/verify_images.py", f"--import={tmp_path}/tasks.json", f"--output={tmp_path}/v.tsv")
    decided = decisions.load(str(tmp_path / "v.tsv")).resolve()
    assert list(decided) == [(row["key"], row["class"]) for row in found["rows"]]
    for decision, row in zip(decided.values(), found["rows"]):
        assert (decision.label, decision.right_class or row["class"]) == (0, row["nearest_class"])


def test_arrays_that_do_not_fit_are_refused(digits):
    run = scoring.open_run(f"{digits}/run")
    good, ids = np.zeros((3, 64)), np.arange(3)
    for features, class_ids, message in (
        (good[:, 1:], ids, r"features of shape \(3, 63\)"), (good, ids[:2], r"class ids of shape \(2,\)"),
        (good - 2, ids, "row 0 has -2"), (good * np.nan, ids, "row 0 has nan in column 0, expected finite"),
        (good, ids + 8, "from 0 to 9"), (good, ids / 2, "class ids: float64"),
    ):
        with pytest.raises(UserError, match=message):
            run.score_rows(features, class_ids)
    for references, message in ((np.zeros((10, 64)), "references of shape"), (np.zeros((9, 16, 64)), "9 classes in an array of shape")):
        with pytest.raises(UserError, match=message):
            run.with_references(references)


def test_the_functions_of_the_page_exist():
    """With the arguments that the table prints."""
    scope = {"scoring": scoring, "kmeans": kmeans, "run": scoring.OpenRun}
    for owner, name, arguments in re.findall(r"^\| `(\w+)\.(\w+)\((.*?)\)` \|", PAGE, flags=re.M):
        if owner in scope:
            printed = [argument.partition("=")[0] for argument in arguments.split(", ")]
            parameters = [p for p in inspect.signature(getattr(scope[owner], name)).parameters if p != "self"]
            assert parameters[: len(printed)] == printed
