"""Callbacks of Ray Tune for the tests of studies, by their names in this module."""

from __future__ import annotations

from typing import Any

from ray import tune


class Seen(tune.Callback):
    """Keeps what it is told, in the order in which it is."""

    def __init__(self, raise_in: str | None = None, at: str | None = None) -> None:
        self.events: list[tuple[str, str]] = []
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.trials: dict[str, Any] = {}
        self.raise_in, self.at = raise_in, at

    def setup(self, **info: Any) -> None:
        self._tell("setup", str(info["total_num_samples"]))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert trial in trials
        self.trials[str(trial)] = trial
        self._tell("start", str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.results.setdefault(str(trial), []).append(result)
        self._tell("result", str(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("complete", str(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("error", str(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._tell("end", str(len(trials)))

    def _tell(self, event: str, of: str) -> None:
        self.events.append((event, of))
        if event == self.raise_in and self.at in (None, of):
            raise OSError(f"made to fail in {event}")


def make_seen() -> Seen:
    return Seen()


def make_nothing() -> None:
    return None


class NoCallback:
    pass


number = 3
