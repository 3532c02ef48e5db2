"""Steps that only show results: one that fails is a warning, and never ends the run that it was to show."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def cosmetic(step: str) -> Iterator[None]:
    """Go on after an error in the block, with a warning that names the step.

    For plots, previews and pages that show what is written already. Write the results first: what fails here is left
    out. Nothing that is computed may stand in the block.

    Args:
        step: what was to be done, as "drawing lineage-000.png".

    Example:
        >>> with cosmetic("drawing lineage.png"):
        ...     raise ValueError("no such font")
    """
    try:
        yield
    # Any exception: Matplotlib, PIL and font files raise of every kind, and hours of work stand behind the drawing.
    # MemoryError and KeyboardInterrupt are about the process and not about the drawing; they are not caught.
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (see above)
        logger.warning("%s failed, and was left out: %s: %s", step.capitalize(), type(error).__name__, error)
        logger.debug("Where %s failed:", step, exc_info=True)
