"""Runs the suite's commands for the tests, each in a process forked from one that has imported TensorFlow already.

That spares every command the seconds of that import. It runs the script as `python SCRIPT ARGUMENTS` does: as __main__,
with its own flags, import path, signals, working directory, environment and output files. `fresh=True` starts a new
interpreter instead, as does any platform without fork.
"""
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import connection, forkserver

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEASURED = [f"{ROOT}/*.py", f"{ROOT}/util/**/*.py"]  # the files whose lines a coverage_file holds
OURS = {"", str(ROOT), str(ROOT / "tests")}  # what the tests add to the import path, and a command does without

_lock = threading.Lock()  # multiprocessing collects finished children without one


def _context():
    """The multiprocessing context whose server has imported preload.py; the server ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    before = os.environ.get("PYTHONPATH")
    # The server finds preload.py by it: Python 3.11 does not pass sys.path on to what it preloads.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({"PYTHONPATH": before} if before else {})
    return context


def _main(script, arguments, cwd, environment, folder, coverage_file, file_limit):
    """What the forked process does: turns itself into the command."""
    for name, descriptor in (("output", 1), ("errors", 2)):
        opened = os.open(os.path.join(folder, name), os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.path[:] = [os.path.dirname(script), *(path for path in sys.path if path not in OURS)]
    measured = None
    if coverage_file:
        import coverage

        measured = coverage.Coverage(data_file=coverage_file, include=MEASURED, config_file=False)
        measured.start()
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        if measured:
            measured.stop()
            measured.save()


class Command:
    """A command that runs, in a forked process.

    Args:
        script: path below the repository. arguments: of its command line. cwd: its working directory.
        env: its environment, or None: this process's. coverage_file: measure which lines run, and write that here; or None.
        file_limit: bytes that it may write to one file; or None.
    """

    def __init__(self, script, *arguments, cwd=ROOT, env=None, coverage_file=None, file_limit=None):
        self.args = [str(ROOT / script), *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        for name in ("output", "errors"):
            pathlib.Path(self._folder.name, name).touch()
        environment = dict(os.environ if env is None else env)
        coverage_file = coverage_file and str(coverage_file)
        of_main = self.args[0], self.args[1:], str(cwd), environment, self._folder.name, coverage_file, file_limit
        with _lock:
            self._process = _context().Process(target=_main, args=of_main, daemon=True)  # it does not outlive the tests
            self._process.start()

    def is_running(self):
        """Whether it has not ended yet."""
        return not connection.wait([self._process.sentinel], timeout=0)

    def output(self):
        """What it has written to stdout and to stderr, two texts."""
        files = [pathlib.Path(self._folder.name, name) for name in ("output", "errors")]
        return [file.read_text(encoding="utf-8", errors="replace") for file in files]

    def send_signal(self, number):
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def wait(self, timeout=None):
        """Waits until it ends. Returns subprocess.CompletedProcess, output as text; after a signal its code is negative."""
        if not connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        with _lock:
            self._process.join()
        done = subprocess.CompletedProcess(self.args, self._process.exitcode, *self.output())
        self._folder.cleanup()
        return done


def run_command(script, *arguments, fresh=False, coverage_file=None, **options):
    """Runs a command to its end. fresh: start a new interpreter. The others: of Command. Returns what Command.wait does."""
    if not fresh and hasattr(os, "fork"):
        return Command(script, *arguments, coverage_file=coverage_file, **options).wait()
    measured = ["-m", "coverage", "run", f"--data-file={coverage_file}", f"--include={','.join(MEASURED)}"]
    command = [sys.executable, *(measured if coverage_file else []), str(ROOT / script), *map(str, arguments)]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace", **options}
    return subprocess.run(command, **options)
