"""score_beam.py on the multi-process DirectRunner against inference.py. Needs requirements-beam.txt; most is left out without it."""
import gzip
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from conftest import CLASSES, load_command, run_script
from pyarrow import parquet

from util.lib import tsv


def test_shards_of_other_formats_are_read(tmp_path):
    """Without Beam: the blocks of a shard, and where its bad rows are."""
    beam = load_command("util.score_beam")
    feature = [1.0, 2.0, 3.0]
    columns = {"key": list("abcd"), "class": [CLASSES[0], "no such class", CLASSES[1], CLASSES[2]], "feature": [feature] * 4}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    values = list(zip(*columns.values()))
    (tmp_path / "x.tsv").write_text("".join(f"{key}\t{name}\t1,2,3\n" for key, name, _ in values))
    (tmp_path / "x.csv").write_text("key,class,feature\n" + "".join(f'{key},{name},"1,2,3"\n' for key, name, _ in values))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress((tmp_path / "x.csv").read_bytes()))
    for name, place in (("x.tsv", len(f"a\t{CLASSES[0]}\t1,2,3\n")), ("x.csv", 3), ("x.csv.gz", 3), ("x.parquet", 2)):
        path = str(tmp_path / name)
        parser = tsv.Parser(tsv.UNVERIFIED, CLASSES, width=3)
        parts = beam.parts_of(path, (tmp_path / name).stat().st_size)
        ((block, places, _),) = [found for part in parts for found in beam.blocks_of(parser, partial(open, mode="rb"), *part)]
        assert (block.keys, places) == (["a", "c", "d"], [place]), name
        np.testing.assert_array_equal(block.features, [feature] * 3)


@pytest.fixture(scope="module")
def shards(sample_dir, tmp_path_factory):
    """20 shards of the rows, every fifth .gz, and their concatenation."""
    pytest.importorskip("apache_beam")
    folder = tmp_path_factory.mktemp("shards")
    lines = [f"{i}-{line}\n" for i in range(20) for line in (sample_dir / "all.tsv").read_text().splitlines()]
    (folder / "whole.tsv").write_text("".join(lines))
    for i, part in enumerate(np.array_split(np.array(lines, object), 20)):
        text = "".join(part).encode()
        name = f"shard-{i:02d}.tsv" + (".gz" if i % 5 == 0 else "")
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


def score(folder, trained_dir, pattern, output, *more, check=True):
    return run_script(
        "util/score_beam.py", f"--input={folder}/{pattern}", f"--checkpoint_dir={trained_dir}/run", f"--output={output}",
        "--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing", *more, check=check,
    )


def table(paths):
    rows = [line.split("\t") for path in paths for line in path.read_text().splitlines()]
    return {row[0]: row[1:] for row in rows}


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        other = found[key]
        assert [row[i] for i in (0, 4, 5)] == [other[i] for i in (0, 4, 5)]
        np.testing.assert_allclose([float(row[i]) for i in (1, 2, 3, 6)], [float(other[i]) for i in (1, 2, 3, 6)], atol=1e-6)


@pytest.mark.slow
def test_shards_score_like_their_concatenation(shards, trained_dir, tmp_path):
    done = score(shards, trained_dir, "shard-*", tmp_path / "out")
    run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={shards}/whole.tsv",
        f"--output_file={tmp_path}/whole.tsv", "--output_format=tsv",
    )
    assert_same_rows(table(tmp_path.glob("out-*.tsv")), table([tmp_path / "whole.tsv"]))
    assert "cleannet: rows: 4220" in done.stdout
    by_class = [(shards / "whole.tsv").read_text().count(f"\t{name}\t") for name in CLASSES]
    for name, count in zip(CLASSES, by_class):
        assert f"class: {name}: {count}" in done.stdout
    assert not list(tmp_path.glob("out.rejected*"))


@pytest.mark.slow
def test_bad_rows_and_a_corrupt_shard_are_reported(shards, trained_dir, tmp_path):
    lines = (shards / "whole.tsv").read_bytes().splitlines(keepends=True)
    bad = list(range(0, len(lines), 100))
    for i in bad:
        lines[i] = b"k%d\tno such class\t1,2\n" % i
    (tmp_path / "bad-1.tsv").write_bytes(b"".join(lines))
    whole = gzip.compress(b"".join(line for i, line in enumerate(lines) if i not in bad))
    (tmp_path / "bad-2.tsv.gz").write_bytes(whole[: len(whole) // 2])
    done = score(tmp_path, trained_dir, "bad-*", tmp_path / "out")
    rejected = [line.split("\t") for path in tmp_path.glob("out.rejected-*.tsv") for line in path.read_text().splitlines()]
    offsets = np.cumsum([0] + [len(line) for line in lines])
    by_row = [row for row in rejected if row[0].endswith("bad-1.tsv")]
    assert sorted(int(offset) for _, offset, _ in by_row) == [offsets[i] for i in bad]
    assert all('class "no such class" is not in the class list' in reason for *_, reason in by_row)
    assert [reason.split(":")[0] for path, _, reason in rejected if path.endswith(".gz")] == ["cannot be read from here on"]
    found = table(tmp_path.glob("out-*.tsv"))
    assert len(found) == len(lines) - len(bad)
    assert f"cleannet: rejected rows: {len(bad)}" in done.stdout


@pytest.mark.slow
def test_errors_of_the_user(shards, trained_dir, tmp_path):
    done = score(shards, trained_dir, "none-*", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert "no file matches" in done.stderr
    done = score(shards, tmp_path, "shard-*", tmp_path / "out", check=False)
    assert "no such folder, expected the --checkpoint_dir of a training" in done.stderr
