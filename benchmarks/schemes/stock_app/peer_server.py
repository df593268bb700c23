"""FedAvg as it comes; writes down when each round is finished."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    config = context.run_config
    times, departments = Path(str(config["times"])), int(config["departments"])

    def note(_round: int, _arrays: ArrayRecord) -> None:
        with times.open("a") as file:
            file.write(f"{time.time()}\n")

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=departments, min_available_nodes=departments)
    vector = np.random.default_rng(1).standard_normal(int(config["size"]), dtype=np.float32)
    rounds = int(config["rounds"])
    result = strategy.start(grid, ArrayRecord([vector]), num_rounds=rounds, evaluate_fn=note)
    moved = result.arrays.to_numpy_ndarrays()[0] - vector
    if not (moved.min() > 0 and moved.max() < 1.1e-3 * rounds):
        raise RuntimeError("the model has not moved by what the nodes added")
