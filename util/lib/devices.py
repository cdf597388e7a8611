"""Several devices or machines: the tf.distribute strategy of a training, and which process reports."""
import json
import os
import zlib

from util.lib.errors import UserError


def make_strategy(opt, tf):
    """The tf.distribute strategy that --strategy names, checked against the batch sizes."""
    if opt.logical_cpus > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * opt.logical_cpus)
    if opt.strategy == "multi_worker":
        check_cluster()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif opt.strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    else:
        strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    for name in ("batch_size_sup", "batch_size_unsup"):
        if opt[name].value % replicas:
            raise UserError(f"--{name}={opt[name].value} does not divide by the {replicas} replicas; give a multiple of {replicas}")
    return strategy


def check_cluster():
    """TF_CONFIG must name the workers and which of them this is."""
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


def check_same_run(strategy, run, tf):
    """All workers must have the same flags and data. run: as run.json keeps it."""
    mine = zlib.crc32(json.dumps([run["shape"], run["settings"]], sort_keys=True).encode()) >> 1  # fits an int32
    found = strategy.gather(strategy.run(lambda: tf.constant([mine])), axis=0).numpy()
    if (found != mine).any():
        raise UserError(
            "the workers were started with different flags or different data (their sums are "
            f"{', '.join(map(str, found))}); start the same command, on the same data, on every worker"
        )


def is_chief(opt):
    """Whether this process writes the run folder and the summaries."""
    return opt.strategy != "multi_worker" or json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
