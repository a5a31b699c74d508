"""``swift inspect``: what training would be given, looked at before it begins."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftune import __version__
from swiftune.config import InspectArguments
from swiftune.data import filters, languages, survey
from swiftune.data.formats import EMPTY_ANSWER
from swiftune.data.ledger import Ledger, RowFault
from swiftune.data.store import SampleStore
from swiftune.data.survey import SHORT_ANSWER, Lengths, Survey
from swiftune.errors import DataError
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.recipes.reading import Reader
from swiftune.runtime.console import shown

if TYPE_CHECKING:
    from rich.text import Text

    from swiftune.data.duplicates import Copies
    from swiftune.types import Row, Sample

LANGUAGES_OF = 5000
"""Rows at the most whose language is looked at."""
UNEQUAL = 3
"""How many times as large as the smallest class the largest may be."""
NEAR_CONTEXT = 0.8
"""Share of the model's context above which rows are said to be long."""
_EXAMPLES = 5


@dataclass(frozen=True)
class Report:
    """What was found, for programs and for people."""

    figures: dict[str, Any]
    """Plain JSON values."""
    first: list[Text]
    """The first rows as they are learned."""
    account: str
    """What became of every row, as training says it."""
    ledger: Ledger


def inspect(args: InspectArguments) -> tuple[Report, Path]:
    """The report, and the folder that it was written to.

    Raises:
        UsageError: as ``swift sft`` would for these rows, but for ``--max_bad_rows``.
        OutputError: the report cannot be written.
    """
    from swiftune.recipes import inspect_page
    from swiftune.train import run_folder

    folder = Path(args.output_dir) if args.output_dir else Path("output") / f"inspect-{datetime.now():%Y%m%d-%H%M%S}"
    run_folder.check(folder if args.output_dir else folder.parent, "--output_dir")
    opened = open_tokenizer(args, loss_scale=args.loss_scale)
    report = examine(args, opened)
    inspect_page.write(folder, report)
    return report, folder


def examine(args: InspectArguments, opened: Opened) -> Report:
    """Reads all rows as training would, and counts."""
    from swiftune.data.render import preview

    ledger = Ledger(strict=args.strict, max_bad_rows=args.max_bad_rows)
    reader = Reader(args, opened, ledger)
    train, val = reader.unfiltered()
    copies = _copies(filters.once(train), filters.once(val))
    train = reader.filtered(train, val)
    found, learned, kept = Survey(), Survey(), array("q")
    first: list[Text] = []
    for index, sample, row in _rows(reader, train, found, args.min_response_tokens):
        kept.append(index)
        learned.use(sample, row)
        if len(first) < args.show_rows:
            first.append(preview(row, opened.tokenizer))
    held = sum(1 for _ in _rows(reader, val, Survey(), 0)) if len(val) else 0
    used = SampleStore(train.parts, train.rows_N[kept])
    figures = {
        "swiftune": __version__,
        "model": str(opened.folder),
        "context": _context(opened),
        "max_length": args.max_length,
        "data": train.hashes | val.hashes,
        "rows": ledger.counts,
        "training_rows": learned.rows,
        "evaluation_rows": held,
        **_of_rows(args, opened, found, learned),
        "languages": _languages(used),
        "copies": copies,
        "answers": _answers(ledger, learned, used),
        "classes": {
            name: counts
            for name, of in (("channel", learned.channels), ("label", learned.labels))
            if (counts := survey.classes(of))
        },
    }
    return Report(figures | {"warnings": list(_warnings(args, figures, ledger))}, first, ledger.summary(), ledger)


def _rows(reader: Reader, samples: SampleStore, found: Survey, min_response: int) -> Iterator[tuple[int, Sample, Row]]:
    """The rows that training would use, with their places in ``samples``. The ledger is told of the others."""
    from swiftune.data.tokens import fit

    args = reader.args
    rows = reader.rows(samples, any_length=True)
    rendered = np.setdiff1d(np.arange(len(samples)), [index for index, _, _ in rows.faults()])
    for place in shown("looking at rows", range(len(rows)), len(rows)):
        index, row = int(rendered[place]), rows[place]
        found.measure(row)
        fitted = fit(row, args.max_length, args.truncation_strategy, min_response)
        if isinstance(fitted, RowFault):
            reader.ledger.withdraw(samples[index].place, fitted.reason, fitted.detail)
        else:
            yield index, samples[index], fitted


def _context(opened: Opened) -> int | None:
    """The most tokens that the model can see at once, if its configuration says so."""
    own = opened.config.get("text_config") or opened.config
    return own.get("max_position_embeddings") if isinstance(own, dict) else None


def _of_rows(args: InspectArguments, opened: Opened, found: Survey, learned: Survey) -> dict[str, Any]:
    lengths, answers, context = Lengths(found.lengths), Lengths(learned.learned), _context(opened)
    return {
        "formats": dict(learned.formats.most_common()),
        "tokens": {
            "train": learned.tokens,
            "supervised": answers.total,
            "supervised_share": _share(answers.total, learned.tokens),
        },
        "lengths": {
            "rows": lengths.count,
            **survey.summary(lengths),
            "over_max_length": lengths.over(args.max_length),
            "share_over_max_length": _share(lengths.over(args.max_length), lengths.count),
            "max_length_for_95_percent": lengths.covering(95),
            "over_80_percent_of_context": lengths.over(NEAR_CONTEXT * context) if context else None,
            "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in lengths.bars()],
        },
        "learned_tokens": survey.summary(answers),
        "turns": {str(turns): count for turns, count in sorted(learned.turns.items())},
        "with_system_prompt": learned.with_system,
        "with_tools": learned.with_tools,
    }


def _languages(used: SampleStore) -> dict[str, Any]:
    texts = [survey.answer_of(used[index]) for index in survey.every(len(used), LANGUAGES_OF)]
    return {"rows_looked_at": len(texts), "rows": dict(languages.count_languages(texts).most_common())}


def _copies(train: SampleStore, val: SampleStore) -> dict[str, Any]:
    """How many training rows are copies, and the first of them."""
    found: Copies = filters.copies_of(train, val, near=True)
    copies_N, held_N = found.of_N >= 0, (found.of_N >= 0) & (found.of_N < found.evaluation)
    return {
        "exact": int((copies_N & ~found.near_N & ~held_N).sum()),
        "near": int((found.near_N & ~held_N).sum()),
        "exact_of_evaluation": int((held_N & ~found.near_N).sum()),
        "near_of_evaluation": int((held_N & found.near_N).sum()),
        "evaluation_rows_met": len(np.unique(found.of_N[held_N])),
        "examples": [
            {"row": str(train[index].place), "near": bool(found.near_N[index])}
            | {"copy": filters.original(found, index, train, val)}
            for index in [*np.flatnonzero(held_N)[:_EXAMPLES].tolist(), *np.flatnonzero(copies_N & ~held_N).tolist()][
                :_EXAMPLES
            ]
        ],
    }


def _answers(ledger: Ledger, learned: Survey, used: SampleStore) -> dict[str, Any]:
    from swiftune.data.sources import shorten

    repeated, most = learned.repeated(_EXAMPLES)
    return {
        "empty": ledger.reasons.get(EMPTY_ANSWER, 0),
        "very_short": sum(count for tokens, count in learned.learned.items() if tokens < SHORT_ANSWER),
        "very_short_is_under": SHORT_ANSWER,
        "repeated": repeated,
        "most_repeated": [{"answer": shorten(survey.answer_of(used[at])), "rows": count} for at, count in most],
    }


def _warnings(args: InspectArguments, figures: dict[str, Any], ledger: Ledger) -> Iterator[str]:
    """What a person would want to know before training, a sentence each."""
    lengths, copies, answers, context = (figures[name] for name in ("lengths", "copies", "answers", "context"))
    try:
        ledger.check()
    except DataError as error:
        yield f"swift sft would not train: {error.what.partition(chr(10))[0].rstrip(':')}."
    if not figures["training_rows"]:
        yield "No row would be left to train on."
    if over := lengths["over_max_length"]:
        yield (
            f"Longer than --max_length {args.max_length}: {over:,} rows ({lengths['share_over_max_length']:.1%}). "
            f"{lengths['max_length_for_95_percent']} covers 95% of all."
        )
    if context and args.max_length > context:
        yield f"--max_length {args.max_length} is more than the model's context of {context} tokens."
    if context and (over := lengths["over_80_percent_of_context"]):
        yield f"Longer than 80% of the model's context of {context} tokens: {over:,} rows."
    if copies["exact_of_evaluation"] or copies["near_of_evaluation"]:
        yield (
            f"Copies of rows for evaluation: {copies['exact_of_evaluation']:,} exact, "
            f"{copies['near_of_evaluation']:,} near. Figures of the evaluation will flatter."
        )
    if copies["exact"] or copies["near"]:
        yield (
            f"Copies of other rows: {copies['exact']:,} exact, {copies['near']:,} near. "
            "--filter_duplicates true leaves out the former, near both."
        )
    if short := answers["very_short"]:
        yield (
            f"Answers of fewer than {SHORT_ANSWER} tokens: {short:,}. "
            f"--min_response_tokens {SHORT_ANSWER} leaves them out."
        )
    for most in answers["most_repeated"][:1]:
        if most["rows"] > max(2, figures["training_rows"] / 100):
            yield f"The same answer in {most['rows']:,} rows: {most['answer']}"
    yield from _unequal(figures["classes"])


def _unequal(classes: dict[str, dict[str, int]]) -> Iterator[str]:
    for name, counts in classes.items():
        (large, most), *_, (small, least) = [*counts.items()] * 2
        if most > UNEQUAL * least:
            yield (
                f"{name} {large} has {most / least:.1f} times as many rows as {small} ({most:,} : {least:,}): "
                f"--balance {name} draws as many of each."
            )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
