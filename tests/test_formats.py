"""One data set in every format that is read: the same rows, the same bad rows, the same arrays."""
import csv
import gzip
import io
import json

import datasets
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from conftest import CLASSES, convert, run_script, score_digits
from pyarrow import parquet

from util.lib import csv_rows, rows, tsv
from util.lib.errors import UserError

NAMES = [*CLASSES[:3], 'süß, "sweet"', "a b"]
KEYS, LABELS = ["key", "class", "label"], {b"1": 1, b"0": 0, b"-1": -1}


def table(num_rows=53, dim=13):
    """Rows of numbers that a float16 holds, a dict of columns: key, class, label, feature [N, D]."""
    rng = np.random.default_rng(0)
    features = rng.integers(-8, 2000, (num_rows, dim)) / 8
    return {
        "key": [f"img/{i:03d}, {i}.jpg" for i in range(num_rows)], "class": [NAMES[c] for c in rng.integers(5, size=num_rows)],
        "label": rng.integers(-1, 2, num_rows).tolist(), "feature": features,
    }


def numbers(feature, separator=","):
    return separator.join(f"{x:g}" for x in feature)


def write_tsv(path, data):
    columns = [data[name] for name in ("key", "class", "label") if name in data]
    text = "".join("\t".join([*map(str, front), numbers(feature)]) + "\n" for *front, feature in zip(*columns, data["feature"]))
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(text.encode())
    return {"path": str(path)}


def write_csv(path, data, shown=numbers, single=False, separator=","):
    """CSV of the standard library. shown: of a feature. single: a column per number."""
    names, features = [name for name in KEYS if name in data], data.get("feature", [()] * len(data["key"]))
    wide = [f"f{i}" for i in range(len(features[0]))] if single else ["feature"] * ("feature" in data)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\r\n")
    writer.writerow([*wide, "more", *names])
    for i, feature in enumerate(features):
        values = [f"{x:g}" for x in feature] if single else [shown(feature)] * len(wide)
        writer.writerow([*values, "x", *[data[name][i] for name in names]])
    content = text.getvalue().encode("utf-8-sig")
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return {"path": str(path)}


def arrow(data, dtype="float32", kind="list", text=None):
    """A pyarrow.Table. kind: of the lists. text: the type of the keys and classes, strings by default."""
    values = pa.array(np.asarray(data["feature"]).astype(dtype).ravel())
    dim, count = np.shape(data["feature"])[1], len(data["key"])
    ends = np.arange(count + 1) * dim
    feature = {
        "list": lambda: pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values),
        "large": lambda: pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values),
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(values, dim),
    }[kind]()
    words = {name: pa.array(data[name]).cast(text or pa.string()) for name in ("key", "class")}
    label = {"label": pa.array(data["label"], pa.int8())} if "label" in data else {}
    return pa.table({"feature": feature, "url": ["u"] * count, **words, **label})


def write_parquet(path, data, compression="snappy", row_group_size=None, **kinds):
    parquet.write_table(arrow(data, **kinds), path, compression=compression, row_group_size=row_group_size)
    return {"path": str(path)}


def write_shards(folder, data, pattern):
    """Parquet files of 7 rows, in a folder."""
    folder.mkdir()
    for i, start in enumerate(range(0, len(data["key"]), 7)):
        part = {name: column[start : start + 7] for name, column in data.items()}
        write_parquet(folder / f"part-{i:05d}.parquet", part)
    (folder / "_SUCCESS").touch()
    return {"path": str(folder / pattern)}  # of no pattern: the folder


def write_array(folder, data, dtype="<f4", archive=None, table="rows.csv"):
    """An array and a table. archive: names of the members of a .npz, the first of which holds the features."""
    features = np.asarray(data["feature"]).astype(dtype)
    path = folder / ("x.npz" if archive else "x.npy")
    if archive:
        np.savez_compressed(path, **{name: features if i == 0 else np.zeros(3) for i, name in enumerate(archive)})
    else:
        np.save(path, features)
    others = {name: column for name, column in data.items() if name != "feature"}
    write_csv(folder / table, others, separator="," if ".csv" in table else "\t")
    return {"path": None, "features": str(path), "table": str(folder / table)}


DICTIONARY = pa.dictionary(pa.int32(), pa.string())
FORMATS = {  # name: function of (folder, data) that writes it and returns arguments of rows.open_source
    "tsv": lambda f, d: write_tsv(f / "x.tsv", d),
    "tsv.gz": lambda f, d: write_tsv(f / "x.tsv.gz", d),
    "csv": lambda f, d: write_csv(f / "x.csv", d),
    "csv.gz": lambda f, d: write_csv(f / "x.csv.gz", d),
    "csv of blanks": lambda f, d: write_csv(f / "x.csv", d, lambda x: numbers(x, " ")),
    "csv of lists": lambda f, d: write_csv(f / "x.csv", d, lambda x: str(x.tolist())),
    "csv of columns": lambda f, d: write_csv(f / "x.csv", d, single=True),
    "parquet": lambda f, d: write_parquet(f / "x.parquet", d),
    "parquet float16": lambda f, d: write_parquet(f / "x.parquet", d, dtype="float16"),
    "parquet float64": lambda f, d: write_parquet(f / "x.parquet", d, "gzip", dtype="float64", kind="large", text=pa.large_string()),
    "parquet fixed": lambda f, d: write_parquet(f / "x.parquet", d, "zstd", 5, kind="fixed", text=DICTIONARY),
    "parquet view": lambda f, d: write_parquet(f / "x.parquet", d, "none", 1, text=pa.string_view()),
    "parquet files": lambda f, d: write_shards(f / "x", d, "part-*.parquet"),
    "parquet folder": lambda f, d: write_shards(f / "x.parquet", d, ""),
    "npy + csv": lambda f, d: write_array(f, d),
    "npy float64": lambda f, d: write_array(f, d, ">f8", table="rows.csv.gz"),
    "npz + tsv": lambda f, d: write_array(f, d, "<f2", ["x"], "rows.tsv"),
    "npz of several": lambda f, d: write_array(f, d, "<f4", ["feature", "y"]),
}


def read(given, layout=tsv.VERIFIED, minimum=None, **options):
    """All rows of a source: (columns of the blocks joined, [(number, reason) of bad rows]). given: arguments of open_source."""
    labels = LABELS if layout is tsv.VERIFIED else None
    parser = tsv.Parser(layout, NAMES, labels=labels, minimum=minimum)
    source = rows.open_source(parser=parser, num_workers=2, **{"columns": csv_rows.COLUMNS, **given})
    blocks = list(rows.RowReader(source, **options))
    columns = [np.concatenate(column).tolist() for column in list(zip(*blocks))[1:4]]
    features = np.concatenate([block.features for block in blocks if block.keys])
    bad = [(row.line, row.reason) for block in blocks for row in block.rejected]
    return [key for block in blocks for key in block.keys], *columns, features, bad


def assert_same_as_text(folder, data):
    """x.parquet in a folder has the rows of a table, as text has them."""
    for found, expected in zip(read({"path": str(folder / "x.parquet")}), read(write_tsv(folder / "x.tsv", data))):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", [tsv.VERIFIED, tsv.UNVERIFIED], ids=["verified", "unverified"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_rows(tmp_path, name, layout):
    data = table()
    if layout is tsv.UNVERIFIED:
        del data["label"]
    keys, ids, labels, lines, features, bad = read(FORMATS[name](tmp_path, data), layout)
    kept = [i for i in range(53) if data.get("label", [0] * 53)[i] != -1]
    assert keys == [data["key"][i] for i in kept]
    assert [NAMES[i] for i in ids] == [data["class"][i] for i in kept]
    assert labels == [data.get("label", [0] * 53)[i] for i in kept]
    assert features.dtype == np.float32
    assert features.tobytes() == np.float32(data["feature"][kept]).tobytes()
    header = "csv" in name or "np" in name
    assert [line - header for line in lines] == [i + 1 for i in kept]
    assert not bad


@pytest.mark.parametrize("name", FORMATS)
def test_a_first_pass_counts_the_classes(tmp_path, name):
    """Or leaves it: of gzip, and of CSV, which would take as long as reading it."""
    data = table()
    del data["label"]
    source = rows.open_source(parser=tsv.Parser(tsv.UNVERIFIED, NAMES), columns=csv_rows.COLUMNS, **FORMATS[name](tmp_path, data))
    sizes = source.class_sizes()
    if sizes is None:
        assert "gz" in name or name.startswith("csv") or name == "npy float64"
    else:
        assert sizes.tolist() == [data["class"].count(given) for given in NAMES]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_skips_the_same_bad_rows(tmp_path, name):
    """An unknown class, an empty key, a label that is none, and a number that the logarithm does not take."""
    data = table()
    data["class"][3], data["key"][11], data["label"][17], data["label"][29] = "ramem", "", 7, 1
    data["feature"] = np.maximum(data["feature"], -0.5)
    data["feature"][29, 4] = -1
    options = {"on_bad_row": "skip", "rejected_path": str(tmp_path / "rejected.tsv"), "minimum": -1}
    *_, bad = read(FORMATS[name](tmp_path, data), **options)
    lines, reasons = zip(*bad)
    header = "csv" in name or "np" in name
    assert [line - header for line in lines] == [4, 12, 18, 30]
    assert 'class "ramem" is not in the class list (5 classes); the closest is "ramen"' in reasons[0]
    assert "an empty key" in reasons[1]
    assert 'verification label "7", expected 1' in reasons[2]
    assert "value 5 of the feature is -1" in reasons[3]
    rejected = [line.split("\t") for line in (tmp_path / "rejected.tsv").read_text().splitlines()]
    assert [row[1] for row in rejected] == list(reasons)
    assert rejected[0][2] == data["key"][3] or "csv" in name


def test_the_command_writes_the_same_arrays(tmp_path):
    """all.npy and val.npy from text, from several parquet files and from an archive, byte for byte."""
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    found = {}
    for name in ("tsv", "csv", "parquet files", "npz of several"):
        for split in ("all", "val"):
            folder = tmp_path / f"{name}-{split}"
            folder.mkdir()
            data = table()
            if split == "all":
                del data["label"]
            given = FORMATS[name](folder, data)
            more = [f"--{flag}={given[flag]}" for flag in ("features", "table") if flag in given]
            arguments = [f"--split={split}", f"--class_list={tmp_path}/classes.txt", f"--output_dir={folder}/out", *more]
            run_script("util/convert_data.py", *arguments, *([f"--data_path={given['path']}"] if given["path"] else []))
            files = [folder / "out" / f"{split}{end}" for end in (".npy", "_keys.txt")]
            assert found.setdefault(split, [file.read_bytes() for file in files]) == [file.read_bytes() for file in files]


def test_references_from_columns(tmp_path):
    rng = np.random.default_rng(0)
    data = {"class": NAMES * 3, "reference": np.repeat([0, 1, 2], 5), "feature": list(np.float32(rng.random((15, 4))))}
    parquet.write_table(pa.table(data), tmp_path / "ref.parquet")
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    convert("ref", tmp_path, tmp_path / "ref.parquet", tmp_path / "classes.txt", "--num_ref=3", "--label_column=reference")
    found = np.load(tmp_path / "ref.npy")
    np.testing.assert_array_equal(found, np.array(data["feature"]).reshape(3, 5, 4).transpose(1, 0, 2))


@pytest.mark.parametrize("labels", [[True, False, True], [1.0, 0.0, -1.0], ["1", "0", "-1"]], ids=["bool", "float", "text"])
def test_labels_of_other_types(tmp_path, labels):
    columns = {"id": [5, 6, 7], "class": NAMES[:3], "label": labels, "feature": [[0.5, 1.0]] * 3}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    keys, _, found, *_ = read({"path": str(tmp_path / "x.parquet"), "columns": csv_rows.COLUMNS | {"key": "id"}})
    assert keys == [str(i + 5) for i, label in enumerate(labels) if float(label) != -1]
    assert found == [int(float(label)) for label in labels if float(label) != -1]


def test_null_and_nan_are_bad_rows(tmp_path):
    """Each null of a column, a null inside a list, nan, a number beyond float32, and a list that is shorter."""
    good = {"key": "k", "class": "ramen", "label": 1, "feature": [0.5] * 5}
    wrong = [{**good, name: None} for name in good] + [{**good, "feature": [0.5, x, 1, 1, 1]} for x in (None, np.nan, 1e39, -np.inf)]
    listed = [good] * 9 + wrong + [{**good, "feature": [0.5] * 4}, {**good, "feature": []}]
    parquet.write_table(pa.Table.from_pylist(listed), tmp_path / "x.parquet")
    options = {"on_bad_row": "skip", "rejected_path": str(tmp_path / "rejected.tsv")}
    with pytest.raises(UserError, match=r"x\.parquet:10: an empty key; .* \(10 of 19 rows cannot be used, which is too many to skip\)"):
        read({"path": str(tmp_path / "x.parquet")}, **options)
    parquet.write_table(pa.Table.from_pylist([*listed, good]), tmp_path / "x.parquet")
    keys, *_, bad = read({"path": str(tmp_path / "x.parquet")}, **options)
    assert len(keys) == 10
    expected = [
        "an empty key", 'class "" is not', 'verification label "", expected', "a feature of 0 values, expected 5",
        *(f"value 2 of the feature is {x}, expected a number that is finite" for x in ("nan", "nan", "1e+39", "-inf")),
        "a feature of 4 values, expected 5", "a feature of 0 values, expected 5",
    ]
    assert len(bad) == len(expected)
    assert [reason for (_, reason), part in zip(bad, expected) if part not in reason] == []
    with pytest.raises(UserError, match=r"x\.parquet:10: an empty key; every row needs one \(9 more bad rows among the next 10"):
        read({"path": str(tmp_path / "x.parquet")})


def test_half_precision_that_overflowed(tmp_path):
    data = table(5)
    data["feature"][2, 3] = 1e5
    with np.errstate(over="ignore"):
        given = write_parquet(tmp_path / "x.parquet", data, dtype="float16")
    with pytest.raises(UserError, match=r"x\.parquet:3: value 4 of the feature is inf, expected a number that is finite as a float32"):
        read(given)


def test_a_value_cannot_become_two_columns(tmp_path):
    data = table()
    data["key"][5], data["class"][7], data["key"][9] = "a\tb", "ramen\n", "a\rb"
    for name in ("parquet", "csv"):
        if name == "csv":
            data["class"][7] = "ramen\t"
        options = {"on_bad_row": "skip", "rejected_path": str(tmp_path / "rejected.tsv")}
        *_, bad = read(FORMATS[name](tmp_path, data), **options)
        assert [line - (name == "csv") for line, _ in bad] == [6, 8, 10]
        assert all("inside a value" in reason or "quotes that cannot be read" in reason for _, reason in bad)


def test_a_class_as_datasets_keeps_it(tmp_path):
    """The column holds numbers, and the schema has their names."""
    columns = {"key": ["a", "b", "c"], "class": [2, 0, -1], "feature": [[0.5]] * 3}
    features = {"class": {"names": [NAMES[1], "none", NAMES[0]], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "x.parquet")
    options = {"on_bad_row": "skip", "rejected_path": str(tmp_path / "rejected.tsv")}
    _, ids, *_, bad = read({"path": str(tmp_path / "x.parquet")}, tsv.UNVERIFIED, **options)
    assert ids == [0, 1]
    assert 'class "-1" is not in the class list' in bad[0][1]


def test_the_first_rows_set_the_width(tmp_path):
    """Most of the first 50, as in text; img_dim wins."""
    wide, narrow = [0.5] * 5, [0.5] * 4
    for listed, width in (([narrow] * 24 + [wide] * 26 + [narrow] * 24, 5), ([narrow] * 25 + [wide] * 25, 4)):
        columns = {"key": [str(i) for i in range(len(listed))], "class": ["ramen"] * len(listed), "feature": listed}
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=len(listed))
        line = listed.index(wide if width == 4 else narrow) + 1
        with pytest.raises(UserError, match=rf"x\.parquet:{line}: a feature of {9 - width} values, expected {width} \(as in"):
            read({"path": str(tmp_path / "x.parquet")}, tsv.UNVERIFIED)


def test_many_rows_in_small_memory_are_in_order(tmp_path):
    """More rows than a batch has, in one row group, of several files."""
    rng = np.random.default_rng(0)
    expected = np.float32(rng.random((20011, 33)))
    for i, part in enumerate(np.split(expected, [9001])):
        data = {"key": [f"{i}-{j}" for j in range(len(part))], "class": ["ramen"] * len(part), "feature": part}
        write_parquet(tmp_path / f"{i}.parquet", data)
    keys, _, _, lines, features, _ = read({"path": f"{tmp_path}/*.parquet"}, tsv.UNVERIFIED)
    assert features.tobytes() == expected.tobytes()
    assert keys == [f"0-{j}" for j in range(9001)] + [f"1-{j}" for j in range(11010)]
    assert lines == list(range(1, 20012))


def test_scores_of_parquet_and_arrays_equal_those_of_text(digits, tmp_path):
    """Through inference.py; a bad row keeps its line."""
    lines = [line.split("\t") for line in (digits / "data" / "all.tsv").read_text().splitlines()]
    keys, names, texts = zip(*lines)
    features = np.float32([text.split(",") for text in texts])
    classes = [*names[:9], "none", *names[10:]]
    columns = {"image": keys, "label": classes, "embedding": list(features)}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    np.savez(tmp_path / "x.npz", features)
    write_csv(tmp_path / "x.csv", {"key": keys, "class": classes})
    expected = np.loadtxt(score_digits(digits, tmp_path / "text.txt"))
    flags = {
        "parquet": [
            f"--image_feature_list={tmp_path}/x.parquet", "--key_column=image", "--class_column=label", "--feature_column=embedding",
        ],
        "npz": [f"--features={tmp_path}/x.npz", f"--table={tmp_path}/x.csv"],
    }
    for name, given in flags.items():
        path = tmp_path / f"{name}.txt"
        run_script("inference.py", f"--checkpoint_dir={digits}/run", f"--output_file={path}", "--on_bad_row=skip", *given)
        found = np.loadtxt(path)
        assert np.flatnonzero(np.isnan(found)).tolist() == [9]
        np.testing.assert_allclose(np.delete(found, 9), np.delete(expected, 9), atol=1e-6)


@pytest.mark.parametrize("kind", ["List Float32", "List Float64", "Array Float32"])
def test_a_file_by_polars(tmp_path, kind):
    shape, dtype = kind.split()
    dtype = getattr(polars, dtype)
    data = table()
    columns = {**{name: data[name] for name in KEYS}, "class": polars.Series(data["class"], dtype=polars.Categorical)}
    feature = polars.Series("feature", data["feature"].tolist(), dtype=polars.Array(dtype, 13) if shape == "Array" else polars.List(dtype))
    polars.DataFrame({**columns, "feature": feature}).write_parquet(tmp_path / "x.parquet", row_group_size=17)
    assert_same_as_text(tmp_path, data)


@pytest.mark.parametrize("length", [-1, 13], ids=["list", "fixed"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_by_datasets(tmp_path, dtype, length):
    """Classes are numbers with names in another order than ours; a column of images is passed over; rows were shuffled."""
    data, names = table(), sorted(NAMES)
    columns = {**data, "class": [names.index(name) for name in data["class"]], "image": [{"bytes": b"\x89PNG", "path": None}] * 53}
    order = np.random.default_rng(0).permutation(53)
    features = datasets.Features({
        "image": datasets.Image(), "key": datasets.Value("string"), "class": datasets.ClassLabel(names=names),
        "label": datasets.Value("int8"), "feature": datasets.Sequence(datasets.Value(dtype), length=length),
    })
    datasets.Dataset.from_dict(columns, features=features).select(order).to_parquet(tmp_path / "x.parquet", batch_size=17)
    assert_same_as_text(tmp_path, {name: [column[i] for i in order] for name, column in data.items()})


@pytest.mark.parametrize("dtype", ["float32", "float16", "list"])
def test_a_file_by_pandas(tmp_path, dtype):
    """The keys are the index, and labels with a gap are floats."""
    data = table()
    columns = {"class": pandas.Categorical(data["class"]), "label": np.float64(data["label"])}
    feature = data["feature"].tolist() if dtype == "list" else list(data["feature"].astype(dtype))
    pandas.DataFrame({**columns, "feature": feature}, index=pandas.Index(data["key"], name="key")).to_parquet(tmp_path / "x.parquet")
    assert_same_as_text(tmp_path, data)
