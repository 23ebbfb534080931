"""A run's folder in, one self-contained HTML page out; reads the disk and nothing else of ours."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from batchnorm.report import _words as words
from batchnorm.report._notes import told_once
from batchnorm.report._read import read

PAGE, TEMPLATE = "report.html", "page.html"
FEW = 6  # measures that are shown without a click
FILTERS: dict[str, Any] = {
    "value": words.value,
    "interval": words.interval,
    "tally": words.tally,
    "word": words.word,
    "brief": words.brief,
    "date": words.date,
    "span": words.span,
    "typeset": words.typeset,
}


def render(folder: str | Path) -> Path:
    """Draw the page of a run from its folder alone; the old page or the new one, never half.

    Args:
        folder: what ``batchnorm study`` wrote: ``manifest.json``, ``verdicts.json``,
            ``timing.json`` and ``charts/``.

    Returns:
        The page, ``report.html`` in the folder: one file that needs no network.

    Raises:
        ValueError: the folder is not a whole run's that this version reads; it says which file.

    Example:
        >>> render("no/such/folder")
        Traceback (most recent call last):
        ValueError: no folder 'no/such/folder': give the folder of a run, such as runs/study
    """
    path = Path(folder)
    text, page, draft = _page(path), path / PAGE, path / f"{PAGE}.part"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, page)
    finally:
        draft.unlink(missing_ok=True)
    return page


def _page(folder: Path) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    run, studies, seconds = read(folder)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # unsorted: tables keep the rows' order
    environment.filters.update(FILTERS)
    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    shared = words.shared(studies)
    for study in studies:
        study["told"] = any(study in found for _, found in shared)
        usual = next(iter(study["intervals"]), "")
        study["measures"], study["notes"] = told_once(study["verdicts"], usual)
    keys = {key for study in studies for key in study.get("keys", ())}
    return environment.from_string(template).render(
        run=run,
        studies=studies,
        summary=words.summary(studies),
        shared=shared,
        few=FEW,
        hero=next((chart for study in studies for chart in study["charts"] if chart["asks"]), None),
        trials=len(keys) or sum(study["trials"] for study in studies),
        seconds=seconds,
        vega=Markup(_vega()),
    )


@cache
def _vega() -> str:
    from vl_convert import javascript_bundle

    # A script element ends at the first </script, wherever it stands.
    bundle = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", r"<\/script")
