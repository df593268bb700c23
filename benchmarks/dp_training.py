"""What private training costs beside non-private training and Opacus, all in one run (privacy 2).

One pass is forward, backward and the clipped sum of one batch; `non-private` is forward and backward. The encoder is the
one that `cityfed-sim setup` fetched, embeddings frozen; texts are random ids of full length, so nothing is padding. On a
CPU torch has one thread and times are CPU seconds; on CUDA they are seconds, and so is `samples_per_cpu_s`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shared.errors import SetupError
from shared.plan import ModelSpec
from simulation.home import find_home

ENGINES = ("non-private", "opacus-hooks", "opacus-ghost", "bookkeeping")
LENGTHS = (64, 128)
CELLS = [("head", 1), *((part, length) for part in ("lora", "full") for length in LENGTHS)]
CLIP = 0.1
LORA_RANK = 8
MIB = 2.0**20

Pass = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one process of its own measures."""

    engine: str
    trainable: str
    sequence_length: int
    batch: int
    passes: int
    weights: Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; `sequence_length` is 1 for a head, which sees one cached feature vector a text."""

    engine: str
    trainable: str
    sequence_length: int
    dtype: str
    batch: int
    samples_per_cpu_s: float
    peak_mib: float
    device: str


def measure(work: Work) -> Row:
    """Build the model anew, run one pass to warm up, then report the fastest of some."""
    import torch  # noqa: PLC0415 - only processes that measure load torch
    from shared.tasks.device import resolve_device  # noqa: PLC0415

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook")
    device = resolve_device("auto")
    cuda = device.type == "cuda"
    run = prepared_pass(work, device)
    before = memory_in_use(device)
    seconds = [timed(run, cuda=cuda) for _ in range(1 + work.passes)]
    return Row(
        engine=work.engine,
        trainable=work.trainable,
        sequence_length=work.sequence_length,
        dtype="float32",
        batch=work.batch,
        samples_per_cpu_s=work.batch / min(seconds[1:]),
        peak_mib=(peak_memory(device) - before) / MIB,
        device=torch.cuda.get_device_name() if cuda else processor(),
    )


def prepared_pass(work: Work, device: object) -> Pass:
    """Return one pass of an engine over one batch."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from clients.training.clipping import Clip  # noqa: PLC0415
    from clients.training.engines import BOOKKEEPING  # noqa: PLC0415
    from shared.tasks.text import Prepared, build, per_unit_loss  # noqa: PLC0415

    assert isinstance(device, torch.device)
    model = build(spec(work), work.weights, device)
    generator = np.random.default_rng(0)
    for parameter in (parameter for name, parameter in model.named_parameters() if name.startswith("head.")):
        nn.init.constant_(parameter, 0.05)  # at a head of zeros no gradient would reach the encoder
    rows = torch.from_numpy(generator.integers(1000, 20_000, size=(work.batch, work.sequence_length)))
    inputs: tuple[torch.Tensor, ...] = rows, torch.ones_like(rows, dtype=torch.bool)
    if work.trainable == "head":
        features = generator.standard_normal((work.batch, model.head.in_features)).astype(np.float32)  # type: ignore[union-attr, arg-type]  # a layer
        inputs = (nn.functional.normalize(torch.from_numpy(features)),)
    labels = torch.arange(work.batch) % 2
    batch = Prepared(inputs, labels.float(), np.full(work.batch, work.sequence_length)).to(device)

    def loss() -> torch.Tensor:
        return per_unit_loss(model, batch)

    if work.engine == "bookkeeping":
        clipped_sum = BOOKKEEPING.attach(model).__enter__()
        return lambda: clipped_sum(batch, per_unit_loss, Clip(CLIP))
    if work.engine == "non-private":
        return lambda: (loss().sum().backward(), model.zero_grad())  # type: ignore[no-untyped-call]
    return opacus_pass(model, loss, ghost=work.engine == "opacus-ghost")


def opacus_pass(model: object, loss: Callable[[], object], *, ghost: bool) -> Pass:
    """Return a pass as Opacus itself does it, up to the clipped sum."""
    import torch  # noqa: PLC0415
    from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # noqa: PLC0415
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping  # noqa: PLC0415

    assert isinstance(model, torch.nn.Module)
    sgd = torch.optim.SGD((value for value in model.parameters() if value.requires_grad), lr=0.1)
    settings = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": 1, "loss_reduction": "sum"}
    if ghost:
        hooks = GradSampleHooksFastGradientClipping(model, max_grad_norm=CLIP, loss_reduction="sum")
        optimizer = DPOptimizerFastGradientClipping(sgd, **settings)
        return lambda: DPTensorFastGradientClipping(hooks, optimizer, loss(), "sum").backward()
    GradSampleHooks(model, loss_reduction="sum")
    optimizer = DPOptimizer(sgd, **settings)

    def run() -> None:
        losses = loss()
        assert isinstance(losses, torch.Tensor)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.clip_and_accumulate()
        optimizer.zero_grad()

    return run


def spec(work: Work) -> ModelSpec:
    """Return the plan's model of a cell."""
    return ModelSpec(
        base_weights_sha256=hashlib.sha256((work.weights / "model.safetensors").read_bytes()).hexdigest(),
        trainable=work.trainable,  # type: ignore[arg-type]  # from the table above
        lora_rank=LORA_RANK if work.trainable == "lora" else 0,
        max_tokens=128,
    )


def timed(run: Pass, *, cuda: bool) -> float:
    """Return the CPU seconds of a pass, or its seconds on CUDA."""
    import torch  # noqa: PLC0415

    clock = time.perf_counter if cuda else time.process_time
    repeats, start = 0, clock()
    while repeats == 0 or clock() - start < 0.05:  # a head's pass is shorter than the clock's noise
        run()
        repeats += 1
        if cuda:
            torch.cuda.synchronize()
    return (clock() - start) / repeats


def memory_in_use(device: object) -> float:
    """Return the bytes in use, and start to watch their peak."""
    import torch  # noqa: PLC0415

    if str(device) == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return status_bytes("VmRSS")


def peak_memory(device: object) -> float:
    """Return the largest number of bytes since :func:`memory_in_use`."""
    import torch  # noqa: PLC0415

    return torch.cuda.max_memory_allocated() if str(device) == "cuda" else status_bytes("VmHWM")


def status_bytes(key: str) -> float:
    """Read one number of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def table(*, quick: bool) -> Iterator[Row]:
    """Measure every cell with every engine, turn by turn, each time in a process of its own."""
    weights = find_home().weights
    if not (weights / "model.safetensors").exists():
        raise SetupError("base-weights-missing", f"{weights} holds no encoder; run `cityfed-sim setup` first.")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shared.tasks.encoder", "opacus", "opacus.optimizers", "opacus.grad_sample"])
    turns, batch = (1, 16) if quick else (3, 32)
    with context.Pool(1, maxtasksperchild=1) as pool:
        for trainable, length in CELLS:
            works = [
                Work(
                    engine=engine,
                    trainable=trainable,
                    sequence_length=length,
                    batch=batch,
                    passes=2,
                    weights=weights,
                )
                for engine in ENGINES
            ]
            found = [[pool.apply(measure, (work,)) for work in works] for _ in range(turns)]
            for rows in zip(*found, strict=True):
                yield max(rows, key=lambda row: row.samples_per_cpu_s)


def targets(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Hold the run against what it must show."""
    speed = {(row.engine, row.trainable, row.sequence_length): row.samples_per_cpu_s for row in rows}
    found: list[dict[str, object]] = []

    def judge(what: str, value: float, limit: float, *, at_least: bool) -> None:
        met = value >= limit if at_least else value <= limit
        found.append({"what": what, "value": value, "limit": limit, "met": met})

    for length, faster, slower in ((64, 1.3, 1.5), (128, 1.5, 1.25)):
        ours = speed["bookkeeping", "full", length]
        best = max(speed["opacus-hooks", "full", length], speed["opacus-ghost", "full", length])
        judge(f"full, {length} tokens: times the speed of the best Opacus mode", ours / best, faster, at_least=True)
        plain = speed["non-private", "full", length]
        judge(f"full, {length} tokens: times the time of non-private training", plain / ours, slower, at_least=False)
    for length in LENGTHS:
        ratio = speed["non-private", "lora", length] / speed["bookkeeping", "lora", length]
        judge(f"LoRA, {length} tokens: times the time of non-private LoRA", ratio, 1.1, at_least=False)
    return found


def machine() -> dict[str, object]:
    """Describe the hardware and the libraries, and nothing that names the machine."""
    about: dict[str, object] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    return about | {name: importlib.metadata.version(name) for name in ("torch", "opacus", "transformers")}


HEADINGS = "| trainable | tokens | engine | dtype | samples a CPU second | peak MiB |\n|---|--:|---|---|--:|--:|"


def line(row: Row) -> str:
    """Write a row of the table."""
    cells = [row.trainable, row.sequence_length, row.engine, row.dtype]
    return f"| {' | '.join(map(str, cells))} | {row.samples_per_cpu_s:,.1f} | {row.peak_mib:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batches of 16 and one turn, some two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object with machine, targets and rows")
    options = parser.parse_args()
    about, rows = machine(), []
    if not options.json:
        print(json.dumps(about), HEADINGS, sep="\n")
    for row in table(quick=options.quick):
        rows.append(row)
        print(line(row), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"machine": about, "targets": targets(rows), "rows": [asdict(row) for row in rows]}, indent=1))
        return
    for target in targets(rows):
        print(f"{'met' if target['met'] else 'MISSED'}: {target['what']}: {target['value']:.3g} ({target['limit']})")


if __name__ == "__main__":
    main()
