"""Stand-ins for the engines of `ocr`, `nudenet` and `geneval`: the same for the same pixels, different for others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np

from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge

GENEVAL_PROMPTS = {"a photo of a red circle": "red", "a photo of a blue square": "blue"}


class ScriptedReader:
    """Reads letters that follow from the pixels."""

    def read(self, image):
        number = crc32(image.tobytes())
        return ["".join("aehioprt"[(number >> (3 * place)) % 8] for place in range(10))]


class ScriptedSession:
    """A detector whose eighteen probabilities follow from the mean colours of the image's quarters."""

    def get_inputs(self):
        return [SimpleNamespace(name="images")]

    def run(self, outputs, inputs):
        pixels = inputs["images"].astype(np.float64)
        half = pixels.shape[-1] // 2
        places = [pixels[..., y : y + half, x : x + half].mean(axis=(2, 3)) for y in (0, half) for x in (0, half)]
        colours = np.stack(places, axis=2)  # (B, 3, 4)
        weights = 0.5 * np.cos(0.7 * np.arange(18)[:, None] * np.arange(1, 4))  # (18, 3)
        logits = np.einsum("kc,bcn->bkn", weights, colours - 0.5)
        logits[:, [2, 3, 4, 6, 14]] += 2  # the unsafe classes, so that some place is always one of theirs
        probabilities = 1 / (1 + np.exp(-logits))
        return [np.concatenate([np.zeros((len(pixels), 4, 4)), probabilities], axis=1).astype(np.float32)]


def write_geneval_records(path: Path) -> Path:
    """Records of the contract's prompts: two stop signs or clocks of a colour."""
    records = [
        {"tag": "colors", "include": [{"class": name, "count": 4, "color": color}], "prompt": prompt}
        for name, (prompt, color) in zip(("clock", "stop sign"), GENEVAL_PROMPTS.items(), strict=True)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def scripted_judge() -> GenEvalJudge:
    """Finds as many clocks as the image is red, and as many stop signs as it is blue; all are red."""

    def detect(images):
        found = []
        for image in images:
            means = np.asarray(image, dtype=float).mean(axis=(0, 1))
            clocks, signs = (1, 3) if means[0] > means[2] else (3, 1)
            one = Detection((0, 0, 4, 4), 0.95)
            found.append({"clock": [one] * clocks, "stop sign": [one] * signs})
        return found

    return GenEvalJudge(detect, color_classifier=lambda image, name, detections: ["red"] * len(detections))
