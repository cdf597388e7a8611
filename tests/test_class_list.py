"""util/lib/class_list.py: what is read, and the first difference of two lists (files refused: test_bad_input.py)."""
import pytest

from util.lib import class_list
from util.lib.errors import UserError

pytestmark = pytest.mark.check

NAMES = ["apple pie", "ramen", "sushi"]


@pytest.mark.parametrize(
    "text", ["apple pie\nramen\nsushi", "\ufeffapple pie\r\nramen\r\nsushi\r\n", "apple pie\nramen\nsushi\n\n\n"]
)
def test_line_ends_and_a_byte_order_mark_are_no_part_of_names(tmp_path, text):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert class_list.load(str(tmp_path / "classes.txt")) == NAMES


def test_names_are_taken_letter_for_letter(tmp_path):
    (tmp_path / "classes.txt").write_text(" ramen\nramen \nRamen\n")
    assert class_list.load(str(tmp_path / "classes.txt")) == [" ramen", "ramen ", "Ramen"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["apple pie", "sushi", "ramen"], 'mine:2: class 1 is "sushi", but "ramen" in theirs'),
        (NAMES[:2], 'mine:3: class 2 is nothing, but "sushi"'),
        ([*NAMES, "tacos"], 'mine:4: class 3 is "tacos", but nothing in theirs'),
    ],
)
def test_the_first_difference_is_shown(names, message):
    class_list.check_same(NAMES, "mine", list(NAMES), "theirs")
    with pytest.raises(UserError, match=message):
        class_list.check_same(names, "mine", NAMES, "theirs")


def test_heldout_ids_are_sorted_and_the_others_are_kept(tmp_path):
    (tmp_path / "held.tsv").write_text("sushi\t0\n\nramen\t1\napple pie\t0\n")
    assert class_list.heldout_ids(str(tmp_path / "held.tsv"), NAMES) == [0, 2]
    assert class_list.heldout_ids(None, NAMES) == []


def test_the_closest_name_is_a_hint_where_there_is_one():
    assert class_list.closest("raman", NAMES) == '; the closest is "ramen"'
    assert class_list.closest("xyz", NAMES) == ""


def test_the_list_that_arrays_were_made_with_is_kept_beside_them(tmp_path):
    """Once it is written, another list is refused."""
    class_list.check_beside(str(tmp_path), NAMES, "mine")
    with pytest.raises(UserError, match=r"classes\.txt: not found; convert the data again"):
        class_list.require_beside(str(tmp_path), NAMES, "mine")
    class_list.keep_beside(str(tmp_path), NAMES)
    class_list.keep_beside(str(tmp_path), NAMES)
    with pytest.raises(UserError, match='class 0 is "others"'):
        class_list.keep_beside(str(tmp_path), ["others"])
    class_list.require_beside(str(tmp_path), NAMES, "mine")
    for check in (class_list.check_beside, class_list.require_beside):
        with pytest.raises(UserError, match='mine:1: class 0 is "others"'):
            check(str(tmp_path), ["others"], "mine")
