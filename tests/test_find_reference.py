"""util/find_reference.py through its command line."""
import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, NUM_REF, convert, find_references, make_rows, run_script, unverified, write_rows


@pytest.fixture
def folder(tmp_path):
    """A folder with the class list."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def convert_rows(folder, rows):
    """Makes all.npy of unverified rows."""
    convert("all", folder, write_rows(folder / "rows.tsv", rows), folder / "classes.txt")


@pytest.mark.parametrize("engine", ["numpy", "tensorflow", "opencv"])
def test_references_are_the_centres_of_clusters(folder, engine):
    """Three far-apart clusters per class: with num_ref=3 the references are their means, and the same on each run."""
    rng = np.random.default_rng(0)
    centres = rng.random((5, 3, IMG_DIM)) * 100
    rows = [[f"k{i}", CLASSES[i % 5], centres[i % 5, i // 5 % 3] + rng.random(IMG_DIM) * 0.1] for i in range(150)]
    convert_rows(folder, rows)
    made = []
    for _ in range(2):
        find_references(folder, folder / "classes.txt", 3, f"--kmeans={engine}")
        made.append((folder / "ref.npy").read_bytes())
    assert made[0] == made[1]
    references = np.load(folder / "ref.npy")
    for c in range(5):
        members = [np.mean([row[-1] for i, row in enumerate(rows) if i % 5 == c and i // 5 % 3 == m], axis=0) for m in range(3)]
        found = references[c][np.argsort(references[c][:, 0])]
        np.testing.assert_allclose(found, sorted(members, key=lambda m: m[0]), rtol=1e-3)


def test_small_classes_are_repeated_and_empty_ones_refused(folder):
    rows = unverified(make_rows(60, seed=4))
    few = [row for row in rows if row[1] != "sushi"] + [row for row in rows if row[1] == "sushi"][:2]
    convert_rows(folder, few)
    done = find_references(folder, folder / "classes.txt", NUM_REF)
    assert '1 class with fewer than num_ref=7 rows, which are repeated: "sushi"' in done.stderr
    references = np.load(folder / "ref.npy")[CLASSES.index("sushi")]
    assert len(np.unique(references, axis=0)) == 2
    convert_rows(folder, [row for row in few if row[1] != "sushi"])
    done = find_references(folder, folder / "classes.txt", NUM_REF, check=False)
    assert done.returncode == 1
    assert 'no rows of 1 class: "sushi"' in done.stderr
    find_references(folder, folder / "classes.txt", NUM_REF, "--skip_empty_classes")
    assert not np.load(folder / "ref.npy")[CLASSES.index("sushi")].any()


def test_class_list_in_another_order_is_refused(sample_dir, tmp_path):
    shuffled = tmp_path / "classes.txt"
    shuffled.write_text("\n".join([CLASSES[1], CLASSES[0], *CLASSES[2:]]) + "\n")
    done = run_script(
        "util/find_reference.py", f"--class_list={shuffled}", f"--input_npy={sample_dir}/data/all.npy", f"--output_dir={tmp_path}",
        check=False,
    )
    assert done.returncode == 1
    assert 'class 0 is "ramen", but "apple pie"' in done.stderr
