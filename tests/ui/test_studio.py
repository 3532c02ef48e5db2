"""Runs of the page, without the page: stages, errors, a run that is left, two at once, and the snippet."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from fk_reward import FKSteeringPipeline, SteeringTrace
from fk_reward.rewards import REWARDS
from fk_reward.search import Pruning
from fk_reward.ui.studio import Request, Studio, snippet

SMALL = {"prompt": "a photo of a red circle", "num_particles": 3, "num_inference_steps": 4, "reward": "shapes-verifier"}


@pytest.fixture(scope="module")
def studio():
    return Studio(device="cpu")


def pixels(image):
    return np.asarray(image)


def test_a_run_tells_what_it_knows_as_it_goes(studio):
    told = list(studio.run(Request(**SMALL, seed=3)))
    assert told[0].stage == "loading shapes-sd with shapes-verifier"
    drawing = [progress for progress in told if progress.stage == "drawing"]
    assert [len(progress.steps) for progress in drawing] == sorted(len(progress.steps) for progress in drawing)
    assert drawing[0].steps == () and drawing[-1].steps[-1].final
    assert all(step.thumbnails is not None for step in drawing[-1].steps)
    last = told[-1]
    assert (last.stage, len(last.output.images), len(last.plain.images)) == ("done", 3, 3)
    trace = SteeringTrace.from_json(last.trace_file)
    assert len(trace.steps) == len(last.steps) and trace.prompts == (SMALL["prompt"],)


def test_plain_images_are_those_of_the_stock_pipeline(studio):
    *_, last = studio.run(Request(**SMALL, seed=3))
    stock = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-verifier").pipe
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(3 + k) for k in range(3)]
    images = stock(
        [SMALL["prompt"]] * 3, num_inference_steps=4, guidance_scale=3.0, eta=1.0, generator=generators
    ).images
    found = sorted(pixels(image).tobytes() for image in last.plain.images)
    assert found == sorted(pixels(image).tobytes() for image in images)


def test_the_snippet_makes_the_same_image(studio):
    request = Request(**SMALL, seed=5, compare=False)
    *_, last = studio.run(request)
    names = {}
    exec(snippet(request).replace('out.images[0].save("best.png")', ""), names)  # noqa: S102 (our own text)
    assert (pixels(names["out"].images[0]) == pixels(last.best)).all()


def test_the_recommended_search_has_the_candidates_that_were_typed():
    request = Request(prompt="a star", search="recommended", num_particles=6)
    assert request.config() == Pruning(num_particles=6, keep=(4, 2), at=(0.4, 0.55))
    assert request.seeds() == list(range(6)) == list(range(request.config().num_particles))
    assert "search='recommended',\n    num_particles=6," in snippet(request)
    assert Request(prompt="a star", search="recommended").config().num_particles == 12


def test_a_snippet_says_what_was_typed():
    text = snippet(Request(prompt='say "hi"', reward='min(clipscore, "x")', num_particles=2, reward_scale="auto"))
    assert "reward_scale='auto'" in text and "range(0, 2)" in text
    compile(text, "snippet", "exec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "Write a prompt"),
        ({"num_particles": 0}, "num_particles should be at least 1"),
        ({"search": "fkk"}, "Unknown search 'fkk'"),
        ({"search": "pruning", "reward_scale": 2.0}, "'reward_scale' is no setting of Pruning"),
        ({"num_inference_steps": 0}, "steps should be at least 1"),
        ({"seed": -1}, "seed should be at least 0"),
        ({"reward": "beauty"}, "Unknown reward 'beauty'"),
        ({"model": "/no/where"}, "/no/where"),
    ],
)
def test_mistakes_are_raised_where_the_run_is_read(studio, change, message):
    with pytest.raises((ValueError, OSError), match="(?s).") as error:
        list(studio.run(Request(**{**SMALL, **change})))
    assert message in str(error.value)


def test_after_an_error_the_model_is_free_again(studio, monkeypatch):
    monkeypatch.setitem(REWARDS, "broken", "tests.ui.broken_reward:BROKEN")
    with pytest.raises(ZeroDivisionError):
        list(studio.run(Request(**{**SMALL, "reward": "broken"})))
    *_, last = studio.run(Request(**SMALL, compare=False))
    assert last.stage == "done"


def test_a_run_that_is_left_stops(studio):
    run = studio.run(Request(**{**SMALL, "num_inference_steps": 200}))
    for progress in run:
        if progress.steps:
            break
    before = threading.active_count()
    run.close()
    assert threading.active_count() == before - 1
    *_, last = studio.run(Request(**SMALL, compare=False))
    assert last.stage == "done"


def test_two_at_once_get_their_own_results(studio):
    requests = [Request(**SMALL, seed=seed, compare=False) for seed in (11, 12)]
    alone = [list(studio.run(request))[-1] for request in requests]
    together = {}

    def draw(request):
        together[request.seed] = list(studio.run(request))

    threads = [threading.Thread(target=draw, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request, expected in zip(requests, alone, strict=True):
        last = together[request.seed][-1]
        assert (pixels(last.best) == pixels(expected.best)).all()
        assert torch.equal(last.output.rewards, expected.output.rewards)
