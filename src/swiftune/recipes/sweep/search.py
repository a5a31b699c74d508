"""Which run is next: all of the grid in its order, or what optuna makes of those that have ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from swiftune.config.swept import Dimension, Point, Range, Sweep, less_is_better
from swiftune.errors import ArgumentsError, MissingPackageError
from swiftune.recipes.sweep.rows import OUTPUT, Row, reason_in
from swiftune.runtime.console import hushed

STORAGE = "trials.log"
"""Optuna's own record of a search."""
PACKAGE = "optuna>=4.5,<6"


class Search(Protocol):
    """What gives the runs of a sweep, and is told how they ended."""

    count: int
    """Of runs in all."""
    known: list[Row]
    """Those that are known from the start."""

    def next(self) -> Row | None:
        """The run to do next; ``None`` where there is no more."""

    def tell(self, row: Row) -> None:
        """Takes a run that has ended; one that was interrupted is not told."""


def choose(sweep: Sweep, folder: Path) -> Search:
    """The grid, or with ``--sweep_trials`` a search.

    Raises:
        MissingPackageError: optuna is not installed.
    """
    return Grid(sweep, folder) if sweep.options.sweep_trials is None else Trials(sweep, folder)


class Grid:
    """Every combination once."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        runs = [sweep.run(points) for points in sweep.grid()]
        self.known = [Row(run, folder / run.name) for run in runs]
        self.count = len(runs)
        self._left = iter(self.known)

    def next(self) -> Row | None:
        """The next combination."""
        return next(self._left, None)

    def tell(self, row: Row) -> None:
        """Changes nothing."""


class Trials:
    """A search by optuna's TPE sampler, whose record in the sweep's folder lets it go on."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise MissingPackageError(
                "--sweep_trials needs a package.", f"Install it: pip install '{PACKAGE}'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.folder, self.optuna = sweep, folder, optuna
        self.study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STORAGE))),
            direction="minimize" if less_is_better(sweep.metric) else "maximize",
            load_if_exists=True,
        )
        states = optuna.trial.TrialState
        trials = self.study.get_trials()
        self.count = max(sweep.options.sweep_trials or 0, len(trials))
        self.known = [row for trial in trials if trial.state == states.FAIL and (row := self._row(trial))]
        for row in self.known:
            row.state, row.reason = "failed", reason_in(row.folder / OUTPUT)
        self._earlier: Iterator[Any] = iter([trial for trial in trials if trial.state != states.FAIL])
        self._numbers: dict[str, int] = {}

    def next(self) -> Row | None:
        """What an earlier process has begun; then a new trial."""
        while True:
            trial = next(self._earlier, None)
            if trial is None:
                asked = len(self.study.get_trials(deepcopy=False))
                if asked >= self.count:
                    return None
                # A sampler of its own for each trial: the search that was interrupted goes on as it would have.
                with hushed(".*experimental", self.optuna.exceptions.ExperimentalWarning):
                    seed = self.sweep.options.sweep_seed + asked
                    self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                trial = self.study.ask({_name(each): self._distribution(each) for each in self.sweep.dimensions})
            if row := self._row(trial):
                self._numbers[row.run.name] = trial.number
                return row

    def tell(self, row: Row) -> None:
        """Hands a figure on, or that there is none."""
        value = row.figures.get(self.sweep.metric)
        number = self._numbers[row.run.name]
        if value is not None and math.isfinite(value):
            self.study.tell(number, value, skip_if_finished=True)
        else:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _row(self, trial: Any) -> Row | None:
        """The run of a trial; ``None`` where its values do not go together."""
        points = [self._point(dimension, trial.params[_name(dimension)]) for dimension in self.sweep.dimensions]
        try:
            run = self.sweep.run(points, trial.number)
        except ArgumentsError:
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
            return None
        return Row(run, self.folder / run.name)

    def _distribution(self, dimension: Dimension) -> Any:
        of = self.optuna.distributions
        if not isinstance(dimension, Range):
            return of.CategoricalDistribution(list(range(len(dimension.points))))
        if dimension.whole:
            return of.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return of.FloatDistribution(dimension.low, dimension.high, log=dimension.log)

    @staticmethod
    def _point(dimension: Dimension, value: Any) -> Point:
        return dimension.at(value) if isinstance(dimension, Range) else dimension.points[value]


def _name(dimension: Dimension) -> str:
    return "+".join(dimension.names)
