"""util/lib/decisions.py: what stands, what people say together, and a file that is cut off, altered or on a full disk."""
import pytest
from conftest import run_script

from util.lib import decisions
from util.lib.errors import UserError

TIME = "2026-01-02T03:04:05Z"


def tally_of(*lines):
    """A Tally of lines `key label author [right class]` about rows of class ramen."""
    tally = decisions.Tally()
    for line in lines:
        key, label, author, right = [*line.split(), ""][:4]
        tally.add(decisions.Decision(key, "ramen", label, author, TIME, right))
    return tally


def resolve(*lines):
    """{key: (label, right class, tied)} of such lines."""
    return {key: (r.label, r.right_class, r.tied) for (key, _), r in tally_of(*lines).resolve().items()}


def test_the_last_decision_of_each_author_counts_and_the_majority_decides():
    assert resolve("a 1 ann", "a 0 ann") == {"a": (0, "", False)}
    assert resolve("a 1 ann", "a 0 bob", "a 0 eve") == {"a": (0, "", False)}
    assert resolve("a 1 ann", "a 0 bob") == {"a": (-1, "", True)}
    assert resolve("a 1 ann", "a 0 bob", "b -1 ann") == {"a": (-1, "", True), "b": (-1, "", False)}
    assert resolve("a 0 ann sushi", "a 0 bob tacos", "a 0 eve tacos") == {"a": (0, "tacos", False)}
    assert resolve("a 0 ann sushi", "a 0 bob tacos") == {"a": (0, "", False)}


def test_undo_takes_the_last_decision_of_its_author_back():
    assert resolve("a 1 ann", "a undo ann") == {}
    assert resolve("a 1 ann", "a 0 ann", "a undo ann") == {"a": (1, "", False)}
    assert resolve("a 1 ann", "a 0 bob", "a undo ann") == {"a": (0, "", False)}
    with pytest.raises(ValueError, match="undo, but no decision"):
        tally_of("a 1 ann", "a undo bob")


def test_undo_of_many_takes_back_in_any_order():
    keys = [f"k{i}" for i in range(5)]
    tally = tally_of(*(f"{key} 1 ann" for key in keys), "k1 0 ann", *(f"{key} undo ann" for key in ("k3", "k0", "k1")))
    assert [row[0] for row, _ in tally.in_order["ann"]] == ["k1", "k2", "k4"]
    assert tally.resolve()["k1", "ramen"].label == 1


def test_the_last_decision_is_that_of_the_last_time_whatever_the_order_of_files():
    def tally_at(day, label):
        tally = decisions.Tally()
        tally.add(decisions.Decision("a", "ramen", label, "ann", f"2026-01-{day}T00:00:00Z", ""))
        return tally

    for order in (1, -1):
        both = decisions.Tally()
        for tally in [tally_at("01", "1"), tally_at("02", "0")][::order]:
            both.merge(tally)
        assert both.resolve()["a", "ramen"].label == 0


def write_log(path, *texts):
    """Writes decisions file through a Log, one append per list of keys."""
    log = decisions.Log(str(path))
    for keys in texts:
        log.append([decisions.make(key, "ramen", "1", "ann") for key in keys])
    log.close()


def test_a_cut_off_line_is_left_out_and_the_next_append_repairs_it(tmp_path, capfd):
    path = tmp_path / "v.tsv"
    write_log(path, ["a", "b"])
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        assert list(decisions.load(str(path)).standing) == [("a", "ramen")]
        assert "its last line has no end and is left out" in capfd.readouterr().err
    write_log(path, ["c"])
    assert [line.split("\t")[0] for line in path.read_text().splitlines()] == ["a", "c"]
    assert not capfd.readouterr().err.count("\n") > 1


def test_a_file_that_changes_meanwhile_is_not_written(tmp_path):
    path = tmp_path / "v.tsv"
    for change in (lambda: path.write_bytes(path.read_bytes() + b"x\n"), path.unlink):
        log = decisions.Log(str(path))
        log.append([decisions.make("a", "ramen", "1", "ann")])
        change()
        before = path.exists() and path.read_bytes()
        with pytest.raises(UserError, match="was changed by something else"):
            log.append([decisions.make("b", "ramen", "1", "ann")])
        assert (path.exists() and path.read_bytes()) == before
        log.close()
        path.unlink(missing_ok=True)


def test_without_room_nothing_is_added(tmp_path):
    rows = "".join(f"image_{i}.png,ramen,1,ann,{TIME},\n" for i in range(500))
    (tmp_path / "x.csv").write_text("key,class,label,author,time,right class\n" + rows)
    write_log(tmp_path / "v.tsv", ["a"])
    before = (tmp_path / "v.tsv").read_bytes()
    arguments = [f"--output={tmp_path}/v.tsv", f"--import={tmp_path}/x.csv"]
    done = run_script("util/verify_images.py", *arguments, file_limit=9000, check=False)
    assert done.returncode == 1
    assert "v.tsv: cannot write" in done.stderr
    assert (tmp_path / "v.tsv").read_bytes() == before
    run_script("util/verify_images.py", *arguments)
    assert len((tmp_path / "v.tsv").read_text().splitlines()) == 501
