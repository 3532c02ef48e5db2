"""Rows of data, and what the records made of them say."""

from __future__ import annotations

from fk_reward.training import ImageSource, LabelledImage
from tests.training.pictures import noise


def simple(item):
    """What a record says, without where its images are."""
    digests = tuple(image.digest()[:8] for image in item.images)
    rest = item.label if isinstance(item, LabelledImage) else item.margin
    return item.prompts, digests, rest


def digest(seed):
    """That of `noise(seed)`."""
    return ImageSource(noise(seed)).digest()[:8]


def ratings(**columns):
    """Rows of ImageRewardDB for one prompt: the ratings of its images by dimension."""
    keys = {"alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating", "overall": "overall_rating"}
    num = len(next(iter(columns.values())))
    return [
        {"prompt_id": "p1", "prompt": "a cat", "image_path": f"img/{i}.png", "rank": i + 1}
        | {keys[name]: values[i] for name, values in columns.items()}
        for i in range(num)
    ]
