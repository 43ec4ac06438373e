"""What is said and checked before a run starts: which devices it has, and that its replicas add up."""

from __future__ import annotations

import os
import shutil
import subprocess

import tensorflow as tf

from trainer.reporting import log

_BLACKWELL = (10, 12)  # major compute capabilities
_FASTER_FROM = {"mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}  # the compute capability with units for it
_NUM_SUMMED = 2**18  # numbers that the check adds up: a megabyte, so that a collective sends more than one packet


def num_gpus_of_machine() -> int:
    """The GPUs that the driver lists, whether TensorFlow can use them or not."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def why_no_gpu() -> str:
    """The usual causes, with their remedies, of a GPU that TensorFlow does not see."""
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides them"
    return (
        "either TensorFlow's CUDA libraries are missing (GPU=1 make venv, or pip install 'tensorflow[and-cuda]'), the "
        "driver is older than they ask for (nvidia-smi names it), or the container was started without --gpus all"
    )


def log_devices(strategy: tf.distribute.Strategy) -> None:
    """Logs the GPUs that are used and those that are not, and warns of what will be slow."""
    gpus, used = tf.config.list_physical_devices("GPU"), _used_gpus(strategy)
    for index, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", (0, 0))
        name = (
            f"GPU {index}: {details.get('device_name', 'unknown')}, compute capability {'.'.join(map(str, capability))}"
        )
        if index not in used:
            log.info("%s, not used: see --num_gpus and --distribution", name)
            continue
        log.info("%s, %s", name, _memory_of(gpu))
        if capability[0] in _BLACKWELL:
            log.warning(
                "this GPU is of the Blackwell generation, which neither TensorFlow 2.15 nor 2.21 supports: after the "
                "minutes in which the driver compiles kernels the run may fail; see docs/VERSIONS.md"
            )
        elif not _has_kernels_for(capability):
            log.warning(
                "this TensorFlow holds no kernels compiled for compute capability %s: the driver compiles them at the "
                "first start, which takes minutes. Set CUDA_CACHE_PATH to a folder that outlives the machine and "
                "CUDA_CACHE_MAXSIZE=4294967296, and later starts are quick",
                ".".join(map(str, capability)),
            )
    if not gpus and num_gpus_of_machine():
        log.warning("training on the CPU, although this machine has GPUs: %s", why_no_gpu())


def warn_of_slow_precision(strategy: tf.distribute.Strategy, precision: str) -> None:
    """Warns of a device that is slower in this precision than in float32, since it has no units for it."""
    if precision == "float32":
        return
    gpus, used = tf.config.list_physical_devices("GPU"), _used_gpus(strategy)
    if not used:
        log.warning("--precision=%s is several times slower than float32 on a CPU: use it on GPUs only", precision)
        return
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for index, gpu in enumerate(gpus)
        if index in used
    ]
    if min(capabilities) < _FASTER_FROM[precision]:
        other = "mixed_float16" if (7, 0) <= min(capabilities) < (8, 0) else "float32"
        log.warning(
            "--precision=%s gains nothing on GPUs of compute capability %s, which have no units for it: use %s",
            *(precision, ".".join(map(str, min(capabilities))), other),
        )


def _used_gpus(strategy: tf.distribute.Strategy) -> set[int]:
    """The indexes of the GPUs that the replicas run on; none on CPUs."""
    if not tf.config.list_logical_devices("GPU"):
        return set()
    return {tf.DeviceSpec.from_string(device).device_index for device in strategy.extended.worker_devices}


def _memory_of(gpu: tf.config.PhysicalDevice) -> str:
    """How much memory a GPU has, by the driver, which knows nothing of the numbers that CUDA_VISIBLE_DEVICES makes."""
    number = gpu.name.rsplit(":", 1)[-1]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        number = visible.split(",")[int(number)].strip()
    command = ["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader", f"--id={number}"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "memory unknown"
    total, _, in_use = listed.partition(", ")
    return f"{total} of memory, {in_use} in use"


def _has_kernels_for(capability: tuple[int, int]) -> bool:
    """Whether TensorFlow's binary has machine code for GPUs of this major compute capability."""
    built_for = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])
    majors = {name.split("_")[1][:-1] for name in built_for}  # "compute_90": PTX, and for most of the code 9.0 too
    return not built_for or str(capability[0]) in majors


def check_all_reduce(strategy: tf.distribute.Strategy) -> None:
    """Adds numbers up over the replicas and compares the sum with the known one.

    A collective library that does not fit the driver or the network can give wrong sums, and a run would only diverge.

    Raises:
      ValueError: the sum is wrong.
    """
    num_replicas = strategy.num_replicas_in_sync

    @tf.function
    def total() -> tf.Tensor:
        def in_replica() -> tf.Tensor:
            replicas = tf.distribute.get_replica_context()
            share = tf.cast(replicas.replica_id_in_sync_group, tf.float32) + 1.0
            return replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.fill([_NUM_SUMMED], share))

        return strategy.run(in_replica)

    expected = num_replicas * (num_replicas + 1) / 2
    for replica, values in enumerate(strategy.experimental_local_results(total())):
        lowest, highest = float(tf.reduce_min(values)), float(tf.reduce_max(values))
        if lowest != expected or highest != expected:
            raise ValueError(
                f"the sum over {num_replicas} replicas is wrong on replica {replica}: {lowest} to {highest} instead of "
                f"{expected}. Set NCCL_DEBUG=INFO and NCCL_P2P_DISABLE=1, or use --communication=ring or --num_gpus=1."
            )
    log.info("the replicas' sums are right: %d of them", num_replicas)
