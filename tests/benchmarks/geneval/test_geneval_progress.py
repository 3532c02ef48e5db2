"""Progress with the time left, on a terminal and in a log file."""

from __future__ import annotations

import io

from rich.console import Console

from fk_reward.benchmarks.geneval.progress import watch
from fk_reward.benchmarks.geneval.stages import Step


class Clock:
    """Each piece of work takes 50 seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, label, todo):
        for done in range(1, todo + 1):
            self.now += 50.0
            yield Step(label, done, todo)


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end():
    clock, file = Clock(), io.StringIO()

    def steps():
        yield from clock.work("unsteered: pictures", 7)
        yield from clock.work("fk: pictures", 2)

    watch(steps(), console=Console(file=file, width=80), clock=clock)
    assert file.getvalue().splitlines() == [
        "unsteered: pictures: 2/7, 4 min left",
        "unsteered: pictures: 4/7, 2 min left",
        "unsteered: pictures: 6/7, 1 min left",
        "unsteered: pictures: 7/7, 0 min left",
        "fk: pictures: 2/2, 0 min left",
    ]


def test_a_terminal_gets_bars():
    file = io.StringIO()
    steps = [Step("fk: pictures", 1, 2), Step("fk: verdicts", 2, 2)]
    watch(steps, console=Console(file=file, width=120, force_terminal=True, color_system=None))
    text = file.getvalue()
    assert all(part in text for part in ("fk: pictures", "1/2", "fk: verdicts", "2/2", "left"))


def test_a_quiet_console_still_works():
    seen = []
    watch((seen.append(done) or Step("a", done, 2) for done in (1, 2)), console=Console(quiet=True))
    assert seen == [1, 2]
