"""How every command starts and ends: its environment, its flags, and one line and a non-zero exit code for what goes wrong.

    if __name__ == "__main__":
        command.run(main)
"""
import math
import os
import re
import signal
import sys
import tempfile
import traceback

from absl import app, flags, logging

from util.lib import locks, paths
from util.lib.errors import UserError, printable, reason, script_name

SIGINT_EXIT, SIGTERM_EXIT = 130, 143  # 128 + the number of the signal, as shells report it
UNEXPECTED_EXIT = 70  # EX_SOFTWARE of sysexits.h: a fault of the suite
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")  # fits an int64
PATH_FLAGS = ("_dir", "_file", "_list", "_path", "_npy", "input", "output")  # how the names of flags for paths end
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def import_tensorflow():
    """Imports TensorFlow without the lines that it writes to stderr whatever its log level. Call it before `import model`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's environment or keras.json says
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras
        import tensorflow as tf

        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
        tf.config.list_physical_devices()  # initialises, and complains about, GPU drivers
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return tf


def run(main, pass_on=False):
    """Parses the flags, calls main() and ends the process as the top of this file says.

    Args:
        main: function without arguments. pass_on: hand arguments that are no flags of the script to main, as a list.
    """
    prepare_environment()
    try:
        try:
            app.run(
                lambda argv: main(argv[1:]) if pass_on else main(), flags_parser=lambda argv: _parse_flags(argv, pass_on)
            )
        finally:
            locks.release_all()
            sys.stdout.flush()
    except UserError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        print(f"{script_name()}: interrupted", file=sys.stderr)
        sys.exit(SIGINT_EXIT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end
        _stop("nobody reads the output any more (broken pipe)")
    except OSError as error:
        _stop(f"{error.filename or 'input or output'}: {reason(error)}; fix that and run again")
    except MemoryError as error:
        _stop(f"not enough memory ({error}); use a machine with more, or smaller batches")
    except Exception as error:
        _stop(f"unexpected {type(error).__name__}: {error}; the full text is in {_keep_traceback()}", UNEXPECTED_EXIT)


def prepare_environment():
    """Makes the process independent of how it was started: open standard streams, any terminal encoding, quiet libraries."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one would go to the next file that is opened
        pass
    os.close(descriptor)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # of an ASCII terminal, or a path that is not UTF-8
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings would bury our one line
    logging.set_verbosity(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_EXIT))


def _stop(text, code=1):
    """Ends the process with one line on stderr."""
    print(f"{script_name()}: error: {printable(text)}", file=sys.stderr)
    sys.exit(code)


def _keep_traceback():
    """Writes the current exception's traceback to a file. Returns its path."""
    with tempfile.NamedTemporaryFile("w", prefix="cleannet-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(f"{sys.argv}\n{traceback.format_exc()}")
    return file.name


def _parse_flags(argv, pass_on):
    try:
        for argument, following in zip(argv[1:], [*argv[2:], ""]):
            if re.match("--?flagfile", argument):
                paths.open_input(argument.partition("=")[2] or following, "a file of flags").close()
        argv = flags.FLAGS.read_flags_from_files(argv)
        _check_numbers(argv)
        if any("\0" in argument for argument in argv):
            raise UserError("a NUL byte in a flag; expected text")
        argv = flags.FLAGS(argv, known_only=pass_on)
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the flags") from None
    except UnicodeDecodeError:
        raise UserError("--flagfile: bytes that are not UTF-8; save the file as UTF-8") from None
    except SystemExit:  # of --help, after which absl exits with 1
        sys.exit(0)
    for name in flags.FLAGS:
        if name.endswith(PATH_FLAGS) and flags.FLAGS[name].present and flags.FLAGS[name].value == "":
            raise UserError(f"--{name}: is empty, expected a path; leave the flag out, or name one")
    if len(argv) > 1 and not pass_on:
        raise UserError(f'"{argv[1]}" is not a flag; flags are written --name=value, --help lists them')
    return argv


def _check_numbers(argv):
    """Raises UserError for a number flag whose text is not plain, finite and within an int64, which absl would let pass."""
    for argument, following in zip(argv[1:], [*argv[2:], ""]):
        match = re.fullmatch(r"--?(\w+)(?:=(.*))?", argument, flags=re.DOTALL)
        if not match or match[1] not in flags.FLAGS:
            continue
        text, kind = following if match[2] is None else match[2], flags.FLAGS[match[1]].flag_type()
        if kind == "int" and not WHOLE_NUMBER.fullmatch(text):
            raise UserError(f"--{match[1]}={text[:40]}: expected a whole number of at most 18 digits; --help lists the flags")
        if kind == "float" and parse_number(text) is None:
            raise UserError(f"--{match[1]}={text[:40]}: expected a finite number; --help lists the flags")


def parse_number(text):
    """The float that a text is, in plain ASCII decimals; None where it is none, or not finite."""
    return float(text) if NUMBER.fullmatch(text) and math.isfinite(float(text)) else None


def parse_threshold(text):
    """The value of --val_sim_thres: a float, or None for `auto`."""
    value = parse_number(text)
    if value is None and text != "auto":
        raise UserError(f'--val_sim_thres={text}: expected a number, e.g. 0.1, or "auto"')
    return value


def parse_fdr(text):
    """The share of `fdr:0.1`, a value of --val_sim_thres, as a float; None for another value."""
    if not text.startswith("fdr:"):
        return None
    rate = parse_number(text[4:])
    if rate is None or not 0 < rate < 1:
        raise UserError(f"--val_sim_thres={text}: expected fdr: and a share between 0 and 1, e.g. fdr:0.1")
    return rate


def given(flag_values, name):
    """The value of a flag that the user gave, or None where it has its default."""
    flag = flag_values[name]
    return flag.value if flag.present else None


def check_report_flags(report_dir, image_dir):
    """Raises UserError for images of a report that is not asked for. report_dir, image_dir: flags."""
    if image_dir and not report_dir:
        raise UserError("--image_dir is for the images of a report; give --report_dir with it, or leave it out")


def own_flags(flag_values):
    """{name: value} of the flags that the running script defines."""
    return {flag.name: flag.value for flag in flag_values.get_key_flags_for_module(sys.argv[0])}


def stop_on_signals():
    """Collects SIGINT and SIGTERM in the list that is returned. A second SIGINT ends the process at once."""
    received = []

    def note(number, _):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return received
