"""util/join_labels.py: decisions joined with features by key and class, from arrays and from text."""
import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, run_script

TIME = "2026-01-02T03:04:05Z"


def write_decisions(path, *rows):
    """Writes lines of (key, class, label, author)."""
    path.write_text("".join(f"{key}\t{name}\t{label}\t{author}\t{TIME}\t\n" for key, name, label, author in rows))
    return path


@pytest.mark.parametrize("features", ["data/all.npy", "all.tsv"])
def test_decided_rows_are_picked_with_their_features(sample_dir, tmp_path, features):
    rows = [line.split("\t") for line in (sample_dir / "all.tsv").read_text().splitlines()]
    chosen = rows[3:50:7]
    first = write_decisions(tmp_path / "a.tsv", *((key, name, "1", "ann") for key, name, _ in chosen))
    more = [(chosen[0][0], chosen[0][1], "0", "bob"), (chosen[1][0], chosen[1][1], "0", "bob"), (chosen[1][0], chosen[1][1], "0", "eve")]
    other = next(name for name in CLASSES if name != rows[100][1])
    more += [("none.jpg", "ramen", "1", "bob"), (rows[100][0], other, "1", "bob"), (rows[101][0], rows[101][1], "-1", "bob")]
    second = write_decisions(tmp_path / "b.tsv", *more)
    done = run_script(
        "util/join_labels.py", f"--decisions={first},{second}", f"--features={sample_dir}/{features}", "--split=train",
        f"--class_list={sample_dir}/classes.txt", f"--output_dir={tmp_path}/out",
    )
    assert "10 rows decided: 7 correct, 1 mislabeled, 2 unclear (1 of them since people disagree)" in done.stdout
    assert "train.npy: 6 verified rows, 5 correct and 1 mislabeled" in done.stdout
    assert f'1 decided row with another class, e.g. "{rows[100][0]}" was decided as {other} and is {rows[100][1]} there' in done.stderr
    assert 'no features of 1 decided row, e.g. "none.jpg"' in done.stderr
    keys = (tmp_path / "out" / "train_keys.txt").read_text().splitlines()
    assert sorted(keys) == sorted(key for key, _, _ in chosen[1:])
    array, by_key = np.load(tmp_path / "out" / "train.npy"), {row[0]: row for row in rows}
    for key, row in zip(keys, array):
        np.testing.assert_allclose(row[:IMG_DIM], [float(x) for x in by_key[key][2].split(",")], rtol=1e-6)
        assert row[IMG_DIM:].tolist() == [CLASSES.index(by_key[key][1]), float(key != chosen[1][0])]


def test_rows_that_measure_are_left_out(sample_dir, tmp_path):
    """By the keys of an array and of text; where none is left, nothing is written."""
    rows = [line.split("\t") for line in (sample_dir / "all.tsv").read_text().splitlines()]
    keys = [row[0] for row in rows[:5]]
    decided = write_decisions(tmp_path / "v.tsv", *((key, name, "1", "ann") for key, name, _ in rows[:5]))
    np.save(tmp_path / "val.npy", np.zeros((2, IMG_DIM + 2), np.float32))
    (tmp_path / "val_keys.txt").write_text(f"{keys[0]}\n{keys[1]}\n")
    (tmp_path / "text.tsv").write_text(f"{keys[2]}\tramen\t1\n")
    for leave_out, left in (("text.tsv", keys[3:]), ("all", None)):
        files = f"{tmp_path}/val.npy,{decided if left is None else tmp_path / leave_out}"
        done = run_script(
            "util/join_labels.py", f"--decisions={decided}", f"--leave_out={files}", f"--features={sample_dir}/data/all.npy",
            "--split=train", f"--output_dir={tmp_path}/{leave_out}_out", check=False,
        )
        assert "val.npy: 2 of them left out" in done.stdout
        assert (done.returncode, "has all decided rows" in done.stderr) == ((0, False) if left else (1, True))
        assert (tmp_path / f"{leave_out}_out" / "train.npy").exists() == bool(left)
        if left:
            assert sorted((tmp_path / f"{leave_out}_out" / "train_keys.txt").read_text().split()) == sorted(left)


def test_a_row_that_is_there_twice_is_taken_once(sample_dir, tmp_path):
    lines = (sample_dir / "all.tsv").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "twice.tsv").write_text("".join([*lines, lines[2]]))
    key, name, _ = lines[2].split("\t")
    write_decisions(tmp_path / "v.tsv", (key, name, "0", "ann"))
    done = run_script(
        "util/join_labels.py", f"--decisions={tmp_path}/v.tsv", f"--features={tmp_path}/twice.tsv", "--split=val",
        f"--class_list={sample_dir}/classes.txt", f"--output_dir={tmp_path}/out",
    )
    assert "1 row with the key and class of an earlier one; the first is taken" in done.stderr
    assert np.load(tmp_path / "out" / "val.npy").shape == (1, IMG_DIM + 2)
