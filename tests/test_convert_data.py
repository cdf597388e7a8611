"""convert_data.py, find_reference.py and heldout_train_data.py through their command lines."""
import gzip

import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, NUM_REF, make_rows, run_script, unverified, write_rows

from util.lib import array_writer
from util.lib.errors import UserError
from util.lib.tsv import UNVERIFIED, Parser, RowReader


def convert(folder, split, path, *more, **keywords):
    return run_script(
        "util/convert_data.py", f"--split={split}", f"--class_list={folder}/classes.txt", f"--data_path={path}",
        f"--output_dir={folder}/out", *more, **keywords,
    )


def all_outputs(folder):
    """The bytes of all.npy and of its keys."""
    return (folder / "out" / "all.npy").read_bytes(), (folder / "out" / "all_keys.txt").read_bytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def expected_features(rows):
    """The features as text and back, the slow way: float32(float(text))."""
    return np.float32([[float(f"{x:.6g}") for x in row[-1]] for row in rows])


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_verified_rows(folder, split, url):
    rows = make_rows(11, url=url)
    rows[4][-2] = -1  # invalid: dropped, its feature not read
    path = write_rows(folder / "rows.tsv", rows)
    path.write_text(path.read_text().replace(",".join(f"{x:.6g}" for x in rows[4][-1]), "not read"))
    done = convert(folder, split, path)
    kept = rows[:4] + rows[5:]
    array = np.load(folder / "out" / f"{split}.npy", allow_pickle=False)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[:, :IMG_DIM], expected_features(kept))
    np.testing.assert_array_equal(array[:, IMG_DIM], [CLASSES.index(row[-3]) for row in kept])
    np.testing.assert_array_equal(array[:, IMG_DIM + 1], [row[-2] for row in kept])
    assert (folder / "out" / f"{split}_keys.txt").read_text().split("\n")[:-1] == [row[0] for row in kept]
    assert (folder / "out" / "classes.txt").read_text() == (folder / "classes.txt").read_text()
    assert "10 rows of 13 numbers, 5 classes; left out: 1 labelled -1" in done.stdout


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("url", [False, True])
def test_all_rows_are_grouped_by_class_in_the_order_of_the_file(folder, url, stream):
    rows = make_rows(53, url=url)
    path = write_rows(folder / "rows.tsv", unverified(rows))
    if stream:  # cannot be read twice to count first
        (folder / "rows.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = folder / "rows.tsv.gz"
    convert(folder, "all", path)
    order = sorted(range(len(rows)), key=lambda i: CLASSES.index(rows[i][-3]))
    array = np.load(folder / "out" / "all.npy", allow_pickle=False)
    np.testing.assert_array_equal(array[:, :-1], expected_features([rows[i] for i in order]))
    np.testing.assert_array_equal(array[:, -1], [CLASSES.index(rows[i][-3]) for i in order])
    assert (folder / "out" / "all_keys.txt").read_text().split() == [rows[i][0] for i in order]


@pytest.mark.parametrize("url", [False, True])
def test_explicit_references(folder, url):
    rng = np.random.default_rng(0)
    rows = [[name, *(["http://x"] if url else []), r, rng.random(IMG_DIM)] for r in range(3) for name in CLASSES]
    convert(folder, "ref", write_rows(folder / "rows.tsv", rows), "--num_ref=3")
    array = np.load(folder / "out" / "ref.npy", allow_pickle=False)
    assert array.shape == (len(CLASSES), 3, IMG_DIM)
    for row, features in zip(rows, expected_features(rows)):
        np.testing.assert_array_equal(array[CLASSES.index(row[0]), row[-2]], features)


def test_bad_rows_leave_no_holes(folder):
    """Rows are placed by a first count, which takes those in whose numbers turn out bad; not where the first rows are bad."""
    rows = unverified(make_rows(1000))
    for good in (0, 900):
        def is_bad(i, good=good):
            return i >= good and i % 4 == 0

        convert(folder, "all", write_rows(folder / "rows.tsv", [row for i, row in enumerate(rows) if not is_bad(i)]))
        expected = all_outputs(folder)
        path = write_rows(folder / "rows.tsv", rows)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line[:-2] + "x\n" if is_bad(i) else line for i, line in enumerate(lines)))
        assert f"{(1000 - good) // 4} bad" in convert(folder, "all", path, "--on_bad_row=skip").stdout
        assert expected == all_outputs(folder)


def test_a_file_that_grows_while_it_is_converted(folder):
    """Rows for which there is no place are an error, and nothing is left of the array."""
    path = write_rows(folder / "rows.tsv", unverified(make_rows(20)))
    reader = RowReader(str(path), Parser(UNVERIFIED, CLASSES))
    sizes = reader.class_sizes()
    with open(path, "a") as file:
        file.write(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"rows\.tsv: has more rows than a moment ago"):
        array_writer.write(reader, str(folder / "all.npy"), 5, grouped=True, verified=False, source=str(path), class_sizes=sizes)
    assert {file.name for file in folder.iterdir()} == {"rows.tsv", "classes.txt"}


def test_odd_but_allowed_text(folder):
    """CRLF, a BOM, blank lines, no newline at the end, gzip, and every way to write a number."""
    largest = "340282346638528859811704183484516925440"
    numbers = ["1", "-0", "+0.5", ".5", "5.", "1e3", "1E-3", "-1.25e+2", "007", "0.1", "16777217", "1e-50", largest]
    text = f"\ufeffk1\tramen\t{','.join(numbers)}\r\n\r\n\nk2\tapple pie\t{','.join(numbers)}"
    (folder / "rows.tsv.gz").write_bytes(gzip.compress(text.encode()))
    convert(folder, "all", folder / "rows.tsv.gz")
    (folder / "rows.tsv").write_bytes(text.encode())
    array = np.load(folder / "out" / "all.npy")
    assert (folder / "out" / "all_keys.txt").read_text() == "k2\nk1\n"
    expected = np.float32([float(number) for number in numbers])
    for row in array:
        np.testing.assert_array_equal(row[:-1].view(np.int32), expected.view(np.int32))  # bit for bit, -0 included
    before = (folder / "out" / "all.npy").read_bytes()
    convert(folder, "all", folder / "rows.tsv")
    assert (folder / "out" / "all.npy").read_bytes() == before


def test_many_blocks_in_several_processes_equal_one(folder):
    """10 MB of text, which worker processes share, cut at other places than one process cuts it."""
    rng = np.random.default_rng(0)
    text = [",".join(f"{x:.6g}" for x in np.abs(rng.normal(size=700))) for _ in range(50)]
    with open(folder / "rows.tsv", "w") as file:
        for i in range(1800):
            file.write(f"k{i}\t{CLASSES[rng.integers(5)]}\t{text[i % 50]}\n")
    convert(folder, "all", folder / "rows.tsv", "--num_workers=2")
    several = all_outputs(folder)
    convert(folder, "all", folder / "rows.tsv", "--num_workers=1")
    assert several == all_outputs(folder)
    array = np.load(folder / "out" / "all.npy")
    keys = (folder / "out" / "all_keys.txt").read_text().split()
    for place in (0, 777, 1799):
        expected = np.float32([float(x) for x in text[int(keys[place][1:]) % 50].split(",")])
        np.testing.assert_array_equal(array[place, :-1], expected)


def test_duplicate_keys_are_counted(folder):
    rows = make_rows(9)
    rows[5][0] = rows[7][0] = rows[2][0]
    assert "2 rows repeat the key" in convert(folder, "train", write_rows(folder / "rows.tsv", rows)).stderr


@pytest.mark.parametrize("engine", ["numpy", "tensorflow", "opencv"])
def test_references_are_the_centres_of_clusters(folder, engine):
    """Three far-apart clusters a class: with num_ref=3 the references are their means, and the same on each run."""
    rng = np.random.default_rng(0)
    centres = rng.random((5, 3, IMG_DIM)) * 100
    rows = [[f"k{i}", CLASSES[i % 5], centres[i % 5, i // 5 % 3] + rng.random(IMG_DIM) * 0.1] for i in range(150)]
    convert(folder, "all", write_rows(folder / "rows.tsv", rows))
    arguments = [f"--class_list={folder}/classes.txt", f"--input_npy={folder}/out/all.npy", "--num_ref=3", f"--kmeans={engine}"]
    run_script("util/find_reference.py", *arguments, f"--output_dir={folder}/r1")
    run_script("util/find_reference.py", *arguments, f"--output_dir={folder}/r2")
    assert (folder / "r1" / "ref.npy").read_bytes() == (folder / "r2" / "ref.npy").read_bytes()
    references = np.load(folder / "r1" / "ref.npy")
    for c in range(5):
        members = [np.mean([row[-1] for i, row in enumerate(rows) if i % 5 == c and i // 5 % 3 == m], axis=0) for m in range(3)]
        found = references[c][np.argsort(references[c][:, 0])]
        np.testing.assert_allclose(found, sorted(members, key=lambda m: m[0]), rtol=1e-3)


def test_small_classes_are_repeated_and_empty_ones_refused(folder):
    rows = unverified(make_rows(60, seed=4))
    few = [row for row in rows if row[1] != "sushi"] + [row for row in rows if row[1] == "sushi"][:2]
    convert(folder, "all", write_rows(folder / "rows.tsv", few))
    arguments = [f"--class_list={folder}/classes.txt", f"--input_npy={folder}/out/all.npy", f"--output_dir={folder}/out"]
    done = run_script("util/find_reference.py", *arguments, f"--num_ref={NUM_REF}")
    assert 'fewer than num_ref=7 rows, which are repeated: "sushi"' in done.stderr
    references = np.load(folder / "out" / "ref.npy")[CLASSES.index("sushi")]
    assert len(np.unique(references, axis=0)) == 2
    convert(folder, "all", write_rows(folder / "rows.tsv", [row for row in few if row[1] != "sushi"]))
    done = run_script("util/find_reference.py", *arguments, f"--num_ref={NUM_REF}", check=False)
    assert done.returncode == 1
    assert 'no rows of 1 classes: "sushi"' in done.stderr
    run_script("util/find_reference.py", *arguments, f"--num_ref={NUM_REF}", "--skip_empty_classes")
    assert not np.load(folder / "out" / "ref.npy")[CLASSES.index("sushi")].any()


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_heldout_rows_are_left_out(folder, suffix):
    rows = make_rows(40, url=True)
    path = write_rows(folder / "train.tsv", rows)
    (folder / "heldout.tsv").write_text("ramen\t0\napple pie\t1\ntacos\t0\n")  # the others are kept
    out = folder / f"kept.{suffix}"
    run_script(
        "util/heldout_train_data.py", f"--heldout_class_list={folder}/heldout.tsv", f"--input_file={path}", f"--output_file={out}"
    )
    expected = [line for line in path.read_text().splitlines() if line.split("\t")[2] not in ("ramen", "tacos")]
    text = gzip.decompress(out.read_bytes()).decode() if suffix.endswith("gz") else out.read_text()
    assert text.splitlines() == expected
    assert 0 < len(expected) < 40


def test_kmeans_is_as_good_as_opencv():
    """Within-class distance against cv2.kmeans with the same settings, over sets with and without clusters."""
    import cv2

    from util.lib import kmeans

    ours = theirs = 0.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        centres = rng.random((20, 31)) * (seed % 3)
        features = np.float32(centres[rng.integers(20, size=400)] + rng.normal(size=(400, 31)) * 0.3)
        cv2.setRNGSeed(seed)
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
        theirs += cv2.kmeans(features, 16, None, criteria, 10, cv2.KMEANS_PP_CENTERS)[0]
        found, distance = kmeans.centres_of(features, 16, seed)
        by_hand = np.square(features[:, None].astype("f8") - found[None]).sum(axis=2).min(axis=1).sum()
        assert distance == pytest.approx(by_hand, rel=1e-4)
        ours += distance
    assert ours <= 1.005 * theirs  # both are the best of ten random starts


def test_kmeans_fills_empty_clusters():
    from util.lib import kmeans

    features = np.float32(np.repeat([[0.0, 1.0], [5.0, 5.0], [9.0, 0.0]], 7, axis=0))  # three distinct rows, five centres
    centres, distance = kmeans.centres_of(features, 5, seed=0)
    assert np.isfinite(centres).all()
    assert distance == pytest.approx(0, abs=1e-3)
