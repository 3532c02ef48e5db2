"""A small suite, a painter in place of a model, and a judge in place of a detector."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

from PIL import Image

from fk_reward import FKSteeringConfig
from fk_reward.benchmarks.drawing import Cost, RunSettings, make_manifest
from fk_reward.benchmarks.geneval.prompts import color_record, single_object_record
from fk_reward.benchmarks.image_store import ImageStore, PromptFolder, open_run, prompt_folders
from fk_reward.benchmarks.judging import judge_missing, score_missing, write_results
from fk_reward.benchmarks.runner import Share
from fk_reward.benchmarks.runner import run as run_task
from fk_reward.benchmarks.task import Task, Verdict
from fk_reward.rewards import CallableReward

RECORDS = (
    single_object_record("cow"),
    color_record("cow", "red"),
    single_object_record("dog"),
    color_record("dog", "blue"),
)
NUM_SAMPLES = 2
IDENTITY = {"judge": "a stub", "version": 1}
BRIGHTNESS = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")


def paint(prompt, index, *, shift=0):
    """Images of one colour each, which depend on the prompt and the sample alone; the cost is made up."""
    colors = [(40 * index + shift, 100 * sample, len(prompt)) for sample in range(NUM_SAMPLES)]
    return [Image.new("RGB", (8, 8), color) for color in colors], asdict(Cost(4, 8, 2, 2, 0.5))


class Painter:
    """A method whose images a function makes."""

    batch_size = 1

    def __init__(self, name, draw):
        self.name, self.draw, self.manifest = name, draw, {}

    def answer(self, indices, samples):
        return [self.draw(sample["prompt"], index) for index, sample in zip(indices, samples, strict=True)]


class BareStore(ImageStore):
    """Runs without a manifest."""

    def begin(self, method):
        pass


def task_of(records=RECORDS):
    return Task("shapes", records, judge=None)


def draw_missing(draw, records, root, *, shard=(0, 1)):
    """Draw what a run lacks."""
    return run_task(task_of(records), [Painter(root.name, draw)], BareStore(root.parent), share=Share(shard))


class StubJudge:
    """The second sample is correct, and so is everything about dogs."""

    def __init__(self, identity=IDENTITY):
        self.num_tests, self.seen, self.identity = 0, [], identity

    def self_test(self):
        self.num_tests += 1

    def judge_images(self, records, images):
        self.seen += [record["prompt"] for record in records]
        return [self.judge_image(record, image) for record, image in zip(records, images, strict=True)]

    def judge_image(self, record, image):
        right = image.getpixel((0, 0))[1] == 100 or "dog" in record["prompt"]
        return Verdict(right, "" if right else "wanted 1 of cow, found 0", {"cow": [[0, 0, 1, 1, 0.5]]})


def finish_run(root, *, draw=paint, records=RECORDS, judge=None):
    """All stages of one run; what is finished is left alone."""

    def checked_draw(prompt, index):
        assert not PromptFolder(root, index).is_finished(records[index]), f"prompt {index} is computed twice"
        return draw(prompt, index)

    list(draw_missing(checked_draw, records, root))
    folders = prompt_folders(root)
    list(judge_missing(folders, judge or StubJudge(), batch_size=3))
    list(score_missing(folders, "brightness", BRIGHTNESS))
    write_results(root)
    return root


def tree(root):
    """Every file below a folder with its content."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


SETTINGS = RunSettings(
    suite="shapes",
    model="a painter",
    method="fk",
    reward="brightness",
    search=FKSteeringConfig(num_particles=4),
    num_steps=10,
    num_samples=NUM_SAMPLES,
)
MODEL = {"pipeline": "Painter", "weights": "0123456789abcdef"}


def write_run(out, settings=SETTINGS, *, shift=0, judge=None, records=RECORDS):
    """A run with its manifest, made, judged and scored."""
    manifest = make_manifest(settings, task=task_of(records), model=MODEL, reward=None)
    open_run(out / settings.name, manifest, about={"command": "fk-reward geneval"})
    draw = partial(paint, shift=shift)
    return finish_run(out / settings.name, draw=draw, records=records, judge=judge)


class Fool(StubJudge):
    """Finds everything correct, and says so with signs that mean something in HTML."""

    def judge_image(self, record, image):
        verdict = super().judge_image(record, image)
        return replace(verdict, correct=True, reason="<script>alert('&')</script>")


def write_two_runs(out):
    """Unsteered: cow and red cow right in one of two samples, dogs in both. Steered: everything right."""
    write_run(out, SETTINGS.unsteered())
    write_run(out, shift=20, judge=Fool())
    return out
