"""Writers of losses and scores for services, beside the files: Weights & Biases and MLflow. Off unless asked for."""

import importlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

logger = logging.getLogger(__name__)

RUNS = ".writers.json"  # the run of each service, for a resume
PROJECT = "sparse_detr"
_WINDOW = 20  # iterations that a loss is the median of, as in metrics.json
_NOT_IN_MLFLOW = re.compile(r"[^\w\-. /]")  # in the name of a metric or parameter
_MLFLOW_PARAMETERS = 100  # of one call


def check_writers(names: Sequence[str]) -> None:
    """Import the packages that the writers need.

    Raises:
        UserError: one is missing; says how to install it.
    """
    for name in names:
        _package(name)


def _package(name: str) -> ModuleType:
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise _missing(name, str(error)) from error
    if not hasattr(package, WRITERS[name].needs):  # a folder of this name, as wandb leaves one where it runs
        raise _missing(name, "a folder has its name")
    return package


def _missing(name: str, reason: str) -> UserError:
    return UserError(
        f"train.writers (SOLVER.WRITERS) names {name}, which cannot be imported ({reason}); "
        f"install it with `pip install {name}`, or leave it out"
    )


def build_writers(
    names: Sequence[str], *, folder: str, config: Mapping[str, str], resumed: bool
) -> list["ServiceWriter"]:
    """Start a run in every service that is named.

    Args:
        names: of `WRITERS`.
        folder: output folder of the training; it keeps which run a resume goes on with.
        config: values of the config by name, for the service.
        resumed: go on with the run that the folder knows.

    Raises:
        UserError: a package is missing, or a run cannot be started, for example without a login.
    """
    known = _known_runs(folder) if resumed else {}
    writers = []
    for name in names:
        kind, package = WRITERS[name], _package(name)
        try:
            writer = kind(package, folder=folder, config=config, run=known.get(name))
        except Exception as error:  # noqa: BLE001 whatever the package raises
            raise UserError(f"train.writers: {name} cannot start a run ({error}); {kind.remedy}") from error
        known[name] = writer.run
        writers.append(writer)
    if writers:
        write_text_atomically(Path(folder, RUNS), json.dumps(known))
    return writers


def _known_runs(folder: str) -> dict[str, str]:
    try:
        known = json.loads(Path(folder, RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(run) for name, run in known.items()} if isinstance(known, dict) else {}


class ServiceWriter(EventWriter):
    """Sends the scalars that are new to a run of a service. An error of the service does not end the training.

    Pictures go to TensorBoard alone.

    Attributes:
        run: name of the run in the service.
    """

    needs = ""
    """A function that the package has."""
    remedy = ""
    """What to do if a run cannot be started."""
    run: str

    def __init__(self) -> None:
        self._last_write = -1
        self._failed = False

    def write(self) -> None:
        """Send the scalars since the last call, by iteration."""
        new: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                new[iteration][name] = float(value)
        self._last_write = max([self._last_write, *new])
        for iteration in sorted(new):
            self._try(lambda iteration=iteration: self.send(new[iteration], iteration))

    def close(self) -> None:
        """End the run."""
        self._try(self.finish)

    def send(self, scalars: dict[str, float], iteration: int) -> None:
        """Send scalars of an iteration."""
        raise NotImplementedError

    def finish(self) -> None:
        """End the run in the service."""
        raise NotImplementedError

    def _try(self, step: Any) -> None:
        if self._failed:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 a service that is gone must not end a training
            self._failed = True
            logger.warning(
                f"{type(self).__name__} stops: {error}; the training goes on, and metrics.json has all numbers"
            )


class WandbWriter(ServiceWriter):
    """Writes to Weights & Biases, into the project of WANDB_PROJECT."""

    needs = "init"
    remedy = "log in with `wandb login`, set WANDB_MODE=offline, or leave it out"

    def __init__(self, package: ModuleType, *, folder: str, config: Mapping[str, str], run: str | None) -> None:
        super().__init__()
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.path.basename(os.path.abspath(folder)),
            dir=folder,
            config=dict(config),
            id=run,
            resume="allow",
        )
        self.run = str(self._run.id)

    def send(self, scalars: dict[str, float], iteration: int) -> None:
        """Send scalars of an iteration."""
        self._run.log(scalars, step=iteration)

    def finish(self) -> None:
        """End the run in the service."""
        self._run.finish()


class MlflowWriter(ServiceWriter):
    """Writes to MLflow, at MLFLOW_TRACKING_URI, into the experiment of MLFLOW_EXPERIMENT_NAME."""

    needs = "start_run"
    remedy = "check MLFLOW_TRACKING_URI, or leave it out"

    def __init__(self, package: ModuleType, *, folder: str, config: Mapping[str, str], run: str | None) -> None:
        super().__init__()
        self._mlflow = package
        if run is None:
            package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            started = package.start_run(run_name=os.path.basename(os.path.abspath(folder)))
            self._send_config(config)
        else:
            started = package.start_run(run_id=run)
        self.run = str(started.info.run_id)

    def _send_config(self, config: Mapping[str, str]) -> None:
        items = [(_mlflow_name(name), value[:250]) for name, value in config.items()]  # the limit of older servers
        for first in range(0, len(items), _MLFLOW_PARAMETERS):
            self._mlflow.log_params(dict(items[first : first + _MLFLOW_PARAMETERS]))

    def send(self, scalars: dict[str, float], iteration: int) -> None:
        """Send scalars of an iteration."""
        self._mlflow.log_metrics({_mlflow_name(name): value for name, value in scalars.items()}, step=iteration)

    def finish(self) -> None:
        """End the run in the service."""
        self._mlflow.end_run()


def _mlflow_name(name: str) -> str:
    return _NOT_IN_MLFLOW.sub("_", name)


WRITERS: dict[str, Any] = {"wandb": WandbWriter, "mlflow": MlflowWriter}
