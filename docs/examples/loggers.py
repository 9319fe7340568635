"""Callbacks for `lth.run` and `lth.iterative_pruning` that log to MLflow or Weights & Biases. Copy the one you need.

python docs/examples/loggers.py mlflow      # pip install mlflow; a local file, ./mlflow.db
python docs/examples/loggers.py wandb       # pip install wandb; offline: `wandb sync` sends it later
"""

import sys
from collections.abc import Callable
from pathlib import Path

import lth

NUMBERS = ("remaining", "ES", "val", "test", "val_loss", "train_loss")


def to_mlflow(file: str = "mlflow.db") -> Callable[[dict], None]:
    """One MLflow run per arm and trial: a round's numbers at its step."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{Path(file).absolute()}")
    client, runs = mlflow.MlflowClient(), {}

    def log(event: dict) -> None:
        if event["event"] == "round":
            name = f"{event['arm']} seed{event['seed']}"
            if name not in runs:
                runs[name] = client.create_run("0", run_name=name).info.run_id
            for number in NUMBERS:
                client.log_metric(runs[name], number, event[number], step=event["round"])

    return log


def to_wandb(project: str = "tickets", mode: str = "offline") -> Callable[[dict], None]:
    """One W&B run for all: each evaluation under its arm, trial and round."""
    import wandb

    run = wandb.init(project=project, mode=mode)

    def log(event: dict) -> None:
        whose = f"{event['arm']}/seed{event['seed']}/{event['event']}"
        run.log({f"{whose}/{number}": event[number] for number in NUMBERS if number in event})

    return log


def main(logger: str = "mlflow", **settings: object) -> lth.Result:
    callback = {"mlflow": to_mlflow, "wandb": to_wandb}[logger]()
    return lth.run(callback, **{"prune_type": ["lt", "reinit"], "prune_iterations": 5, "end_iter": 2, **settings})


if __name__ == "__main__":
    print(main(*sys.argv[1:]).verdict)
