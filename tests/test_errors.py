"""util/lib/errors.py: words of messages."""
import pytest

from util.lib import errors

pytestmark = pytest.mark.check


def test_nouns_agree_with_their_number():
    counts = (0, "row"), (1, "row"), (2, "row"), (1, "class"), (3, "class"), (2, "batch"), (2, "index")
    words = [errors.counted(number, noun) for number, noun in counts]
    assert words == ["0 rows", "1 row", "2 rows", "1 class", "3 classes", "2 batches", "2 indexes"]


def test_the_reason_of_an_error_is_short():
    assert errors.reason(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert errors.reason(OSError("no words of the system")) == "no words of the system"


def test_a_warning_is_one_line_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["some/where/train.py", "--x"])
    errors.warn("3 rows left out")
    assert capsys.readouterr() == ("", "train.py: warning: 3 rows left out\n")
