"""util/convert_data.py through its command line."""
import gzip

import numpy as np
import pytest
from conftest import CLASSES, IMG_DIM, convert, make_rows, unverified, write_rows


def convert_rows(folder, split, path, *more):
    """Converts a file into folder/out. Returns the finished process."""
    return convert(split, folder / "out", path, folder / "classes.txt", *more)


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
    done = convert_rows(folder, split, path)
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
    convert_rows(folder, "all", path)
    order = sorted(range(len(rows)), key=lambda i: CLASSES.index(rows[i][-3]))
    array = np.load(folder / "out" / "all.npy", allow_pickle=False)
    np.testing.assert_array_equal(array[:, :-1], expected_features([rows[i] for i in order]))
    np.testing.assert_array_equal(array[:, -1], [CLASSES.index(rows[i][-3]) for i in order])
    assert (folder / "out" / "all_keys.txt").read_text().split() == [rows[i][0] for i in order]


@pytest.mark.parametrize("url", [False, True])
def test_explicit_references(folder, url):
    rng = np.random.default_rng(0)
    rows = [[name, *(["http://x"] if url else []), r, rng.random(IMG_DIM)] for r in range(3) for name in CLASSES]
    convert_rows(folder, "ref", write_rows(folder / "rows.tsv", rows), "--num_ref=3")
    array = np.load(folder / "out" / "ref.npy", allow_pickle=False)
    assert array.shape == (len(CLASSES), 3, IMG_DIM)
    for row, features in zip(rows, expected_features(rows)):
        np.testing.assert_array_equal(array[CLASSES.index(row[0]), row[-2]], features)


def test_bad_rows_leave_no_holes(folder):
    """A first count gives rows their indices. It counts rows whose numbers turn out bad, except where the first rows are bad."""
    rows = unverified(make_rows(1000))
    for good in (0, 900):
        def is_bad(i, good=good):
            return i >= good and i % 4 == 0

        convert_rows(folder, "all", write_rows(folder / "rows.tsv", [row for i, row in enumerate(rows) if not is_bad(i)]))
        expected = all_outputs(folder)
        path = write_rows(folder / "rows.tsv", rows)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line[:-2] + "x\n" if is_bad(i) else line for i, line in enumerate(lines)))
        assert f"{(1000 - good) // 4} bad" in convert_rows(folder, "all", path, "--on_bad_row=skip").stdout
        assert expected == all_outputs(folder)


def test_odd_but_allowed_text(folder):
    """CRLF, a BOM, blank lines, no newline at the end, gzip, and every way to write a number."""
    largest = "340282346638528859811704183484516925440"
    numbers = ["1", "-0", "+0.5", ".5", "5.", "1e3", "1E-3", "-1.25e+2", "007", "0.1", "16777217", "1e-50", largest]
    text = f"\ufeffk1\tramen\t{','.join(numbers)}\r\n\r\n\nk2\tapple pie\t{','.join(numbers)}"
    (folder / "rows.tsv.gz").write_bytes(gzip.compress(text.encode()))
    convert_rows(folder, "all", folder / "rows.tsv.gz")
    (folder / "rows.tsv").write_bytes(text.encode())
    array = np.load(folder / "out" / "all.npy")
    assert (folder / "out" / "all_keys.txt").read_text() == "k2\nk1\n"
    expected = np.float32([float(number) for number in numbers])
    for row in array:
        np.testing.assert_array_equal(row[:-1].view(np.int32), expected.view(np.int32))  # bit for bit, -0 included
    before = (folder / "out" / "all.npy").read_bytes()
    convert_rows(folder, "all", folder / "rows.tsv")
    assert (folder / "out" / "all.npy").read_bytes() == before


def test_many_blocks_in_several_threads_equal_one(folder):
    """10 MB of text, parsed by two threads block by block, against one thread."""
    rng = np.random.default_rng(0)
    text = [",".join(f"{x:.6g}" for x in np.abs(rng.normal(size=700))) for _ in range(50)]
    with open(folder / "rows.tsv", "w") as file:
        for i in range(1800):
            file.write(f"k{i}\t{CLASSES[rng.integers(5)]}\t{text[i % 50]}\n")
    convert_rows(folder, "all", folder / "rows.tsv", "--num_workers=2")
    several = all_outputs(folder)
    convert_rows(folder, "all", folder / "rows.tsv", "--num_workers=1")
    assert several == all_outputs(folder)
    array = np.load(folder / "out" / "all.npy")
    keys = (folder / "out" / "all_keys.txt").read_text().split()
    for index in (0, 777, 1799):
        expected = np.float32([float(x) for x in text[int(keys[index][1:]) % 50].split(",")])
        np.testing.assert_array_equal(array[index, :-1], expected)


def test_duplicate_keys_are_counted(folder):
    rows = make_rows(9)
    rows[5][0] = rows[7][0] = rows[2][0]
    assert "2 rows repeat the key" in convert_rows(folder, "train", write_rows(folder / "rows.tsv", rows)).stderr
