"""Runs that are killed, resumed and shared: the same results, and nothing answered twice; progress."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fk_reward import durable_files
from fk_reward.benchmarks import image_store
from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_store import PromptFolder
from fk_reward.benchmarks.runner import Progress, watch
from tests.benchmarks.image_stage import RECORDS, StubJudge, draw_missing, finish_run, paint, tree
from tests.repository.layout import ROOT


class Killer:
    """Stops the program at a chosen moment: while drawing or judging, in the middle of a file, before a renaming."""

    def __init__(self, monkeypatch):
        self.moment, self.left, self.num_moments = None, None, 0
        renames, writes = ((Path, "rename"), (os, "replace")), ((durable_files, "_put"), (durable_files, "_write_all"))
        for owner, name in (*renames, *writes, (Path, "write_bytes"), (Path, "write_text")):
            cuts = (owner, name) not in renames
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name), cuts=cuts))

    def set(self, moment):
        self.left = moment

    def tick(self):
        self.num_moments += 1
        if self.left is not None:
            self.left -= 1
            return self.left < 0
        return False

    def guarded(self, write, *, cuts):
        def guard(path, content, **options):
            if self.tick():
                if cuts and not callable(content):
                    write(path, content[: len(content) // 2], **options)
                raise KeyboardInterrupt
            return write(path, content, **options)

        return guard

    def draw(self, prompt, index):
        if self.tick():
            raise KeyboardInterrupt
        return paint(prompt, index)


@pytest.fixture
def killer(monkeypatch):
    return Killer(monkeypatch)


def killed_and_finished(killer, root, moments, *, records=RECORDS):
    """Start the run again after each kill; how often it was killed."""
    kills = 0
    for moment in moments:
        killer.set(moment)
        try:
            finish_run(root, draw=killer.draw, records=records)
        except KeyboardInterrupt:
            kills += 1
    killer.set(None)
    finish_run(root, draw=killer.draw, records=records)
    return kills


def reported(root):
    write_report(root)
    return tree(root)


def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(killer, tmp_path):
    expected = reported(finish_run(tmp_path / "whole", draw=killer.draw))
    for seed in range(3):
        moments = np.random.default_rng(seed).integers(0, 12, 10)
        root = tmp_path / str(seed) / "whole"
        assert killed_and_finished(killer, root, moments.tolist()) >= 3
        assert reported(root) == expected


def test_every_single_moment(killer, tmp_path):
    records = RECORDS[:2]
    expected = tree(finish_run(tmp_path / "whole", draw=killer.draw, records=records))
    num_moments = killer.num_moments
    assert num_moments >= 10 * len(records)
    for moment in range(num_moments):
        root = tmp_path / str(moment)
        assert killed_and_finished(killer, root, [moment], records=records) == 1
        assert tree(root) == expected


def write_in_place(folder, metadata, images, *, note):
    """A careless version: straight into the folder, and whatever is there counts as finished."""
    (folder.path / "samples").mkdir(parents=True, exist_ok=True)
    (folder.path / "made.json").write_text("{}")
    (folder.path / "metadata.jsonl").write_text(image_store.json.dumps(metadata))
    for sample, image in enumerate(images):
        (folder.path / "samples" / f"{sample:04d}.png").write_bytes(image_store._png(image))


def trust(folder, name):
    return {} if (folder.path / f"{name}.json").exists() else None


def test_a_careless_writer_would_be_noticed(killer, tmp_path, monkeypatch):
    monkeypatch.setattr(PromptFolder, "write", write_in_place)
    monkeypatch.setattr(
        PromptFolder, "read_note", lambda self, name: {} if (self.path / "made.json").exists() else None
    )
    list(draw_missing(killer.draw, RECORDS, tmp_path / "whole"))
    num_moments, same = killer.num_moments, []
    for moment in range(num_moments):
        killer.set(moment)
        with pytest.raises(KeyboardInterrupt):
            list(draw_missing(killer.draw, RECORDS, tmp_path / str(moment)))
        killer.set(None)
        try:
            list(draw_missing(killer.draw, RECORDS, tmp_path / str(moment)))
            same.append(tree(tmp_path / str(moment)) == tree(tmp_path / "whole"))
        except ValueError:
            same.append(False)
    assert not all(same)


def test_finished_prompts_are_left_alone_and_damaged_ones_are_made_anew(tmp_path, caplog):
    finish_run(tmp_path)
    expected, made = tree(tmp_path), []

    def draw(prompt, index):
        made.append(index)
        return paint(prompt, index)

    image = tmp_path / "00001" / "samples" / "0000.png"
    image.write_bytes(image.read_bytes()[:-9])
    (tmp_path / "00002" / "metadata.jsonl").unlink()
    judge = StubJudge()
    finish_run(tmp_path, draw=draw, judge=judge)
    assert made == [1, 2]
    assert judge.seen == [RECORDS[1]["prompt"]] * 2 + [RECORDS[2]["prompt"]] * 2, "old verdicts count for old images"
    assert tree(tmp_path) == expected
    assert {record.getMessage()[-31:] for record in caplog.records} == {"this prompt will be made again."}


def test_a_folder_made_for_another_suite_is_refused(tmp_path):
    finish_run(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"00001 was made for 'a photo of a red cow', but .*'a photo of a dog'"):
        list(draw_missing(paint, [RECORDS[0], RECORDS[2]], tmp_path))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_processes_share_the_prompts(tmp_path, num_ranks):
    steps = []
    for rank in range(num_ranks):
        steps += list(draw_missing(paint, RECORDS, tmp_path / "shared", shard=(rank, num_ranks)))
    assert len(steps) == len(RECORDS), "each prompt once"
    list(draw_missing(paint, RECORDS, tmp_path / "alone"))
    assert tree(tmp_path / "shared") == tree(tmp_path / "alone")


SLOW_PAINTER = """
import sys, time
from pathlib import Path
from tests.benchmarks.image_stage import RECORDS, draw_missing, paint
def draw(prompt, index):
    time.sleep(0.02)
    return paint(prompt, index)
for _ in draw_missing(draw, RECORDS * 25, Path(sys.argv[1])): pass
"""


@pytest.mark.slow
def test_a_real_kill(tmp_path):
    root, records = tmp_path / "run", RECORDS * 25
    command = [sys.executable, "-c", SLOW_PAINTER, str(root)]
    # This process's own path: an installed package may be another checkout.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 240
        while len(list(root.glob("0*"))) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = [index for index, record in enumerate(records) if PromptFolder(root, index).is_finished(record)]
    assert 5 <= len(finished) < len(records)
    made = []
    list(draw_missing(lambda prompt, index: made.append(index) or paint(prompt, index), records, root))
    assert sorted(made + finished) == list(range(len(records))), "no prompt twice"
    list(draw_missing(paint, records, tmp_path / "whole"))
    assert tree(root) == tree(tmp_path / "whole")


class Clock:
    """Each piece of work takes 50 seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, label, todo):
        for done in range(1, todo + 1):
            self.now += 50.0
            yield Progress(label, done, todo)


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end():
    clock, file = Clock(), io.StringIO()

    def steps():
        yield from clock.work("unsteered: images", 7)
        yield from clock.work("fk: images", 2)

    watch(steps(), console=Console(file=file, width=80), clock=clock)
    assert file.getvalue().splitlines() == [
        "unsteered: images: 2/7, 4 min left",
        "unsteered: images: 4/7, 2 min left",
        "unsteered: images: 6/7, 1 min left",
        "unsteered: images: 7/7, 0 min left",
        "fk: images: 2/2, 0 min left",
    ]


def test_a_terminal_gets_bars():
    file = io.StringIO()
    steps = [Progress("fk: images", 1, 2), Progress("fk: verdicts", 2, 2)]
    watch(steps, console=Console(file=file, width=120, force_terminal=True, color_system=None))
    text = file.getvalue()
    assert all(part in text for part in ("fk: images", "1/2", "fk: verdicts", "2/2", "left"))


def test_a_quiet_console_still_works():
    seen = []
    watch((seen.append(done) or Progress("a", done, 2) for done in (1, 2)), console=Console(quiet=True))
    assert seen == [1, 2]
