"""Results on disk, a JSON line each: a long benchmark can be stopped, resumed and shared between processes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fk_reward.durable_files import append_lines, read_json, read_json_lines, write_whole
from fk_reward.output_folder import usable_folder
from fk_reward.rewards import Reward

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
ANSWER_KEY = ("index",)
"""The field with the index of the sample that was answered."""
_MOST_CHANGES = 12  # that an error names


class ResultStore:
    """A folder with `settings.json` and one `results-*.jsonl` for each writing process.

    Args:
        folder: made where it is missing.
        settings: all that the results depend on, as JSON; must equal those that the folder was begun with. None to
            read what is there.
        writer: name of this process; two processes must not use the same one at a time.

    Attributes:
        folder: where the results are.
        settings: what the folder was begun with.

    Raises:
        NotADirectoryError: the folder is a file.
        ValueError: the folder holds results of other settings, and the message names the differences; or
            `settings.json` is damaged.
        FileNotFoundError: without settings, if the folder holds no results.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     ResultStore(folder, {"seed": 0}).append([{"prompt": 3, "correct": True}])
        ...     ResultStore(folder, {"seed": 0}).load()
        [{'prompt': 3, 'correct': True}]
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None, *, writer: str = "0") -> None:
        self.folder, self.writer = Path(folder), writer
        path = self.folder / SETTINGS_FILE
        if settings is not None and not path.exists():
            usable_folder(self.folder)
            self._refuse_results_of_unknown_settings()
            write_whole(path, json.dumps(settings, indent=2) + "\n")
        if not path.exists():
            raise FileNotFoundError(f"{self.folder} holds no results: {path.name} is missing.")
        self.settings = read_json(path, remedy="Choose another folder, or put back a copy of that file.")
        if settings is not None:
            refuse_changes(self.folder, self.settings, settings)

    def load(self, key: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Load all results so far, of all processes. A line that was cut off is skipped with a warning.

        Args:
            key: names of the fields that identify a result. Of several results with the same values, which two jobs on
                one folder can write, the first one counts, with a warning. Empty: all count.

        Raises:
            ValueError: a damaged line, or one that lacks a field of `key`; the message names file and line, and says
                what to do.
        """
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        repeated: list[str] = []
        for place, result in self._lines():
            if missing := [name for name in key if name not in result]:
                raise ValueError(f"{place} has no {', '.join(missing)}: it is not of this benchmark. Delete the line.")
            name = tuple(json.dumps(result[field]) for field in key) or (place,)  # JSON: lists cannot be hashed
            if name in found:
                repeated.append(place)
            found.setdefault(name, result)
        if repeated:
            more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
            logger.warning("%s%s: repeats an earlier result; the first one counts.", repeated[0], more)
        return list(found.values())

    def append(self, results: Sequence[Mapping[str, Any]], *, writer: str | None = None) -> None:
        """Add results in one write, which is on disk when this returns.

        Args:
            results: one dictionary each.
            writer: instead of the store's.

        Raises:
            OSError: it names the file, which is left as it was.
        """
        path = self.folder / f"results-{writer or self.writer}.jsonl"
        append_lines(path, [json.dumps(result) for result in results])

    # The protocol `runner.Store`, for the answers of a single method.

    def begin(self, _method: Any, /) -> None:
        """Do nothing: the settings were compared when the store was opened."""

    def missing(self, _method: Any, _samples: Sequence[Any], indices: Sequence[int], /) -> list[int]:
        """Those of some samples that have no answer."""
        done = {result["index"] for result in self.load(ANSWER_KEY)}
        return [index for index in indices if index not in done]

    def write(
        self, _method: Any, indices: Sequence[int], _samples: Sequence[Any], answers: Sequence[Mapping[str, Any]], /
    ) -> None:
        """Add answers, each with the index of its sample."""
        self.append([{"index": index, **answer} for index, answer in zip(indices, answers, strict=True)])

    def answers(self) -> list[dict[str, Any]]:
        """All answers in the order of the samples, each once.

        Raises:
            ValueError: no answers yet.
        """
        answers = self.load(ANSWER_KEY)
        if not answers:
            raise ValueError(f"{self.folder} holds no results yet.")
        return sorted(answers, key=lambda answer: answer["index"])

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """File and line of each result, and the result."""
        for path in sorted(self.folder.glob("results-*.jsonl")):
            for number, result in read_json_lines(path):
                yield f"{path}, line {number}", result

    def _refuse_results_of_unknown_settings(self) -> None:
        if any(self.folder.glob("results-*.jsonl")):
            raise ValueError(
                f"{self.folder} holds results, but {SETTINGS_FILE} is missing, so their settings are unknown. Choose "
                "another folder, or put back a copy of that file."
            )


def refuse_changes(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if a folder was begun with other settings.

    Args:
        folder: for the message.
        found: settings of the folder.
        wanted: requested settings.

    Raises:
        ValueError: they differ; the message names the differences.
    """
    if changes := settings_changes(found, wanted):
        raise ValueError(f"{folder} holds results of other settings ({changes}); choose another folder or remove it.")


def settings_changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """List the differences of two trees of settings, leaf by leaf; an empty text if there are none.

    Args:
        found: settings of a folder.
        wanted: requested settings.

    Example:
        >>> settings_changes({"seed": 0, "config": {"k": 4}}, {"seed": 0, "config": {"k": 8}})
        'config.k 4 -> 8'
    """
    before, after = flat_settings(found), flat_settings(wanted)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    changes = [f"{name} {before.get(name)!r} -> {after.get(name)!r}" for name in names]
    more = [f"{len(changes) - _MOST_CHANGES} more"] if len(changes) > _MOST_CHANGES else []
    return ", ".join(changes[:_MOST_CHANGES] + more)


def flat_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of settings by their paths.

    Example:
        >>> flat_settings({"seed": 0, "config": {"at": (0.5,)}})
        {'seed': 0, 'config.at.0': 0.5}
    """
    # Through JSON, as the settings on disk have been: a tuple equals the list that it became.
    return _flat(json.loads(json.dumps(tree)))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries and lists by their path: `{"a": {"b": [1]}}` to `{"a.b.0": 1}`."""
    if not isinstance(tree, dict | list) or (prefix and not tree):  # an empty list is a leaf
        return {prefix: tree}
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        name: leaf for key, branch in branches for name, leaf in _flat(branch, f"{prefix}.{key}".lstrip(".")).items()
    }


def weights_digest(holders: Iterable[Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights, names and order included.

    Args:
        holders: modules and rewards, as `held_weights` takes them.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> weights_digest([one]) == weights_digest([one]), weights_digest([one]) == weights_digest([other])
        (True, False)
    """
    digest = hashlib.sha256()
    for holder in holders:
        for name, tensor in held_weights(holder):
            digest.update(name.encode())
            # As bytes: NumPy has no bfloat16.
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def held_weights(holder: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module, or of all modules that a reward holds, however deep in rewards, lists and dicts.

    Of a LLaVA-Reward only the backbone and the active dimension count, so that the digest does not change with what
    other rewards have put onto the same backbone.

    Args:
        holder: module, reward, list, tuple, mapping or dataclass; anything else holds no weights.

    Example:
        >>> [name for name, _ in held_weights({"part": [nn.Linear(1, 1), 0.5]})]
        ['weight', 'bias']
    """
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward

    if isinstance(holder, nn.Module):
        yield from holder.state_dict().items()
    elif isinstance(holder, LlavaReward):
        yield from _llava_weights(holder)
    else:
        for part in _parts(holder):
            yield from held_weights(part)


def _parts(holder: Any) -> Iterable[Any]:
    if isinstance(holder, Mapping):
        return holder.values()
    if isinstance(holder, Reward) or (is_dataclass(holder) and not isinstance(holder, type)):
        return vars(holder).values()
    return holder if isinstance(holder, list | tuple) else ()


def _llava_weights(reward: Any) -> Iterator[tuple[str, Tensor]]:
    """The backbone as it is without adapters, and the checkpoints of the active dimension and its noise bands."""
    for name, tensor in reward.model.backbone.state_dict().items():
        if ".lora_" not in name:  # PEFT renames a layer when an adapter wraps it; the digest must not depend on that
            yield name.replace(".base_layer.", "."), tensor
    key = next(key for key, config in reward.model.configs.items() if config is reward.config)
    for one in (key, *reward.band_keys):
        checkpoint = reward.model.checkpoint(one)
        for part in ("lora", "projector", "head"):
            yield from getattr(checkpoint, part).items()
        if checkpoint.config.noise_band is not None:  # and a calibration is as good as weights
            calibration = checkpoint.config.calibration or {}
            yield "band", torch.tensor([*checkpoint.config.noise_band, *map(float, calibration.values())])
