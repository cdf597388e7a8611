"""util/lib/score_table.py: the formats of score files, for the demo's digits."""
import csv

import numpy as np
import pyarrow.parquet
import pytest
from conftest import load_command, read_table, run_script, score_digits, truth

from util.lib import rows, score_table, scoring

TABLES = ["t.tsv", "t.tsv.gz", "t.csv", "t.csv.gz", "t.parquet", "t.txt", "t_plain.csv", "t.npy", "t_plain.parquet"]


@pytest.fixture(scope="module")
def run(digits):
    return scoring.open_run(f"{digits}/run")


@pytest.fixture(scope="module")
def scored(digits, run):
    """All rows with all scores, a list of ScoredRows."""
    source = rows.open_source(f"{digits}/data/all.tsv", run.make_parser(), columns=None, num_workers=2)
    blocks = load_command("inference").score_rows(
        source, run.make_scorer(compare_classes=True), on_bad_row="error", rejected_path=None, num_workers=2, num_samples=-1,
    )
    return list(blocks)


def test_table_agrees_with_the_plain_output(digits, tmp_path):
    """Three runs of inference.py: a table, the cosines as text, and the probabilities as an array."""
    plain = np.loadtxt(score_digits(digits, tmp_path / "plain.txt"))
    table = read_table(digits / "scores.tsv")
    rows = [line.split("\t")[:2] for line in (digits / "data" / "all.tsv").read_text().splitlines()]
    assert [[row["key"], row["class"]] for row in table] == rows
    np.testing.assert_array_equal([float(row["cosine"]) for row in table], plain)
    probabilities = np.load(score_digits(digits, tmp_path / "probability.npy", "--score=probability"), allow_pickle=False)
    np.testing.assert_allclose(probabilities, [float(row["probability"]) for row in table], atol=1e-6)
    for row in table:
        assert row["verdict"] == ("correct" if float(row["cosine"]) >= 0.1 else "mislabeled")
        # The margin is positive exactly where the given class is the nearest.
        assert (float(row["margin"]) >= 0) == (row["nearest_class"] == row["class"])
        gap = float(row["cosine"]) - float(row["nearest_cosine"])
        assert gap == pytest.approx(min(float(row["margin"]), 0), abs=1e-6)


def test_probability_is_the_softmax_of_the_cosines_to_all_classes(digits, run):
    """Every image under every class."""
    images = [line.split("\t")[2] for line in (digits / "data" / "all.tsv").read_text().splitlines()[:20]]
    features = np.float32([text.split(",") for text in images])
    scores = run.make_scorer(compare_classes=True).score(np.repeat(features, 10, axis=0), np.tile(np.arange(10, dtype=np.int32), 20))
    softmax = np.exp(scores.cosine.reshape(20, 10) / 0.1)
    np.testing.assert_allclose(scores.probability.reshape(20, 10), softmax / softmax.sum(axis=1, keepdims=True), rtol=1e-4)


def test_formats_by_suffix(run, scored, tmp_path):
    """All formats hold the same numbers."""
    def write(name, **options):
        score_table.write(str(tmp_path / name), scored, class_names=run.class_names, **options)
        return tmp_path / name

    plain = np.loadtxt(write("plain.txt")).astype(np.float32)
    np.testing.assert_array_equal(np.load(write("scores.npy"), allow_pickle=False), plain)
    np.testing.assert_array_equal(np.loadtxt(write("plain.txt.gz")).astype(np.float32), plain)
    columns = pyarrow.parquet.read_table(write("scores.parquet", table=True)).to_pydict()
    assert tuple(columns) == score_table.COLUMNS
    np.testing.assert_array_equal(np.float32(columns["cosine"]), plain)
    for name in ("margin", "probability"):
        np.testing.assert_allclose(np.loadtxt(write(f"{name}.txt", score=name)), columns[name], atol=1e-6)


@pytest.mark.parametrize("header", [False, True], ids=["", "header"])
@pytest.mark.parametrize("name", TABLES)
def test_what_is_written_is_read_again(run, scored, tmp_path, name, header):
    """A table in every column, by each score, and a plain file in its numbers; a row without a score stays one."""
    first = scored[0]
    scores = first.scores._replace(cosine=np.where(np.arange(len(first.keys)) == 3, np.float32(np.nan), first.scores.cosine))
    keys = ['a, "b"', *first.keys[1:]]
    rows = first._replace(keys=keys, scores=scores)
    table, path = name.startswith("t.") and name not in ("t.txt", "t.npy"), str(tmp_path / name)
    score_table.write(path, [rows], class_names=run.class_names, table=table, threshold=0.25, header=header)
    found = score_table.read(path)
    np.testing.assert_array_equal(np.float32(found.score), scores.cosine)
    assert np.isnan(found.score[3])
    if not table:
        assert found.key is None
        return
    names = np.array(run.class_names)
    assert found.key == rows.keys
    assert found.class_name == names[rows.class_ids].tolist()
    assert found.nearest_class == names[scores.nearest].tolist()
    np.testing.assert_array_equal(np.float32(found.nearest_cosine), scores.nearest_cosine)
    decided = np.where(scores.cosine >= 0.25, "correct", "mislabeled")
    assert found.verdict == ["unknown" if i == 3 else verdict for i, verdict in enumerate(decided)]
    np.testing.assert_array_equal(np.float32(score_table.read(path, "margin").score), scores.margin)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_table_that_a_spreadsheet_saved_is_read(run, scored, tmp_path, name):
    """With a byte-order mark and carriage returns."""
    path = tmp_path / name
    score_table.write(str(path), scored[:1], class_names=run.class_names, table=True, header=True)
    wanted = score_table.read(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = score_table.read(str(path))
    assert found.key == wanted.key
    np.testing.assert_array_equal(found.score, wanted.score)


def test_a_header_names_the_columns(run, scored, tmp_path):
    """For the csv module, in commas and in tabs; a table of CSV has it always."""
    for name, separator, header in (("t.csv", ",", False), ("t.tsv", "\t", True)):
        score_table.write(str(tmp_path / name), scored[:1], class_names=run.class_names, table=True, header=header)
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file, delimiter=separator))
        assert tuple(found[0]) == score_table.COLUMNS
        assert [row["key"] for row in found] == scored[0].keys
        np.testing.assert_array_equal(np.float32([row["cosine"] for row in found]), scored[0].scores.cosine)


def test_probabilities_of_every_class(digits, run, tmp_path):
    """Through the command line, beside the table, with a bad row; as in the table for the given class."""
    lines = (digits / "data" / "all.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "rows.tsv").write_text("".join([*lines[:40], "k\tnone\t1\n", *lines[40:]]))
    run_script(
        "inference.py", f"--image_feature_list={tmp_path}/rows.tsv", f"--checkpoint_dir={digits}/run", f"--output_file={tmp_path}/s.csv",
        "--output_format=tsv", f"--probabilities_file={tmp_path}/p.npy", "--on_bad_row=skip",
    )
    found, table = np.load(tmp_path / "p.npy", allow_pickle=False), score_table.read(str(tmp_path / "s.csv"), "probability")
    assert found.shape == (1798, 10)
    assert found.dtype == np.float32
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [40]
    found, given = np.delete(found, 40, axis=0), [name for i, name in enumerate(table.class_name) if i != 40]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[np.arange(1797), [run.class_names.index(n) for n in given]], np.delete(table.score, 40), atol=1e-5)
    assert [run.class_names[c] for c in found.argmax(axis=1)] == [name for i, name in enumerate(table.nearest_class) if i != 40]


def test_suggested_class_is_right_for_most_of_the_mislabeled_validation_rows(digits):
    true, table = truth(digits), {row["key"]: row for row in read_table(digits / "scores.tsv")}
    val = [line.split("\t")[:3] for line in (digits / "data" / "val.tsv").read_text().splitlines()]
    wrong = [key for key, _, label in val if label == "0"]
    right = [table[key]["nearest_class"] == true[key] for key in wrong]
    print(f"\nsuggested class right: {np.mean(right):.3f} of {len(wrong)}")
    assert np.mean(right) >= 0.7
