"""Names of models: embedded, aliases, hub ids and folders; errors before the hub is asked; states of folders."""

from __future__ import annotations

import os

import pytest

from fk_reward import models
from fk_reward.models import ALIASES, EMBEDDED_MODELS, WITHDRAWN, check_source, file_state, model_source, resolve_model


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_an_embedded_model_is_a_folder_of_the_package(name):
    assert resolve_model(name) == str(EMBEDDED_MODELS[name])
    assert EMBEDDED_MODELS[name].is_dir()
    assert EMBEDDED_MODELS[name].name == name


def test_the_default_reward_is_embedded():
    assert models.DEFAULT_EMBEDDED_REWARD in EMBEDDED_MODELS


def test_an_embedded_model_whose_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(EMBEDDED_MODELS, "shapes-sd", tmp_path / "shapes-sd")
    with pytest.raises(FileNotFoundError, match=r"'shapes-sd' should be at .*; reinstall fk-reward"):
        resolve_model("shapes-sd")


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_a_repository_that_is_still_there(alias):
    assert model_source(alias, "a pipeline") == ALIASES[alias]
    assert ALIASES[alias] not in WITHDRAWN


@pytest.mark.parametrize("name", WITHDRAWN)
def test_a_repository_that_was_deleted_names_its_copy(name):
    with pytest.raises(ValueError, match=f"use '{WITHDRAWN[name]}'"):
        resolve_model(name)


def test_hub_ids_and_folders_stay_as_they_are(tmp_path):
    assert model_source("owner/name", "a pipeline") == "owner/name"
    assert model_source(tmp_path, "a pipeline") == str(tmp_path)


@pytest.mark.parametrize("source", ["/no/folder", "./nowhere", "a/b/c", "two words"])
def test_what_is_neither_a_folder_nor_a_hub_id(source):
    with pytest.raises(FileNotFoundError, match=r"expected the folder of a backbone or a hub id .* no such folder"):
        check_source(source, "a backbone")


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "weights.bin"
    file.touch()
    with pytest.raises(FileNotFoundError, match="that is a file"):
        check_source(file, "a backbone")


def test_the_state_of_a_folder_changes_with_its_files(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1")
    states = [file_state(tmp_path)]
    (tmp_path / "config.json").write_text("{}")
    states.append(file_state(tmp_path))
    os.utime(file, ns=(0, 2**62))
    states.append(file_state(tmp_path))
    assert len(set(states)) == 3
    assert file_state(tmp_path) == states[-1]
    assert file_state("owner/name") == "owner/name"
