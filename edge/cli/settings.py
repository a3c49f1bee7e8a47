"""What is wrong with the settings of `edge-hand run`, as far as that can be told without opening anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cameras import CameraError, NotThere, check_camera
from ..engines import ANYWHERE, check_engine
from ..networks.card import ModelError, UnreadableModel, find_model
from ..publish import PublishError, check_address
from ..view.http_server import ServeError
from ..view.metrics import check_metrics
from .config import ConfigError


def check_settings(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for what starting again would not mend, and NotThere for a recording that is not there unless
    it is waited for, ModelError for a file that is none yet: a disk may be mounted later, or the file be on its way.
    values are the parameters of `edge-hand run` by their names."""
    try:
        _check_model(values["engine"], values["model"], "dgn")
        if values["finder"] not in (None, "geometry"):
            _check_model(ANYWHERE, find_model(str(values["finder"])), "finder")
        check_address(values["bind"], insecure=values["insecure"], keys=values["keys"])
        if values["metrics"]:
            check_metrics(values["metrics"], values["insecure"])
        options = {name: values[name] for name in ("mode", "fps", "loop", "deterministic")}
        check_camera(values["camera"], values["source"], **options)
    except UnreadableModel:
        raise
    except NotThere:
        if not values["wait"]:
            raise
    except (CameraError, ModelError, PublishError, ServeError) as error:
        raise ConfigError(str(error)) from None


def _check_model(engine: str, model: Path, net: str) -> None:
    """`check_engine`, but a name that nothing has is never on its way."""
    try:
        check_engine(engine, model, net)
    except UnreadableModel as error:
        if model.parent != Path():
            raise
        raise ModelError(str(error)) from None
