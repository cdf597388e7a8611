"""How every command starts and ends: its flags, TensorFlow, one line for a user's error, a non-zero exit code.

    if __name__ == "__main__":
        command.run(main)
"""
import math
import os
import signal
import sys

from absl import app, flags, logging

from util.lib.errors import UserError, reason, script_name

SIGINT_EXIT, SIGTERM_EXIT = 130, 143  # 128 + the number of the signal, as shells report it


def import_tensorflow():
    """Imports TensorFlow without the lines that it writes to stderr whatever its log level. Call it before `import model`."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # initialises, and complains about, GPU drivers
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return tf


def run(main, pass_on=False):
    """Parses the flags, calls main() and ends the process as the top of this file says.

    Args:
        pass_on: hand arguments that are no flags of the script to main, as a list, instead of an error.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings would bury our one line
    logging.set_verbosity(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_EXIT))
    try:
        app.run(lambda argv: main(argv[1:]) if pass_on else main(), flags_parser=lambda argv: _parse_flags(argv, pass_on))
    except UserError as error:
        sys.exit(f"{script_name()}: error: {error}")
    except KeyboardInterrupt:
        print(f"{script_name()}: interrupted", file=sys.stderr)
        sys.exit(SIGINT_EXIT)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"{script_name()}: error: {error.filename or 'input or output'}: {reason(error)}; mend that and run again")
    except MemoryError as error:
        sys.exit(f"{script_name()}: error: not enough memory ({error}); use a machine with more, or smaller batches")


def _parse_flags(argv, pass_on):
    try:
        argv = flags.FLAGS(argv, known_only=pass_on)
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the flags") from None
    if len(argv) > 1 and not pass_on:
        raise UserError(f'"{argv[1]}" is not a flag; flags are written --name=value, --help lists them')
    return argv


def given(flag_values, name):
    """The value of a flag that the user gave, or None where it has its default."""
    flag = flag_values[name]
    return flag.value if flag.present else None


def own_flags(flag_values):
    """{name: value} of the flags that the running script defines. Raises UserError for a float that is not finite."""
    values = {flag.name: flag.value for flag in flag_values.get_key_flags_for_module(sys.argv[0])}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: expected a finite number")
    return values


def stop_on_signals():
    """Collects SIGINT and SIGTERM in the list that is returned. A second SIGINT ends the process at once."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return received
