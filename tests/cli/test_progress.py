"""The progress of a command over prompts."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from fk_reward.cli import progress as module
from fk_reward.cli.progress import PromptProgress, duration
from fk_reward.terminal import Console


class Pipe:
    """A pipeline that steps through its bar, in either way in which Diffusers does."""

    def __init__(self, *, iterates=False):
        self.pipe, self.iterates = SimpleNamespace(), iterates

    def set_progress_bar_config(self, **config):
        self.config = config

    def __call__(self, num_steps):
        if self.iterates:
            return list(self.pipe.progress_bar(range(num_steps)))
        with self.pipe.progress_bar(total=num_steps) as bar:
            for _ in range(num_steps):
                bar.set_postfix(reward="1", refresh=False)
                bar.update()
            bar.close()
        return list(range(num_steps))


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 100 columns, as text."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, markup=False, legacy_windows=False)
    monkeypatch.setattr(module, "open_console", lambda **_: console)
    return text


@pytest.mark.parametrize("iterates", [False, True])
def test_a_terminal_shows_what_runs_and_how_far_it_is(screen, iterates):
    pipe, progress = Pipe(iterates=iterates), PromptProgress(3, 1)
    with progress.watch(pipe):
        for number, text in ((2, "a [red] circle"), (3, "a star")):
            with progress.prompt(number, text):
                assert pipe(4) == [0, 1, 2, 3]
    shown = screen.getvalue()
    assert "2 of 3: a [red] circle" in shown and "3 of 3: a star" in shown
    assert "3/3" in shown and "4/4" in shown and "left" in shown
    assert not hasattr(pipe.pipe, "progress_bar"), "the pipeline's own bar is back"


def test_after_an_error_the_bar_of_the_pipeline_is_back(screen):
    pipe, progress = Pipe(), PromptProgress(1, 0)
    with pytest.raises(KeyboardInterrupt), progress.watch(pipe), progress.prompt(1, "a star"):
        raise KeyboardInterrupt
    assert not hasattr(pipe.pipe, "progress_bar")
    assert "1/1" not in screen.getvalue()


def test_a_log_file_gets_a_line_for_each_prompt(capsys, monkeypatch):
    clock = iter((0.0, 75.0, 100.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    pipe, progress = Pipe(), PromptProgress(3, 1)
    with progress.watch(pipe):
        for number, text in ((2, "a circle"), (3, "a\x1b star")):
            with progress.prompt(number, text):
                pass
    assert pipe.config == {"disable": True}
    assert capsys.readouterr().err.splitlines() == [
        "2 of 3: a circle (1:15 min, about 1:15 min left)",
        r"3 of 3: a\x1b star (1:40 min)",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599.7, "1:00 h"), (36061, "10:01 h")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said
