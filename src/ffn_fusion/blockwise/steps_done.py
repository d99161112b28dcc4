"""How far a walk through a model's blocks has come, so that a process that was killed resumes with the same bits."""

from __future__ import annotations

from typing import Any

from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.processes import current


class StepsDone:
    """The steps that are done, with the states after the last one.

    Processes keep in step, so none is more than one step ahead: the note before the last one is kept as well, and all
    processes resume from the step that all have reached.

    Args:
        journal: where steps are noted.
        states: the states that a step moves, by name.
    """

    def __init__(self, journal: Journal, **states: FileStates) -> None:
        self._journal, self._states = journal, states

    def resume(self) -> int:
        """Return the step to resume from; 0 if the states are not what they were."""
        last = self._journal.values
        known = {note["step"]: note for note in (last.get("before"), last) if note and "step" in note}
        step = min(current().gather([max(known, default=0)]))
        fine = step in known and self._restore(known[step])
        if not step or not all(current().gather([fine])):
            return 0
        return step

    def note(self, step: int) -> None:
        """Note that so many steps are done; every process comes here."""
        before = {name: value for name, value in self._journal.values.items() if name != "before"}
        stamps = {name: states.stamp() for name, states in self._states.items()}
        self._journal.write({"step": step, **stamps, "before": before or None})
        current().gather([None])  # no process is more than one step ahead

    def _restore(self, note: dict[str, Any]) -> bool:
        return all(states.restore(note[name]) for name, states in self._states.items())
