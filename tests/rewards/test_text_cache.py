"""Texts are encoded once: by CLIP rewards, exactly, and again as soon as anything changes on which they depend."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fk_reward.planning.meta_device import count_flops
from fk_reward.rewards import CLIPScore, load_reward
from fk_reward.rewards.text_cache import TextCache
from tests.tiny.open_clip import write_hps

TEXTS = ["a red circle", "blue square", "two green stars and 3 crosses"]


@pytest.fixture
def reward(tiny_clip):
    return CLIPScore.from_pretrained(tiny_clip)


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def encoded(reward, monkeypatch):
    """List of how many texts each pass of the text tower reads, from now on."""
    rows, encode = [], reward._encode
    monkeypatch.setattr(reward, "_encode", lambda tokens: rows.append(len(tokens["input_ids"])) or encode(tokens))
    return rows


def freshly(reward, images, prompts):
    """Scores with nothing kept from before."""
    reward.text_cache.clear()
    return reward(images, prompts)


BUILDERS = {
    "clipscore": lambda clip, folder: load_reward("clipscore", model=clip),
    "float16": lambda clip, folder: load_reward("clipscore", model=clip, torch_dtype=torch.float16),
    "pickscore": lambda clip, folder: load_reward("pickscore", model=clip, processor=clip),
    "hpsv2": lambda clip, folder: load_reward("hpsv2", weights=write_hps(folder / "hps.pt"), tokenizer=clip),
    "hpsv2.1": lambda clip, folder: load_reward("hpsv2.1", weights=write_hps(folder / "hps.pt"), tokenizer=clip),
    "shapes-clipscore": lambda clip, folder: load_reward("shapes-clipscore"),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_later_calls_encode_nothing_and_score_the_same_bits(build, tiny_clip, tmp_path, images, monkeypatch):
    reward = build(tiny_clip, tmp_path)
    rows = encoded(reward, monkeypatch)
    first = reward(images, TEXTS * 2)
    assert rows == [3]
    again = reward(images, TEXTS * 2)
    assert rows == [3]
    assert torch.equal(again, first)
    assert torch.equal(freshly(reward, images, TEXTS * 2), first)
    assert len(set(first.tolist())) == len(first)


def test_batches_of_one_prompt_share_its_embedding(reward, images, monkeypatch):
    rows = encoded(reward, monkeypatch)
    reward.batch_size = 2
    reward(images, TEXTS[0])
    assert rows == [1]


def check_scores_do_not_depend_on_the_past(reward, images):
    """Bit for bit: calls with other mixtures of the same texts leave no trace."""
    calls = [TEXTS * 2, [TEXTS[0]] * 6, TEXTS[::-1] * 2, [TEXTS[1], TEXTS[0]] * 3, TEXTS * 2]
    after_each_other = [reward(images, prompts) for prompts in calls]
    alone = [freshly(reward, images, prompts) for prompts in calls]
    assert all(map(torch.equal, after_each_other, alone))


def test_scores_do_not_depend_on_the_past(reward, images):
    check_scores_do_not_depend_on_the_past(reward, images)


def change_tokens(reward):
    reward.max_tokens = 4


def change_prefix(reward):
    reward.hessel = True


def load_other_weights(reward):
    state = reward.model.state_dict()
    reward.model.load_state_dict({name: tensor.flip(0) for name, tensor in state.items()})


def assign_other_weights(reward):
    state = reward.model.state_dict()
    reward.model.load_state_dict({name: tensor.flip(0) for name, tensor in state.items()}, assign=True)
    reward.model.requires_grad_(False)


def round_weights(reward):
    reward.to(dtype=torch.bfloat16).to(dtype=torch.float32)


def write_one_weight(reward):
    with torch.no_grad():
        reward.model.text_projection.weight[0, 0] += 3.0


def exchange_model(reward):
    reward.model = copy.deepcopy(reward.model)
    write_one_weight(reward)


def exchange_data(reward):
    parameter = reward.model.text_projection.weight
    parameter.data = parameter.data.flip(0)


CHANGES = [
    *(change_tokens, change_prefix, load_other_weights, assign_other_weights, round_weights, write_one_weight),
    *(exchange_model, exchange_data, lambda reward: reward.to(dtype=torch.float16)),
]


def check_a_change_is_seen(change, reward):
    before = reward._embed_prompts(TEXTS).float()
    change(reward)
    after = reward._embed_prompts(TEXTS).float()
    assert not torch.equal(after, before)
    reward.text_cache.clear()
    assert torch.equal(after, reward._embed_prompts(TEXTS).float())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, reward):
    check_a_change_is_seen(change, reward)


def test_autocast_has_its_own_embeddings(reward, images):
    plain = reward(images, TEXTS * 2)
    with torch.autocast("cpu", torch.bfloat16):
        lower = reward(images, TEXTS * 2)
        assert torch.equal(lower, freshly(reward, images, TEXTS * 2))
    assert not torch.equal(plain, lower)
    assert torch.equal(reward(images, TEXTS * 2), plain)


class ByPosition(TextCache):
    """Wrong: the first text of a call is the first text of the next."""

    def get(self, tokens, encode, *, towers):
        return super().get({"rows": torch.arange(len(tokens["input_ids"]))}, lambda _: encode(tokens), towers=towers)


class ForEver(TextCache):
    """Wrong: weights never change."""

    def _forget_if_changed(self, tensors):
        pass


class ByText(TextCache):
    """Wrong in the last bits: what was encoded among others is taken for what is encoded alone."""

    def get(self, tokens, encode, *, towers):
        together = super().get(tokens, encode, towers=towers)
        known = vars(self).setdefault("known", {})
        return torch.stack(
            [known.setdefault(ids.numpy()[:4].tobytes(), row) for ids, row in zip(tokens["input_ids"], together)]  # noqa: B905
        )

    def clear(self):
        super().clear()
        vars(self).pop("known", None)


def test_a_cache_by_position_is_noticed(reward, images):
    reward.text_cache = ByPosition()
    with pytest.raises(AssertionError):
        check_scores_do_not_depend_on_the_past(reward, images)


def test_a_cache_by_single_texts_is_noticed(reward, images):
    reward.text_cache = ByText()
    with pytest.raises(AssertionError):
        check_scores_do_not_depend_on_the_past(reward, images)


@pytest.mark.parametrize("change", [load_other_weights, round_weights, exchange_model, exchange_data])
def test_a_stale_cache_is_noticed(change, reward):
    reward.text_cache = ForEver()
    with pytest.raises(AssertionError):
        check_a_change_is_seen(change, reward)


def gradient(reward, images):
    leaf = images.clone().requires_grad_()
    reward(leaf, TEXTS * 2).sum().backward()
    return leaf.grad


def test_the_gradient_to_the_images_is_the_same(reward, images):
    first = gradient(reward, images)
    assert len(reward.text_cache) == 3
    assert torch.equal(gradient(reward, images), first)
    assert first.abs().max() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_was_kept_without_gradients_serves_with_them(mode, reward, images, monkeypatch):
    expected = gradient(reward, images)
    reward.text_cache.clear()
    rows = encoded(reward, monkeypatch)
    with mode():
        reward(images, TEXTS * 2)
    assert torch.equal(gradient(reward, images), expected)
    assert rows == [3]


def test_weights_that_learn_get_their_gradient_every_time(reward, images):
    with torch.no_grad():
        reward(images, TEXTS * 2)  # something to find
    weight = reward.model.text_projection.weight.requires_grad_()
    gradients = []
    for _ in range(2):
        reward(images, TEXTS * 2).sum().backward()
        gradients.append(weight.grad.clone())
        weight.grad = None
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)
    with torch.no_grad():
        before = reward(images, TEXTS * 2)
        torch.optim.SGD([weight], lr=1.0).step()  # no gradient left: nothing changes
        assert torch.equal(reward(images, TEXTS * 2), before)
        weight.grad = gradients[0]
        torch.optim.SGD([weight], lr=1.0).step()
        assert torch.equal(reward(images, TEXTS * 2), freshly(reward, images, TEXTS * 2))
        assert not torch.equal(reward(images, TEXTS * 2), before)


def test_nothing_is_kept_in_training_mode(reward, images, monkeypatch):
    rows = encoded(reward, monkeypatch)
    reward.model.train()
    for _ in range(2):
        reward(images, TEXTS * 2)
    assert rows == [3, 3]
    assert len(reward.text_cache) == 0


def test_weights_without_numbers_keep_nothing(reward, images):
    """So that operations are those of a whole scoring, however often they are counted."""
    scores = reward(images, TEXTS[0])
    assert count_flops(reward, 32, TEXTS[0]) == count_flops(reward, 32, TEXTS[0]) > count_flops(reward, 32, "a")
    assert torch.equal(reward(images, TEXTS[0]), scores)


def test_it_is_bounded_and_forgets_what_is_oldest():
    tower = torch.nn.Embedding(99, 2).eval().requires_grad_(False)
    cache, encodings = TextCache(max_texts=4), []

    def get(*ids):
        tokens = {"input_ids": torch.tensor(ids)}
        return cache.get(tokens, lambda t: encodings.append(ids) or tower(t["input_ids"]), towers=[tower])

    get(1, 2), get(3, 4), get(1, 2), get(5)
    assert len(cache) == 3
    get(1, 2), get(5)
    assert encodings == [(1, 2), (3, 4), (5,)]
    assert torch.equal(get(*range(9)), tower.weight[:9])
    assert len(cache) == 0, "more than fits at all is not kept"


def test_copies_begin_empty(reward, images):
    scores = reward(images, TEXTS * 2)
    assert len(pickle.loads(pickle.dumps(reward.text_cache))) == 0  # noqa: S301
    twin = copy.deepcopy(reward)
    assert len(twin.text_cache) == 0
    write_one_weight(twin)
    assert not torch.equal(twin(images, TEXTS * 2), scores)
    assert torch.equal(reward(images, TEXTS * 2), scores)


def test_a_steered_call_reads_its_prompt_once(monkeypatch):
    from fk_reward import FKSteeringPipeline

    reward = load_reward("shapes-clipscore")
    rows = encoded(reward, monkeypatch)
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=reward)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a photo of a red circle", num_particles=2, num_inference_steps=4)
    assert len(out.trace.steps) > 1
    assert rows == [1]
    pipe("a photo of a red circle", num_particles=2, num_inference_steps=4, reward_batch_size=1)
    assert rows == [1]
