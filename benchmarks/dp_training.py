"""What private training costs beside non-private training and Opacus, all in one run (privacy 2).

One pass is forward, backward and the clipped sum of one batch; `non-private` is forward and backward. The encoder is
the one that `cityfed-sim setup` fetched, embeddings frozen; texts are random ids of full length, so nothing is padding.
On a CPU torch has one thread and times are CPU seconds; on CUDA they are seconds, and so is `samples_per_cpu_s`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from schemes.training import PASSES, Row, Work, measure, processor

from shared.errors import SetupError
from simulation.home import find_home

LENGTHS = (64, 128)
FULL_BATCH, FULL_TURNS = 32, 3
QUICK_BATCH, QUICK_TURNS = 16, 1


def table(*, batch: int, turns: int) -> Iterator[Row]:
    """Measure every cell with every engine, turn by turn, each time in a process of its own."""
    weights = find_home().weights
    if not (weights / "model.safetensors").exists():
        raise SetupError("base-weights-missing", f"{weights} holds no encoder; run `cityfed-sim setup` first.")
    context = multiprocessing.get_context("forkserver")  # a fork that has not touched a device yet
    context.set_forkserver_preload(["schemes.training", "shared.tasks.encoder"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for trainable, length in [("head", 1), *((part, n) for part in ("lora", "full") for n in LENGTHS)]:
            works = [
                Work(
                    engine=engine,
                    trainable=trainable,
                    sequence_length=length,
                    batch=batch,
                    passes=2,
                    weights=weights,
                )
                for engine in PASSES
            ]
            found = [[pool.apply(measure, (work,)) for work in works] for _ in range(turns)]
            for rows in zip(*found, strict=True):
                yield sorted(rows, key=lambda row: row.samples_per_cpu_s)[turns // 2]


def targets(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Hold the run against what it must show."""
    speed = {(row.engine, row.trainable, row.sequence_length): row.samples_per_cpu_s for row in rows}
    found: list[dict[str, object]] = []

    def judge(what: str, value: float, limit: float, *, at_least: bool) -> None:
        met = value >= limit if at_least else value <= limit
        found.append({"what": what, "value": value, "limit": limit, "met": met})

    for length, faster, slower in ((64, 1.3, 1.5), (128, 1.5, 1.25)):
        ours, plain = speed["bookkeeping", "full", length], speed["non-private", "full", length]
        best = max(speed["opacus-hooks", "full", length], speed["opacus-ghost", "full", length])
        judge(f"full, {length} tokens: times the speed of the best Opacus mode", ours / best, faster, at_least=True)
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
    parser.add_argument("--quick", action="store_true", help="batches of 16 and one turn, about two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object with machine, targets and rows")
    options = parser.parse_args()
    about, rows = machine(), []
    if not options.json:
        print(json.dumps(about), HEADINGS, sep="\n")
    batch, turns = (QUICK_BATCH, QUICK_TURNS) if options.quick else (FULL_BATCH, FULL_TURNS)
    for row in table(batch=batch, turns=turns):
        rows.append(row)
        print(line(row), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"machine": about, "targets": targets(rows), "rows": [asdict(row) for row in rows]}, indent=1))
        return
    for target in targets(rows):
        print(f"{'met' if target['met'] else 'MISSED'}: {target['what']}: {target['value']:.3g} ({target['limit']})")


if __name__ == "__main__":
    main()
