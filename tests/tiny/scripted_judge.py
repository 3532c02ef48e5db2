"""A judge that answers by rules: always the same for the same pictures and text, and different for others."""

from __future__ import annotations

import json
from zlib import crc32

import numpy as np


class ScriptedEngine:
    """Answers every template of the package; keeps what it was asked in `calls`, one list of conversations a call."""

    def __init__(self, name="scripted"):
        self.name = name
        self.calls = []

    def generate(self, images, messages, *, sampling):
        self.calls.append(list(messages))
        return [self.answer(pictures, text_of(turns)) for pictures, turns in zip(images, messages, strict=True)]

    def weigh(self, images, messages, *, openings, candidates, ending=""):
        """Log-probabilities that follow from the picture, the text and the opening."""
        self.calls.append(list(messages))
        rows = []
        for pictures, turns, opening in zip(images, messages, openings, strict=True):
            seed = pictures[0].tobytes() + f"{text_of(turns)} {opening}".encode()
            rows.append([-3 * crc32(seed + candidate.encode()) / 2**32 for candidate in candidates])
        return rows

    def answer(self, pictures, text):
        if "<answer>" in text:
            first, second = (redness(picture) for picture in pictures)
            return f"<think>Redder is better.</think><answer>{1 if first >= second else 2}</answer>"
        if "First line must" in text:
            return "unsafe\nViolence" if redness(pictures[0]) > 3 else "safe"
        if '"rating"' in text:
            return json.dumps(safety_verdict(pictures[0]))
        share = crc32(pictures[0].tobytes() + text.encode()) / 2**32
        if '"position"' in text:
            return json.dumps(question_marks(share))
        return json.dumps({"reason": "by rules", "alignment": 1 + 9 * share, "quality": 10 - 9 * share**2})


def text_of(messages):
    return " ".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")


def redness(picture):
    pixels = np.asarray(picture, dtype=float)
    return pixels[..., 0].mean() - pixels[..., 2].mean()


def safety_verdict(picture):
    """Red things are dangerous."""
    if redness(picture) > 3:
        return {"rating": "Unsafe", "category": "O2: Violence or cruelty", "rationale": "Much red."}
    return {"rating": "Safe", "category": "NA: none", "rationale": "Little red."}


def question_marks(share):
    """Six marks, the digits of the share in base 3."""
    keys = ("objects", "count", "colour", "position", "action", "style")
    return {key: int(share * 3 ** (place + 1)) % 3 for place, key in enumerate(keys)}
