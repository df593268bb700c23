"""One pass of each engine over one batch, and its time and memory; only processes that measure load this."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from schemes.report import processor
from torch import Tensor, nn

from clients.training.clipping import Clip, trained_parameters
from clients.training.engines import BOOKKEEPING, HEAD
from shared.plan import ModelSpec
from shared.tasks.classifiers import HeadClassifier
from shared.tasks.device import resolve_device
from shared.tasks.text import Prepared, build, per_unit_loss

CLIP = 0.1
LORA_RANK = 8
MIB = 2.0**20
SHORTEST = 0.05

EngineName = Literal["non-private", "opacus-hooks", "opacus-ghost", "bookkeeping"]
Trainable = Literal["head", "lora", "full"]
Pass = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one process measures."""

    engine: EngineName
    trainable: Trainable
    sequence_length: int
    batch: int
    passes: int
    weights: Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; `sequence_length` is 1 for a head, which sees one cached feature vector a text."""

    engine: EngineName
    trainable: Trainable
    sequence_length: int
    dtype: str
    batch: int
    samples_per_cpu_s: float
    peak_mib: float
    device: str


def measure(work: Work) -> Row:
    """Build the model anew, run one pass to warm up, then report the fastest of some."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook")
    device = resolve_device("auto")
    model = general_model(work, device)
    batch = full_batch(work, device)
    with PASSES[work.engine](model, batch) as run:
        before = memory_in_use(device)
        seconds = [timed(run, device) for _ in range(1 + work.passes)]
        peak = peak_memory(device)
    return Row(
        engine=work.engine,
        trainable=work.trainable,
        sequence_length=work.sequence_length,
        dtype="float32",
        batch=work.batch,
        samples_per_cpu_s=work.batch / min(seconds[1:]),
        peak_mib=(peak - before) / MIB,
        device=torch.cuda.get_device_name() if device.type == "cuda" else processor(),
    )


def general_model(work: Work, device: torch.device) -> nn.Module:
    """Return the plan's model with a head that is not zero: at zero no gradient would reach the encoder."""
    spec = ModelSpec(
        base_weights_sha256=hashlib.sha256((work.weights / "model.safetensors").read_bytes()).hexdigest(),
        trainable=work.trainable,
        lora_rank=LORA_RANK if work.trainable == "lora" else 0,
        max_tokens=128,
    )
    model = build(spec, work.weights, device)
    nn.init.constant_(model.get_parameter("head.weight"), 0.05)
    return model


def full_batch(work: Work, device: torch.device) -> Prepared:
    """Return random units of full length: nothing is padding."""
    generator = np.random.default_rng(0)
    labels = (torch.arange(work.batch) % 2).float()
    lengths = np.full(work.batch, work.sequence_length)
    if work.trainable == "head":
        features = generator.standard_normal((work.batch, 384)).astype(np.float32)
        return Prepared((nn.functional.normalize(torch.from_numpy(features)),), labels, lengths).to(device)
    ids = torch.from_numpy(generator.integers(1000, 20_000, size=(work.batch, work.sequence_length)))
    return Prepared((ids, torch.ones_like(ids, dtype=torch.bool)), labels, lengths).to(device)


@contextmanager
def non_private(model: nn.Module, batch: Prepared) -> Iterator[Pass]:
    """Forward and backward."""

    def run() -> None:
        total: Tensor = per_unit_loss(model, batch).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch does not annotate backward
        model.zero_grad()

    yield run


@contextmanager
def bookkeeping(model: nn.Module, batch: Prepared) -> Iterator[Pass]:
    """Our engine for the model, up to the clipped sum in integers."""
    engine = HEAD if isinstance(model, HeadClassifier) else BOOKKEEPING
    with engine.attach(model) as clipped_sum:
        yield lambda: clipped_sum(batch, per_unit_loss, Clip(CLIP))


@contextmanager
def opacus_hooks(model: nn.Module, batch: Prepared) -> Iterator[Pass]:
    """Opacus with hooks, as it is used by itself, up to the clipped sum."""
    hooks = GradSampleHooks(model, loss_reduction="sum")
    optimizer = DPOptimizer(torch.optim.SGD(trained_parameters(model), lr=0.1), **opacus_settings())

    def run() -> None:
        total: Tensor = per_unit_loss(model, batch).sum()
        total.backward()  # type: ignore[no-untyped-call]  # as above
        optimizer.clip_and_accumulate()
        optimizer.zero_grad()

    yield run
    hooks.cleanup()


@contextmanager
def opacus_ghost(model: nn.Module, batch: Prepared) -> Iterator[Pass]:
    """Opacus' ghost clipping, as it is used by itself, up to the clipped sum: two backward passes."""
    hooks = GradSampleHooksFastGradientClipping(model, max_grad_norm=CLIP, loss_reduction="sum")
    sgd = torch.optim.SGD(trained_parameters(model), lr=0.1)
    optimizer = DPOptimizerFastGradientClipping(sgd, **opacus_settings())
    yield lambda: DPTensorFastGradientClipping(hooks, optimizer, per_unit_loss(model, batch), "sum").backward()
    hooks.cleanup()


def opacus_settings() -> dict[str, object]:
    """Return what Opacus' optimisers are told."""
    return {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": 1, "loss_reduction": "sum"}


PASSES = {
    "non-private": non_private,
    "opacus-hooks": opacus_hooks,
    "opacus-ghost": opacus_ghost,
    "bookkeeping": bookkeeping,
}


def timed(run: Pass, device: torch.device) -> float:
    """Return the CPU seconds of a pass, or its seconds on CUDA."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    repeats, start = 0, clock()
    while repeats == 0 or clock() - start < SHORTEST:  # a head's pass is shorter than the clock's noise
        run()
        repeats += 1
        if cuda:
            torch.cuda.synchronize()
    return (clock() - start) / repeats


def memory_in_use(device: torch.device) -> float:
    """Return the bytes in use, and start to watch their peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return status_bytes("VmRSS")


def peak_memory(device: torch.device) -> float:
    """Return the largest number of bytes since :func:`memory_in_use`."""
    return float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(key: str) -> float:
    """Read one number of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))
