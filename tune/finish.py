"""The end of a search, however it came: the winner's test, report.{json,md,html}, winner.yaml, and the table in the terminal."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import RunError, out, say, tell
from data.corpus.validation import split_validation
from data.ground.durable import write_text
from data.records import Corpus
from evaluation.report.sound import made_sound
from evaluation.score_files import Score
from experiment import Experiment
from tune.deciding.ledger import Ledger, Row, ranked
from tune.deciding.proposals import num_left
from tune.keeping import sweep
from tune.report.page import page
from tune.report.render import findings, markdown, summary
from tune.report.report import build_report
from tune.report.show import in_text, terminal_table
from tune.report.winner import candidates, known_tests, test_exam, write_winner

if TYPE_CHECKING:
    from tune.search import Search

_PIPE_WIDTH = 140
"""Characters of the table where no terminal says how many it has."""


class Finish:
    def __init__(self, experiment: Experiment, values: dict[str, Any], arm: str, corpus: Corpus) -> None:
        """Raises UserError where exam.validation_share leaves one side without questions."""
        assert experiment.search is not None
        self._experiment, self._values = experiment, values
        self.arm, self.search = arm, experiment.search
        self.validation, self._test = split_validation(
            corpus, experiment.exam.validation_share, experiment.exam.validation_from(experiment.seed)
        )
        self.ledger = Ledger(experiment.folder)
        self.ended: str | None = None
        """Why the search ended before it was through."""

    def questions(self) -> dict[str, int]:
        """How many there are to choose by, and for the test."""
        parts = {"validation": self.validation.part("test"), "test": self._test.part("test")}
        return {name: len(part.questions) or len(part.choices) for name, part in parts.items()}

    def is_complete(self) -> bool:
        rows = self.ledger.rows()
        winner = self._winner(rows)
        return not num_left(self.search, self._experiment.seed, rows) and (winner is None or winner.id in self._tests(winner))

    def sit_test(self, search: "Search") -> None:
        """The winner, and what it started from, sit the test; once."""
        winner, base = self._winner(self.ledger.rows()), self.ledger.base()
        if winner is None or base is None:
            return
        say(f"the winner {winner.id} and the base sit the test: {self.questions()['test']:,} questions that chose nothing")
        arms = candidates(self._experiment.folder, winner, base)
        if why := next((why for arm in arms if (why := made_sound(Path(arm.path).parent))), None):
            raise RunError(why)
        search.sit_test(arms, test_exam(self._experiment, self._test))

    def write(self) -> dict[str, Any]:
        """The report, the winner's file, and the table on stdout."""
        rows, folder = self.ledger.rows(), self.ledger.folder
        winner = self._winner(rows)
        if not num_left(self.search, self._experiment.seed, rows):
            sweep(self._experiment.folder, self.search, rows, at_end=True)
        tests = self._tests(winner) if winner else {}
        report = build_report(self._experiment, self.arm, rows, self.questions(), self.ledger.base(), tests, self.ended)
        write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(folder / "report.md", markdown(report))
        write_text(folder / "report.html", page(report))
        tell(summary(report))
        tell(in_text(terminal_table(self.search, rows), out.width if out.is_terminal else _PIPE_WIDTH))
        for line in findings(report):
            tell(line)
        if winner:
            path = write_winner(folder, self._values, self.arm, self.search, winner)
            say(f"the winner's experiment: {path}; run it with python -m trainer {path}")
        say(f"report: {folder / 'report.html'}; report.md and report.json beside it")
        return report

    def _winner(self, rows: list[Row]) -> Row | None:
        best = ranked(rows, self.search.direction)
        return best[0] if best else None

    def _tests(self, winner: Row) -> dict[str, Score]:
        base = self.ledger.base()
        if base is None:
            return {}
        return known_tests(self.ledger.folder, candidates(self._experiment.folder, winner, base), test_exam(self._experiment, self._test))
