"""What several measures of a study say alike, told once under their table."""

import re
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

SEVERAL = 3  # rows that say a sentence, from which it is told once
KINDS = ("caution", "note")
SENTENCE = re.compile(r"(?<=\.) (?=[A-Z])")


def told_once(verdicts: Sequence[Json], usual: str) -> tuple[list[Json], list[Json]]:
    """The measures with what each says alone, and the sentences of several, numbered.

    Args:
        verdicts: the measures of a study.
        usual: what an interval is, where a measure has no other.

    Returns:
        The measures, their ``caution`` and ``note`` shorter, with the numbers of what was taken out
        as ``cautions`` and ``notes``; and that, in order: ``kind``, ``text``.

    Example:
        >>> rows = [{"caution": "", "note": f"Rate {i}. In points.", "interval": ""} for i in "123"]
        >>> measures, told = told_once(rows, "")
        >>> measures[0]["note"], measures[0]["notes"], told
        ('Rate 1.', [1], [{'kind': 'note', 'text': 'In points.'}])
    """
    said = [_sentences(one, usual) for one in verdicts]
    rows: dict[tuple[str, str], list[int]] = {}
    for i, mine in enumerate(said):
        for one in dict.fromkeys(mine):
            rows.setdefault(one, []).append(i)
    items: dict[tuple[str, tuple[int, ...]], list[str]] = {}  # what the same rows say is one item
    for (kind, sentence), found in rows.items():
        if len(found) >= SEVERAL:
            items.setdefault((kind, tuple(found)), []).append(sentence)
    measures: list[Json] = []
    for i, (verdict, mine) in enumerate(zip(verdicts, said, strict=True)):
        own = {
            kind: " ".join(s for k, s in mine if k == kind and len(rows[k, s]) < SEVERAL)
            for kind in KINDS
        }
        numbers = {
            f"{kind}s": [n for n, (k, found) in enumerate(items, 1) if k == kind and i in found]
            for kind in KINDS
        }
        measures.append(verdict | own | numbers)
    told = [{"kind": kind, "text": " ".join(text)} for (kind, _), text in items.items()]
    return measures, told


def _sentences(verdict: Json, usual: str) -> list[tuple[str, str]]:
    """Each sentence with its kind; what its interval is, where it is another, is a note."""
    other = verdict["interval"] if verdict["interval"] != usual else ""
    texts = [(kind, sentence) for kind in KINDS for sentence in SENTENCE.split(verdict[kind])]
    texts.append(("note", f"Its interval is {other}." if other else ""))
    return [(kind, sentence) for kind, sentence in texts if sentence]
