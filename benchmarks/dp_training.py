"""What private training costs beside non-private training and Opacus, all in one run (privacy 2).

One pass is forward, backward and the clipped sum of one batch; `non-private` is forward and backward. The encoder is
the one that `cityfed-sim setup` fetched, embeddings frozen; texts are random ids of full length, so nothing is padding.
On a CPU torch has one thread and times are CPU seconds; on CUDA they are seconds, and so is `samples_per_cpu_s`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence

from schemes.report import Target, at_least, at_most, options_of, report
from schemes.training import PASSES, Row, Work, measure

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


def targets(rows: Sequence[Row]) -> list[Target]:
    """Hold the run against what it must show."""
    speed = {(row.engine, row.trainable, row.sequence_length): row.samples_per_cpu_s for row in rows}
    found: list[Target] = []
    for length, faster, slower in ((64, 1.3, 1.5), (128, 1.5, 1.25)):
        ours, plain = speed["bookkeeping", "full", length], speed["non-private", "full", length]
        best = max(speed["opacus-hooks", "full", length], speed["opacus-ghost", "full", length])
        found.append(at_least(f"full, {length} tokens: times the speed of the best Opacus mode", ours / best, faster))
        found.append(at_most(f"full, {length} tokens: times the time of non-private training", plain / ours, slower))
    for length in LENGTHS:
        ratio = speed["non-private", "lora", length] / speed["bookkeeping", "lora", length]
        found.append(at_most(f"LoRA, {length} tokens: times the time of non-private LoRA", ratio, 1.1))
    return found


def cells(row: Row) -> list[object]:
    """Write a row of the table."""
    speed = f"{row.samples_per_cpu_s:,.1f}"
    return [row.trainable, row.sequence_length, row.engine, row.dtype, speed, f"{row.peak_mib:,.0f}"]


def main() -> None:
    options = options_of(__doc__, "batches of 16 and one turn, about two minutes")
    batch, turns = (QUICK_BATCH, QUICK_TURNS) if options.quick else (FULL_BATCH, FULL_TURNS)
    report(
        table(batch=batch, turns=turns),
        as_json=options.json,
        headings=("trainable", "tokens", "engine", "dtype", "samples a CPU second", "peak MiB"),
        cells=cells,
        targets=targets,
        libraries=("torch", "opacus", "transformers"),
    )


if __name__ == "__main__":
    main()
