"""Upper limits of the batches of a call: settings alone, which the command line reads without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fk_reward.smc.reward_scale import AUTO
from fk_reward.value_checks import whole_number


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Upper limits of batches, for particles that do not fit into memory together.

    They say how a call is executed, not what it samples: the images are those of the undivided batch up to rounding.
    Each is None (everything at once), a number of at least 1, or `"auto"`: everything at once, and half as many after
    each `torch.OutOfMemoryError`, which is logged as a warning.

    Attributes:
        particle_batch_size: particles in one forward pass of the denoiser; guidance doubles the rows of each.
        decode_batch_size: latents decoded at once, at the scoring steps and at the end.
        reward_batch_size: images that the reward's model sees at once; a smaller `batch_size` of the reward's own
            holds. Rewards that compare the images of a prompt still compare all of them.

    Raises:
        TypeError: for something that is no integer, `"auto"` or None.
        ValueError: for a number below 1.

    Example:
        >>> BatchSizes(particle_batch_size=8, decode_batch_size="auto").reward_batch_size is None
        True
    """

    particle_batch_size: int | str | None = None
    decode_batch_size: int | str | None = None
    reward_batch_size: int | str | None = None

    def __post_init__(self) -> None:
        for name in batch_size_fields():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value == AUTO):
                vars(self)[name] = _checked_size(name, value)


def batch_size_fields() -> tuple[str, ...]:
    """Names of the fields of `BatchSizes`.

    Example:
        >>> batch_size_fields()[0]
        'particle_batch_size'
    """
    return tuple(f.name for f in fields(BatchSizes))


def _checked_size(name: str, value: object) -> int:
    try:
        return whole_number(name, value, minimum=1)
    except TypeError as error:
        raise TypeError(f'{name} should be an int, "auto" or None, got {value!r}.') from error
