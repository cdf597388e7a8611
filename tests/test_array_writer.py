"""util/lib/array_writer.py where convert_data.py does not lead: a file that changes meanwhile."""
import pytest
from conftest import CLASSES, make_rows, unverified, write_rows

from util.lib import array_writer
from util.lib.errors import UserError
from util.lib.rows import RowReader
from util.lib.tsv import UNVERIFIED, Parser, TextRows

pytestmark = pytest.mark.check


def test_a_file_that_grows_while_it_is_converted(tmp_path):
    """Rows for which there is no index are an error, and nothing is left of the array."""
    path = write_rows(tmp_path / "rows.tsv", unverified(make_rows(20)))
    reader = RowReader(TextRows(str(path), Parser(UNVERIFIED, CLASSES)))
    sizes = reader.source.class_sizes()
    with open(path, "a") as file:
        file.write(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"rows\.tsv: has more rows than a moment ago"):
        array_writer.write(reader, str(tmp_path / "all.npy"), CLASSES, grouped=True, verified=False, source=str(path), class_sizes=sizes)
    assert {file.name for file in tmp_path.iterdir()} == {"rows.tsv"}
