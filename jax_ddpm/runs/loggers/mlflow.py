"""MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME mean what they always do."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.runs.loggers.marks import Marks

MAX_PARAMETER = 6000  # characters that MLflow takes


class MLflow:
    """A run of MLflow, which a resumed run continues."""

    title = "MLflow's log"

    def __init__(self, folder: Path) -> None:
        self._name, self._marks = folder.resolve().name, Marks(folder / "mlflow.json")
        self._client: Any = None

    def begin(self, step: int, settings: Mapping[str, Any]) -> None:
        """Begin a run of that program, or continue the one that was begun before."""
        from mlflow import MlflowClient

        client = MlflowClient()
        self._marks.load()
        if self._marks.id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jax_ddpm")
            experiment = client.get_experiment_by_name(name)
            number = client.create_experiment(name) if experiment is None else None
            number = number or experiment.experiment_id
            self._marks.name(client.create_run(number, run_name=self._name).info.run_id)
            for key, value in settings.items():
                client.log_param(self._marks.id, key, str(value)[:MAX_PARAMETER])
        else:
            client.update_run(self._marks.id, status="RUNNING")
        self._client = client

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a value to each curve, unless this step has some."""
        if self._client is not None and self._marks.advance("scalars", step):
            for name, value in values.items():
                self._client.log_metric(self._marks.id, name, value, step=step)

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Store an image, unless this step has one."""
        if self._client is not None and self._marks.advance(name, step):
            file = f"{name}/step_{step:07d}.png"
            self._client.log_image(self._marks.id, pixels.squeeze(), artifact_file=file)

    def close(self) -> None:
        """Mark the run as finished; one that is resumed runs again."""
        if self._client is not None:
            self._client.set_terminated(self._marks.id)
