"""The scripts of `examples/shapes` can be imported by every test here."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _scripts_are_importable(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "examples" / "shapes")
        yield
