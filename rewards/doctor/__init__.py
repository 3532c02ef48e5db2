"""The doctor: probes that a loaded reward must pass before its scores are trusted, and what to do where it fails."""

from __future__ import annotations

from fk_reward.rewards.doctor.examination import PROBES, Diagnosis, examine
from fk_reward.rewards.doctor.findings import Finding, Outcome, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe
from fk_reward.rewards.doctor.specimens import Specimens, drawn_specimens

__all__ = [
    "PROBES",
    "Diagnosis",
    "Finding",
    "Outcome",
    "Patient",
    "Probe",
    "Specimens",
    "drawn_specimens",
    "examine",
    "failed",
    "not_applicable",
    "passed",
]
