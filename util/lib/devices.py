"""Several devices or machines: the tf.distribute strategy of a training, and which process reports (docs/devices.md).

A module of its own because train.py need not know how a cluster is described.
"""
import contextlib
import json
import os
import sys
import zlib

import tensorflow as tf

from util.lib.errors import UserError


def make_strategy(name, *, logical_cpus, deterministic, batch_sizes):
    """Makes the tf.distribute strategy of a training, and sets TensorFlow up for it.

    Args:
        name: default, mirrored or multi_worker. logical_cpus: int, devices to split the CPU into.
        deterministic: make runs repeatable bit for bit. batch_sizes: {flag: int}, which the number of replicas must divide.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if logical_cpus > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus)
    if name == "multi_worker":
        check_cluster()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    else:
        strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    for flag, size in batch_sizes.items():
        if size % replicas:
            raise UserError(f"--{flag}={size} does not divide by the {replicas} replicas; give a multiple of {replicas}")
    return strategy


def check_cluster():
    """Raises UserError unless TF_CONFIG names the workers and which of them this process is."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG", ""))
        workers, task = config["cluster"]["worker"], config["task"]
        usable = task["type"] == "worker" and 0 <= task["index"] < len(workers)
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise UserError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}} in the environment '
            "for --strategy=multi_worker; set it, the same list and another index on every machine"
        )


def of_all_workers(strategy, number):
    """The numbers of all workers, int32 [replicas], once each of them has come here. number: int, of this worker."""
    return strategy.gather(strategy.run(lambda: tf.constant([number])), axis=0).numpy()


def wait_for_all(strategy):
    """Waits until all workers have come here."""
    of_all_workers(strategy, 0)


def check_same(strategy, value, why):
    """Raises UserError unless all workers come here with the same value, for JSON. why: function of all values' sums, as text."""
    mine = zlib.crc32(json.dumps(value, sort_keys=True).encode()) >> 1  # fits an int32
    found = of_all_workers(strategy, mine)
    if (found != mine).any():
        raise UserError(why(", ".join(map(str, found))))


def leave_together(strategy, chief):
    """Waits for the others at the end: TensorFlow ends a worker that another one leaves. The chief has written all by then."""
    try:
        wait_for_all(strategy)
    except tf.errors.OpError:
        if not chief:
            raise


def join_cluster(name, strategy, identity):
    """Makes sure that all workers train the same, and silences all but one.

    Args:
        name, strategy: of make_strategy. identity: the flags and the data that must be the same, for JSON.

    Returns:
        Whether this process is the chief, which writes the outputs and the summaries.
    """
    if name != "multi_worker":
        return True
    chief = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
    if not chief:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    check_same(strategy, identity, lambda sums: (
        f"the workers were started with different flags or different data (their sums are {sums}); start the same command, on the same "
        "data, on every worker"
    ))
    return chief


@contextlib.contextmanager
def lost_worker_is_a_user_error(name):
    """Turns the errors of a worker whose cluster broke into one line. name: of the strategy."""
    try:
        yield
    except tf.errors.OpError as error:
        if name != "multi_worker":
            raise
        raise UserError(
            f"another worker stopped or cannot be reached ({type(error).__name__}); start the same command again on every worker: "
            "they resume at the last checkpoint"
        ) from None
