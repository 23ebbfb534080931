"""What a run says of itself: versions, machine, configuration, and its studies."""

import os
import platform
import shlex
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from batchnorm.studies._asked import STUDIES
from batchnorm.studies._context import Context
from batchnorm.studies._folder import FORMAT
from batchnorm.studies._network import EMBEDDED, summary
from batchnorm.studies._plan import Part
from batchnorm.studies._trial import Setup, Trial


def about(
    parts: Iterable[Part], setup: Setup, context: Context, out: Path, jobs: int | None
) -> dict[str, Any]:
    """The manifest's head: all that is known before the first trial runs."""
    parts = list(parts)
    return {
        "format": FORMAT,
        "batchnorm": version("batchnorm"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        "started": now(),
        "finished": None,
        "scale": setup.scale,
        "model": setup.model,
        "network": summary(
            (t for part in parts for t in part.trials.values() if t.data == setup.data),
            context.examples(setup.data),
        ),
        "data": setup.data,
        "jobs": jobs,
        "command": command([part.study.NAME for part in parts], setup, out),
        "context": context.base,
        "fingerprints": {name: data.fingerprint for name, data in context.data.items()},
        "seed": setup.seed,
        "seeds": sorted({trial.seed for part in parts for trial in part.trials.values()}),
    }


def entry(part: Part, setup: Setup, out: Path) -> dict[str, Any]:
    """What the manifest says of one study of a run of this set-up in the folder ``out``."""
    name = part.study.NAME
    return {
        "name": name,
        **words(part, setup.model),
        # In a folder of its own: in this one it would take the place of the whole run's page.
        "command": command([name], setup, out.with_name(f"{out.name}-{name}")),
        "trials": len(part.trials),
        "keys": list(part.trials),
        "timings": list(part.timings),
        **found(part),
    }


def words(part: Part, model: str | None) -> dict[str, str]:
    """What a study says of itself, and of its learning rates on a user's network."""
    study = part.study
    return {
        "lecture": study.LECTURE,
        "title": study.TITLE,
        "claim": study.CLAIM,
        "method": " ".join(filter(None, [study.METHOD, _unchosen(part, model)])),
        "published": study.PUBLISHED,
        "meaning": getattr(study, "MEANING", ""),
    }


def found(part: Part) -> dict[str, Any]:
    """What became of a study, and its charts."""
    return {
        "status": part.status,
        "reason": part.not_applicable or part.failed,
        "charts": [{"name": n, "title": _title(chart)} for n, chart in part.charts.items()],
    }


def _unchosen(part: Part, model: str | None) -> str:
    """That a network of the user's was trained at rates nobody has chosen for it, or nothing."""
    tried: dict[Trial, set[float]] = {}
    for trial in part.trials.values():
        settings = replace(trial, seed=0, learning_rate=1.0)
        tried.setdefault(settings, set()).add(trial.learning_rate)
    if model is None or model in EMBEDDED or not tried or max(map(len, tried.values())) > 1:
        return ""
    rates = sorted({rate for each in tried.values() for rate in each})
    told = f"rate {rates[0]:g}" if len(rates) == 1 else f"rates {rates[0]:g} to {rates[-1]:g}"
    return (
        f"This network is trained at learning {told}, fixed beforehand and not chosen for it: "
        "where it learns badly there, the numbers say little. The studies speed and learning_rate "
        "say which rates suit it."
    )


def command(names: list[str], setup: Setup, out: Path) -> str:
    """What to type to get this run again, or to go on with it.

    >>> command(["speed"], Setup(scale="full", seed=100), Path("runs/study"))
    'batchnorm study speed --scale full --seed 100'
    """
    words = ["batchnorm", "study", *(names if len(names) < len(STUDIES) else [])]
    words += ["--model", setup.model] if setup.model is not None else []
    words += ["--data", setup.data] if setup.data != Setup.data else []
    words += ["--scale", setup.scale] if setup.scale != Setup.scale else []
    words += ["--seed", str(setup.seed)] if setup.seed != Setup.seed else []
    words += ["--out", str(out)] if out != Path("runs/study") else []
    return shlex.join(words)


def machine() -> dict[str, Any]:
    """Processor, its cores, and the operating system."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(terse=True)}


def now() -> str:
    """This second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _title(chart: dict[str, Any]) -> str:
    title = chart.get("title", "")
    return str(title.get("text", "") if isinstance(title, dict) else title)
