"""An examination: all probes on one reward, and what they found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fk_reward.registration import LoadedMapping, Registrations
from fk_reward.rewards.base import Reward
from fk_reward.rewards.doctor.findings import Finding, Outcome, failed, not_applicable
from fk_reward.rewards.doctor.patient import Patient, Probe
from fk_reward.rewards.doctor.specimens import Specimens, drawn_specimens

ENTRY_POINT_GROUP = "fk_reward.probes"
"""Entry-point group in which other packages register a `Probe`."""

BUILT_IN_PROBES: dict[str, str] = {
    "scores": "fk_reward.rewards.doctor.scores:SCORES",
    "prompt": "fk_reward.rewards.doctor.prompt:PROMPT",
    "polarity": "fk_reward.rewards.doctor.polarity:POLARITY",
    "blank": "fk_reward.rewards.doctor.blank:BLANK",
    "blur": "fk_reward.rewards.doctor.blur:BLUR",
    "batch": "fk_reward.rewards.doctor.batch:BATCH",
    "repeat": "fk_reward.rewards.doctor.repeat:REPEAT",
    "kinds": "fk_reward.rewards.doctor.kinds:KINDS",
    "crop": "fk_reward.rewards.doctor.crop:CROP",
    "dtype": "fk_reward.rewards.doctor.dtype:DTYPE",
    "adapter": "fk_reward.rewards.doctor.adapter:ADAPTER",
    "gradient": "fk_reward.rewards.doctor.gradient:GRADIENT",
    "cost": "fk_reward.rewards.doctor.cost:COST",
}
"""Name -> "module:attribute" of a `Probe`, in the order in which they are run."""

GATE = "scores"
"""Without scores no other probe is run."""

_SHAPES_SIDE, _SIDE = 64, 512


class ProbeLoadError(ImportError):
    """A registered probe cannot be imported, or what it names is no `Probe`."""


_REGISTERED = Registrations(BUILT_IN_PROBES, ENTRY_POINT_GROUP, ("probe", "probes"), ProbeLoadError)


class Probes(LoadedMapping[Probe]):
    """All probes by name: those of the package, and those that other packages register.

    Example:
        >>> PROBES["blur"].question
        'Does an image get a better score than a copy that is blurred beyond recognition?'
    """

    def checked(self, found: Any, described: str) -> Probe:
        """A probe.

        Raises:
            ProbeLoadError: anything else.
        """
        if not isinstance(found, Probe):
            raise ProbeLoadError(f"{described} must be a Probe, got {type(found).__name__}.")
        return found


PROBES = Probes(_REGISTERED)
"""Name -> probe."""


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found.

    Attributes:
        reward: name of the reward.
        findings: name of a probe -> what it found, in the order of the probes.
    """

    reward: str
    findings: dict[str, Finding]

    @property
    def is_healthy(self) -> bool:
        """Whether no probe failed."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Names of the probes that failed."""
        return [name for name, finding in self.findings.items() if finding.outcome is Outcome.FAIL]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings = [
            {"probe": name, **dataclasses.asdict(finding), "outcome": finding.outcome.value}
            for name, finding in self.findings.items()
        ]
        return {"reward": self.reward, "healthy": self.is_healthy, "findings": findings}


def examine(
    reward: Reward, *, specimens: Specimens | None = None, probes: Mapping[str, Probe] | None = None
) -> Diagnosis:
    """Ask a reward all questions of the doctor.

    Args:
        reward: on the device and in the dtype in which it will be used. It is as before afterwards.
        specimens: images and prompts; by default one coloured shape each, of 64 pixels for rewards whose weights are in
            the package and of 512 for others.
        probes: name -> probe; by default `PROBES`.

    Returns:
        The findings. What a probe raises of `RuntimeError`, `TypeError` and `ValueError` is a failure of the reward.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> from fk_reward.rewards.doctor import examine
        >>> diagnosis = examine(load_reward("shapes-verifier"))
        >>> diagnosis.is_healthy, diagnosis.findings["dtype"].observed
        (True, 'it has no weights.')
    """
    patient = Patient(reward, drawn_specimens(_side(reward)) if specimens is None else specimens)
    asked = PROBES if probes is None else probes
    gate = _finding(PROBES[GATE], patient)
    findings = {}
    for name in asked:
        if name == GATE:
            findings[name] = gate
        elif gate.outcome is Outcome.FAIL:
            findings[name] = not_applicable("there are no scores to look at.")
        else:
            findings[name] = _finding(asked[name], patient)
    return Diagnosis(reward.card.name, findings)


def _side(reward: Reward) -> int:
    # Of compositions, too, whose names hold those of their parts.
    return _SHAPES_SIDE if "shapes-" in reward.card.name else _SIDE


def _finding(probe: Probe, patient: Patient) -> Finding:
    try:
        return probe.examine(patient)
    except (RuntimeError, TypeError, ValueError) as error:
        return failed(
            f"{type(error).__name__}: {error}",
            remedy="The call itself failed: mend what the message says. docs/troubleshooting.md has the frequent ones.",
        )
