"""One command for whoever has GPUs: how fast training is on them, how it scales, and whether it resumes.

    python benchmarks/gpu_report.py --output_dir=DIR [--records='OUT/train-*.tfrecord'] [--minutes=20]

It writes DIR/report.html, which needs no other file, and DIR/report.json, and prints the figures that have a goal as
JSON on its last line. Each case is a process of its own that runs the trainer's compiled loop, from the most important
case to the least; what no longer fits into --minutes is left out and named. Without --records it reads pictures that it
draws. --rehearse runs everything with a tiny network on logical CPUs: it shows that the command
works, and its figures mean nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import gpu_report_page
from input import shards

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
REPLICAS = (1, 2, 4, 8)
CASE_LIMIT = 480.0  # seconds after which a case is given up; the first one may compile TensorFlow's kernels for the GPU


class Scale(NamedTuple):
    """The sizes of a report: those of a real one, or of a rehearsal."""

    image_sizes: tuple[int, ...]
    middle_size: int  # at which all but precision and size are compared
    precisions: tuple[str, ...]
    images_per_replica: int
    network: tuple[str, ...]  # flags of the trainer
    num_drawn: int
    drawn_size: tuple[int, int]
    resume_steps: int
    seconds_timed: float  # of each case


FULL = Scale(
    image_sizes=(512, 640, 800),
    middle_size=640,
    precisions=("mixed_float16", "mixed_bfloat16", "float32"),
    images_per_replica=16,
    network=("--backbone=resnet50",),
    num_drawn=600,
    drawn_size=(480, 640),
    resume_steps=60,
    seconds_timed=8.0,
)
REHEARSAL = Scale(
    image_sizes=(64, 96),
    middle_size=64,
    precisions=("float32", "mixed_bfloat16"),
    images_per_replica=2,
    network=("--backbone=resnet18", "--neck_filters=8", "--head_convs=1"),
    num_drawn=24,
    drawn_size=(96, 128),
    resume_steps=60,
    seconds_timed=0.5,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures."""

    image_size: int
    precision: str
    num_replicas: int = 1
    norm: str = "local"
    compile_stages: bool = True
    real_images: bool = False


def make_cases(scale: Scale, num_devices: int) -> dict[str, list[Case]]:
    """The cases of each section of the page; a case may be in several. The first section matters most."""
    base = Case(image_size=scale.middle_size, precision=scale.precisions[0])
    counts = [count for count in REPLICAS if count <= num_devices]
    norms = [dataclasses.replace(base, norm=norm) for norm in ("local", "frozen", "group")]
    if num_devices > 1:
        norms += [dataclasses.replace(base, norm=norm, num_replicas=counts[-1]) for norm in ("local", "sync")]
    return {
        "Images read from disk, against noise": [base, dataclasses.replace(base, real_images=True)],
        "Replicas": [dataclasses.replace(base, num_replicas=count) for count in counts],
        "Stages compiled by XLA or not": [base, dataclasses.replace(base, compile_stages=False)],
        "Normalisation": norms,
        "Precision and size": [
            Case(image_size=size, precision=precision) for size in scale.image_sizes for precision in scale.precisions
        ],
    }


def trainer_flags(case: Case, scale: Scale, on_gpu: bool) -> list[str]:
    """The flags of the trainer that mean the case."""
    return [
        *scale.network,
        f"--image_size={case.image_size}",
        f"--batch_size={scale.images_per_replica * case.num_replicas}",
        f"--precision={case.precision}",
        f"--norm={case.norm}",
        f"--compile_stages={case.compile_stages}",
        f"--num_gpus={case.num_replicas}" if on_gpu else f"--logical_cpus={case.num_replicas}",
    ]


def look_at_machine() -> dict[str, Any]:
    """The GPUs and the versions, as TensorFlow sees them. The process keeps the GPUs until it ends."""
    import tensorflow as tf

    gpus = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ())))
        gpus.append(f"{details.get('device_name', gpu.name)}, compute capability {capability}")
    build = tf.sysconfig.get_build_info()
    versions = {"TensorFlow": tf.__version__, "Python": sys.version.split()[0]}
    versions.update(
        {name: build[key] for name, key in (("CUDA", "cuda_version"), ("cuDNN", "cudnn_version")) if key in build}
    )
    return {"devices": gpus, "versions": versions}


def measure(case: Case, arguments: Sequence[str], paths: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs a case in this process, which has not used TensorFlow."""
    started = time.perf_counter()
    import tensorflow as tf

    import flags as trainer_settings
    from benchmarks import synthetic
    from trainer import distribution

    flags.FLAGS(["gpu_report", *arguments], known_only=True)
    config = trainer_settings.config_from_flags(shards.read_labels(paths))
    distribution.set_up_devices(config.train)
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    strategy = distribution.make_strategy(config.train)
    trainer = synthetic.Trainer(config, strategy, paths if case.real_images else ())
    trainer.run(1)
    first_step = time.perf_counter() - started
    trainer.run(5)
    five = synthetic.measure(lambda: trainer.run(5)).wall
    num_steps = max(5, min(500, round(5 * seconds / five)))
    results = []
    wall = synthetic.measure(lambda: results.append(trainer.run(num_steps))).wall
    on_gpu = distribution.device_type(strategy) == "GPU"
    return {
        "images_per_s": num_steps * config.input.batch_size / wall,
        "first_step_s": first_step,
        "data_wait": float(results[0].data_wait) / wall,
        "loss": float(results[0].losses.loss) / num_steps,
        "peak_bytes": tf.config.experimental.get_memory_info("GPU:0")["peak"] if on_gpu else None,
    }


def estimated_case(case: Case) -> Case:
    """The case whose memory --print_model gives for a replica of this one; cases that share it are estimated once."""
    precision = case.precision.replace("bfloat16", "float16")  # they take the same memory
    return dataclasses.replace(case, precision=precision, num_replicas=1, real_images=False)


def estimate(case: Case, arguments: Sequence[str], paths: Sequence[str]) -> dict[str, float]:
    """The peak of memory that --print_model gives for a case of one replica."""
    import flags as trainer_settings
    from trainer import model_cost

    flags.FLAGS(["gpu_report", *arguments], known_only=True)
    config = trainer_settings.config_from_flags(shards.read_labels(paths))
    return {"peak_bytes": model_cost.measure_memory(config, case.precision).peak(config.input.batch_size)}


class Runner:
    """Runs parts of the report as processes, until the time is over."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def call(self, what: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
        """What the job's process prints as its last line, or {"error": reason} or {"skipped": reason}."""
        if self.left < 20:
            return {"skipped": "the time was over"}
        print(f"{self.left / 60:5.1f} minutes left: {what}", flush=True)
        try:
            done = subprocess.run(
                [sys.executable, __file__, f"--job={json.dumps(job)}"],
                capture_output=True,
                text=True,
                env={**os.environ, **environment},
                timeout=min(CASE_LIMIT, self.left),
            )
        except subprocess.TimeoutExpired as error:
            return {"error": f"took more than {error.timeout:.0f} s"}
        if done.returncode:
            out_of_memory = "RESOURCE_EXHAUSTED" in done.stderr or "OOM when allocating" in done.stderr
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"error": "out of memory" if out_of_memory else lines[-1][:300]}
        return json.loads(done.stdout.strip().splitlines()[-1])


def do_job(job: dict[str, Any]) -> dict[str, Any]:
    """A part of the report, in a process of its own."""
    if job["kind"] == "machine":
        return look_at_machine()
    if job["kind"] == "estimate":
        return estimate(Case(**job["case"]), job["flags"], job["paths"])
    return measure(Case(**job["case"]), job["flags"], job["paths"], job["seconds"])


def draw_records(folder: pathlib.Path, scale: Scale) -> str:
    """Draws pictures and converts them; returns the pattern of the shards."""
    from trainer import shapes

    shapes.write_shapes(folder / "VOC", num_images=scale.num_drawn, image_size=scale.drawn_size)
    command = ["prepare_tfrecords.py", f"--voc_dir={folder / 'VOC'}", "--image_set=train", f"--output_dir={folder}"]
    subprocess.run([sys.executable, *command], cwd=CHECKOUT, check=True, capture_output=True)
    return f"{folder}/train-*.tfrecord"


def kill_and_resume(
    folder: pathlib.Path, records: str, case_flags: Sequence[str], scale: Scale, seconds: float
) -> dict[str, Any]:
    """Kills a training run between two checkpoints, starts the same command again, and looks at what it did."""
    every = scale.resume_steps // 3
    model_dir = folder / "run"
    command = [sys.executable, "-m", "trainer.task", *case_flags]
    command += [f"--train_records={records}", f"--model_dir={model_dir}", f"--train_steps={scale.resume_steps}"]
    command += ["--steps_per_loop=2", f"--checkpoint_every={every}", "--warmup_steps=0", "--learning_rate=0.001"]

    def steps() -> list[int]:
        path = model_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    deadline = time.monotonic() + seconds
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and time.monotonic() < deadline and not any(step > every for step in steps()):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[1]
    if time.monotonic() >= deadline:
        return {"error": f"the run took more than {seconds:.0f} s"}
    if process.returncode != -signal.SIGKILL:
        return {"error": f"the run ended before it could be killed: {output.strip()[-300:]}"}
    killed_at = steps()[-1]
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=deadline - started)
    except subprocess.TimeoutExpired:
        return {"error": f"the two runs took more than {seconds:.0f} s"}
    if done.returncode:
        return {"error": f"the resumed run failed: {done.stderr.strip()[-300:]}"}
    first = next(line for line in done.stderr.splitlines() if "ing at step " in line)
    resumed_at = int(first.split("at step ")[1].split()[0])
    whole = steps() == list(range(2, scale.resume_steps + 1, 2))
    return {
        "killed_at": killed_at,
        "resumed_at": resumed_at,
        "ended_at": steps()[-1],
        "seconds_to_the_end": time.monotonic() - started,
        "resumed": "resuming" in first and 0 < resumed_at <= killed_at and whole,
    }


def make_report(scale: Scale, *, records: str, minutes: float, rehearse: bool) -> dict[str, Any]:
    """Measures everything; returns what report.json holds."""
    runner = Runner(minutes)
    # A rehearsal must not touch a GPU that others may be using.
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if rehearse else {}
    machine = runner.call("the machine", {"kind": "machine"}, **hidden)
    num_gpus = len(machine.get("devices", ()))
    if not num_gpus and not rehearse:
        raise ValueError("TensorFlow sees no GPU: look at nvidia-smi, or try the command with --rehearse.")
    on_gpu, num_devices = not rehearse, num_gpus if not rehearse else 2
    sections = make_cases(scale, num_devices)
    results: dict[Case, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        records = records or draw_records(folder, scale)
        paths = shards.expand_glob(records, split="train")

        def run(cases: Sequence[Case]) -> None:
            for case in cases:
                if case not in results:
                    case_flags = trainer_flags(case, scale, on_gpu)
                    job = {
                        "kind": "case",
                        "case": dataclasses.asdict(case),
                        "flags": case_flags,
                        "paths": paths,
                        "seconds": scale.seconds_timed,
                    }
                    results[case] = runner.call(" ".join(case_flags), job, **hidden)

        first, *others = sections.values()
        run(first)
        resumed: dict[str, Any] = {"skipped": "the time was over"}
        if runner.left > 60:
            print(f"{runner.left / 60:5.1f} minutes left: a kill and a resume", flush=True)
            base_flags = [*trainer_flags(first[0], scale, on_gpu), *(["--num_gpus=0"] if rehearse else [])]
            resumed = kill_and_resume(folder, records, base_flags, scale, runner.left)
        for cases in others:
            run(cases)

        def estimate_memory(case: Case) -> dict[str, Any]:
            case_flags = trainer_flags(case, scale, on_gpu)
            job = {"kind": "estimate", "case": dataclasses.asdict(case), "flags": case_flags, "paths": paths}
            return runner.call(f"--print_model {' '.join(case_flags)}", job, CUDA_VISIBLE_DEVICES="-1")

        estimated = list(dict.fromkeys(map(estimated_case, results)))
        with futures.ThreadPoolExecutor(4) as pool:  # nothing is timed any more; each traces on one core
            estimates = dict(zip(estimated, pool.map(estimate_memory, estimated)))
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rehearsal": rehearse,
        "machine": machine,
        "images_per_replica": scale.images_per_replica,
        "network": " ".join(scale.network),
        "sections": {
            title: [
                {
                    **dataclasses.asdict(case),
                    **results[case],
                    "estimated_bytes": estimates[estimated_case(case)].get("peak_bytes"),
                }
                for case in cases
            ]
            for title, cases in sections.items()
        },
        "resume": resumed,
    }
    return {**report, "goals": gpu_report_page.goals(report)}


def main(_: list[str]) -> None:
    values = flags.FLAGS
    if values.job:
        print(json.dumps(do_job(json.loads(values.job))))
        return
    if not values.output_dir:
        sys.exit("error: --output_dir is needed: the folder of report.html and report.json.")
    output_dir = pathlib.Path(values.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        scale = REHEARSAL if values.rehearse else FULL
        report = make_report(scale, records=values.records, minutes=values.minutes, rehearse=values.rehearse)
    except ValueError as error:
        sys.exit(f"error: {error}")
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output_dir / "report.html").write_text(gpu_report_page.make_page(report), encoding="utf-8")
    print(f"{output_dir / 'report.html'}")
    rows = [row for rows in report["sections"].values() for row in rows]
    if errors := [row["error"] for row in rows if "error" in row]:
        print(f"{len(errors)} of {len(rows)} cases failed; the first: {errors[0]}", file=sys.stderr)
    print(json.dumps({goal["name"]: goal["value"] for goal in report["goals"]}))
    if len(errors) == len(rows):
        sys.exit("error: no case could be measured.")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "", "Folder of report.html and report.json.")
    flags.DEFINE_string("records", "", "Pattern of the shards to read. Without it pictures are drawn.")
    flags.DEFINE_float("minutes", 20.0, "Time after which no further case is started.", lower_bound=0.5)
    flags.DEFINE_bool("rehearse", False, "Run everything with a tiny network on logical CPUs.")
    flags.DEFINE_string("job", "", "One part of the report as JSON; for the report's own use.")
    app.run(main)
