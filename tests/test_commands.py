"""commands.py: a forked command is what a new interpreter runs."""
import json
import signal
import time

import pytest
from commands import Command, run_command

REPORT = """
import json, os, signal, sys
handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
json.dump([__name__, sys.argv, os.getcwd(), os.environ.get("WORD"), handlers, sorted(sys.path)], sys.stdout)
print("süß \\udcff".encode(errors="surrogateescape").decode(errors="replace"), file=sys.stderr)
os.write(2, b"\\xff")
sys.exit(sys.argv[1] if sys.argv[1] == "last words" else int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(REPORT, encoding="utf-8")
    return tmp_path / "script.py"


@pytest.mark.parametrize("ending", ["0", "3", "last words"])
def test_a_forked_command_is_what_a_new_interpreter_runs(script, tmp_path, monkeypatch, ending):
    """Name, arguments, folder, environment, signals, import path, output that is not UTF-8, and the code it ends with."""
    monkeypatch.setenv("WORD", "x y")
    forked, fresh = (run_command(script, ending, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert json.loads(forked.stdout) == json.loads(fresh.stdout)
    assert (forked.stderr, forked.returncode) == (fresh.stderr, fresh.returncode)
    assert "süß" in forked.stderr


def test_tensorflow_is_there_before_the_command_asks(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nprint('tensorflow' in sys.modules)")
    assert [run_command(tmp_path / "script.py", fresh=fresh).stdout for fresh in (False, True)] == ["True\n", "False\n"]


def test_a_command_that_a_signal_ends(tmp_path):
    (tmp_path / "waits.py").write_text("import time\nprint('waits')\ntime.sleep(60)\n")
    command = Command(tmp_path / "waits.py")
    while "waits" not in command.output()[0]:
        assert command.is_running()
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    assert command.wait().returncode == -signal.SIGKILL


def test_lines_are_measured(tmp_path):
    """Those of the repository that ran."""
    import coverage

    assert run_command("util/convert_data.py", "--bad_flag", coverage_file=tmp_path / "lines").returncode == 1
    data = coverage.CoverageData(basename=str(tmp_path / "lines"))
    data.read()
    names = {path.rpartition("/")[2] for path in data.measured_files()}
    assert {"convert_data.py", "command.py"} <= names
    assert "commands.py" not in names
