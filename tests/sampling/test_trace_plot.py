"""The lineage picture: what is in it, that nothing overlaps, that it needs no display."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import LineCollection

from fk_reward.sampling import trace_plot
from tests.sampling.random_traces import carry_labels, make_trace

FATES = ("dead", "alive", "returned", "best")


def axes_of(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def curves(figure):
    """Fate -> set of (column, slot of the ancestor, slot)."""
    collections = [c for c in axes_of(figure)["lineage"].collections if isinstance(c, LineCollection)]
    ends = {c.get_label(): [(s[0], s[-1]) for s in c.get_segments()] for c in collections}
    return {fate: {(round(a[0]), round(a[1]), round(b[1])) for a, b in pairs} for fate, pairs in ends.items()}


def expected_curves(trace, group):
    """Oracle: from the histories of a forward run."""
    places = {slot: place for place, slot in enumerate(trace.selected[group].tolist())}
    fate_of = {}
    histories = zip(*carry_labels(trace, group), strict=True)
    for final_slot, history in enumerate(histories):
        place = places.get(final_slot)
        rank = 1 if place is None else (3 if place == 0 else 2)
        for column in range(len(history) - 1):
            edge = (column, history[column], history[column + 1])
            fate_of[edge] = max(rank, fate_of.get(edge, 0))
    for column, step in enumerate(trace.steps[:-1]):
        for slot in range(trace.num_particles):
            parent = slot if step.ancestors is None else int(step.ancestors[group, slot])
            fate_of.setdefault((column, parent, slot), 0)
    return {name: {edge for edge, rank in fate_of.items() if rank == i} for i, name in enumerate(FATES)}


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize(("particles", "steps", "selected"), [(4, 5, 2), (1, 3, 1), (16, 4, 3), (5, 1, 1)])
def test_one_line_from_each_particle_to_its_ancestor_in_the_style_of_its_fate(group, particles, steps, selected):
    trace = make_trace(particles=particles, steps=steps, selected=selected, thumbnails=False)
    drawn = curves(trace.plot(prompt_index=group))
    assert drawn == expected_curves(trace, group)
    assert sum(map(len, drawn.values())) == particles * (steps - 1)


def test_saboteur_that_draws_another_prompt_is_found():
    trace = make_trace(thumbnails=False)
    assert curves(trace.plot(prompt_index=1)) != expected_curves(trace, 0)


def test_thumbnails_are_drawn_unchanged_and_in_place():
    trace = make_trace(particles=3, steps=4, size=(6, 12))
    images = axes_of(trace.plot(prompt_index=1))["lineage"].images
    assert len(images) == 3 * 4
    for image in images:
        left, right, bottom, top = image.get_extent()
        column, slot = round((left + right) / 2), round((bottom + top) / 2)
        expected = trace.steps[column].thumbnails[1, slot].permute(1, 2, 0).numpy()
        assert (image.get_array() == expected).all()
        box = image.get_window_extent()
        assert box.width / box.height == pytest.approx(2.0)


def test_dots_stand_in_where_there_are_no_thumbnails():
    axes = axes_of(make_trace(particles=3, steps=4, thumbnails=False).plot())["lineage"]
    assert not axes.images
    assert len(axes.lines) == 2 * 3 * 4  # a white halo and a coloured dot


@pytest.mark.parametrize(
    ("particles", "steps", "thumbnails"),
    [
        (1, 1, False),
        (1, 5, True),
        (2, 2, False),
        (4, 1, True),
        (4, 5, True),
        (6, 20, True),
        (16, 5, True),
        (16, 11, False),
    ],
)
def test_no_text_overlaps_another_or_leaves_the_picture(particles, steps, thumbnails):
    assert_tidy(make_trace(groups=1, particles=particles, steps=steps, thumbnails=thumbnails, prompt="a prompt " * 9))


def test_saboteur_with_a_narrow_margin_is_found(monkeypatch):
    monkeypatch.setattr(trace_plot, "MARGIN_RIGHT", 1.0)
    with pytest.raises(AssertionError):
        assert_tidy(make_trace())


def assert_tidy(trace):
    figure = trace.plot()
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in all_texts(figure)}
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
        assert [other for other in boxes if other is not text and box.overlaps(boxes[other])] == [], text


def all_texts(figure):
    axes = axes_of(figure)
    texts = [*figure.texts, *axes["lineage"].texts, axes["colorbar"].title, axes["ess"].xaxis.label]
    for name in ("reward", "ess"):
        texts += [axes[name].yaxis.label, *axes[name].get_legend().get_texts()]
    ticks = [*axes["ess"].get_xticklabels(), *(t for a in axes.values() for t in visible_labels(a))]
    texts += ticks
    return [text for text in texts if text.get_text() and text.get_visible()]


def visible_labels(axes):
    low, high = sorted(axes.get_ylim())
    return [
        tick.label1 if axes.get_label() != "colorbar" else tick.label2
        for tick in axes.yaxis.get_major_ticks()
        if low <= tick.get_loc() <= high and axes.axison
    ]


def test_panels_stand_under_the_columns():
    axes = axes_of(make_trace().plot())
    assert axes["lineage"].get_xlim() == axes["reward"].get_xlim() == axes["ess"].get_xlim()
    assert {round(axes[n].get_position().x0, 6) for n in ("lineage", "reward", "ess")} == {
        round(axes["ess"].get_position().x0, 6)
    }


def test_curves_show_the_numbers_of_the_trace():
    trace = make_trace()
    axes = axes_of(trace.plot(prompt_index=1))
    lines = {line.get_label(): line.get_ydata() for name in ("reward", "ess") for line in axes[name].lines}
    assert list(lines["best so far"]) == trace.best_so_far[1].tolist()
    assert list(lines["ESS"]) == [step.ess[1].item() for step in trace.steps]
    assert list(lines["mean"]) == pytest.approx([step.rewards[1].mean().item() for step in trace.steps])
    assert set(lines["threshold"]) == {0.5 * trace.num_particles}


def test_the_best_is_marked_and_steps_are_named():
    trace = make_trace(selected=2)
    texts = [text.get_text() for text in axes_of(trace.plot())["lineage"].texts]
    marked = [text for text in texts if "★" in text]
    best = trace.steps[-1].rewards[0, trace.selected[0, 0]].item()
    assert marked == [f"{best:.3f}  ★ best"]
    assert sum("no. 2" in text for text in texts) == 1
    assert [t for t in texts if t.startswith("step")] == ["step 0", "step 10", "step 20"]


def test_equal_rewards_can_be_drawn():
    base = make_trace(groups=1)
    steps = tuple(dataclasses.replace(step, rewards=torch.zeros(1, 4)) for step in base.steps)
    dataclasses.replace(base, steps=steps).plot().draw_without_rendering()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_writes_a_file(tmp_path, ending):
    path = tmp_path / f"lineage.{ending}"
    make_trace().plot(path)
    assert path.stat().st_size > 10_000


def test_pyplot_is_not_touched():
    before = set(Gcf.figs)
    figure = make_trace().plot()
    assert set(Gcf.figs) == before
    assert figure.canvas.manager is None


def test_a_prompt_that_is_not_there():
    with pytest.raises(IndexError, match="expected 0 to 1, got -1"):
        make_trace().plot(prompt_index=-1)
