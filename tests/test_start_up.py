"""What a run says of its devices, with GPUs that are made up, and the check of the replicas' sum."""

from __future__ import annotations

import re
import subprocess
import types

import pytest
import tensorflow as tf

from trainer import start_up


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs, of which a strategy uses the first two."""
    devices = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(3)]
    names = ["NVIDIA A100", "NVIDIA H100", "NVIDIA T4"]
    details = {
        device.name: {"device_name": name, "compute_capability": capability}
        for device, name, capability in zip(devices, names, [(8, 0), (9, 0), (7, 5)])
    }
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details[device.name])
    monkeypatch.setattr(
        tf.sysconfig, "get_build_info", lambda: {"cuda_compute_capabilities": ["sm_50", "sm_75", "compute_80"]}
    )
    memory = {"0": "40960 MiB, 3 MiB", "1": "81920 MiB, 5 MiB", "2": "15360 MiB, 7 MiB"}

    def run_nvidia_smi(command, **_):
        return subprocess.CompletedProcess(command, 0, memory[command[-1].removeprefix("--id=")] + "\n", "")

    monkeypatch.setattr(start_up.subprocess, "run", run_nvidia_smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return types.SimpleNamespace(extended=types.SimpleNamespace(worker_devices=["/gpu:0", "/gpu:1"]))


def test_gpus_are_listed_and_the_unused_are_named(gpus, caplog):
    caplog.set_level("INFO", "retinanet")
    start_up.log_devices(gpus)
    assert "GPU 0: NVIDIA A100, compute capability 8.0, 40960 MiB of memory, 3 MiB in use" in caplog.messages
    assert "GPU 2: NVIDIA T4, compute capability 7.5, not used: see --num_gpus and --distribution" in caplog.messages
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "no kernels compiled for compute capability 9.0" in warning
    assert "CUDA_CACHE_PATH" in warning


def test_the_memory_is_that_of_the_gpu_that_cuda_shows_under_this_number(gpus, monkeypatch, caplog):
    caplog.set_level("INFO", "retinanet")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0,2")
    start_up.log_devices(gpus)
    assert "GPU 0: NVIDIA A100, compute capability 8.0, 81920 MiB of memory, 5 MiB in use" in caplog.messages


@pytest.mark.parametrize(
    ("capability", "precision", "advice"),
    [
        ((6, 1), "mixed_float16", "gains nothing on GPUs of compute capability 6.1, .*: use float32"),
        ((7, 5), "mixed_bfloat16", "gains nothing on GPUs of compute capability 7.5, .*: use mixed_float16"),
        ((7, 0), "mixed_float16", None),
        ((8, 0), "mixed_bfloat16", None),
        ((5, 0), "float32", None),
        (None, "mixed_bfloat16", "slower than float32 on a CPU"),
        (None, "float32", None),
    ],
)
def test_a_precision_that_the_hardware_is_slow_in(gpus, monkeypatch, caplog, capability, precision, advice):
    if capability is None:
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    start_up.warn_of_slow_precision(gpus, precision)
    assert len(caplog.messages) == (advice is not None)
    assert advice is None or re.search(advice, caplog.text)


@pytest.mark.parametrize("capability", [(10, 0), (12, 0)])
def test_blackwell_is_named(gpus, monkeypatch, caplog, capability):
    details = {"device_name": "NVIDIA B200", "compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    start_up.log_devices(gpus)
    assert [message for message in caplog.messages if "neither TensorFlow 2.15 nor 2.21 supports" in message]
    assert "CUDA_CACHE_PATH" not in caplog.text


@pytest.mark.parametrize(
    ("built_for", "starts_at_once"),
    [
        (["sm_50", "sm_60", "sm_70", "sm_75", "compute_80"], {"5", "6", "7", "8"}),  # TensorFlow 2.15
        (["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"], {"6", "7", "8", "9"}),  # TensorFlow 2.21
    ],
)
def test_generations_with_machine_code(monkeypatch, built_for, starts_at_once):
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"cuda_compute_capabilities": built_for})
    majors = (5, 6, 7, 8, 9, 10, 12)
    assert {str(major) for major in majors if start_up._has_kernels_for((major, 0))} == starts_at_once


@pytest.mark.parametrize(
    ("environment", "cuda", "cause"),
    [
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True, "CUDA_VISIBLE_DEVICES=-1 hides them"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False, "built without CUDA"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True, "tensorflow[and-cuda]"),
    ],
)
def test_gpus_that_tensorflow_does_not_see(monkeypatch, caplog, environment, cuda, cause):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: cuda)
    monkeypatch.setattr(start_up, "num_gpus_of_machine", lambda: 8)
    start_up.log_devices(tf.distribute.OneDeviceStrategy("/cpu:0"))
    (message,) = caplog.messages
    assert message.startswith("training on the CPU, although this machine has GPUs")
    assert cause in message


def test_a_machine_without_gpus_is_silent(monkeypatch, caplog):
    monkeypatch.setattr(start_up, "num_gpus_of_machine", lambda: 0)
    start_up.log_devices(tf.distribute.OneDeviceStrategy("/cpu:0"))
    assert not caplog.messages


def test_the_driver_s_gpus_are_counted(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: a)'\necho 'GPU 1: NVIDIA A100 (UUID: b)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert start_up.num_gpus_of_machine() == 2
    monkeypatch.setenv("PATH", "")
    assert start_up.num_gpus_of_machine() == 0


def test_right_sums_pass(two_replicas, caplog):
    caplog.set_level("INFO", "retinanet")
    start_up.check_all_reduce(two_replicas)
    assert "the replicas' sums are right: 2 of them" in caplog.messages


def test_a_wrong_sum_ends_the_run(two_replicas, monkeypatch):
    monkeypatch.setattr(
        tf.distribute.ReplicaContext,
        "all_reduce",
        lambda self, operation, values: values * 2,  # each its own
    )
    with pytest.raises(ValueError, match=r"the sum over 2 replicas is wrong on replica 0: 2.0 to 2.0 instead of 3.0"):
        start_up.check_all_reduce(two_replicas)
