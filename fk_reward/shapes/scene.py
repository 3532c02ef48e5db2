"""What a picture of the shapes world is made of."""

from __future__ import annotations

from dataclasses import dataclass

from fk_reward.shapes.palette import COLORS, EXTENTS, SHAPES


@dataclass(frozen=True)
class SceneObject:
    """One shape on the canvas; lengths are fractions of the canvas side.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        x: Centroid from the left, in [0, 1].
        y: Centroid from the top, in [0, 1].
        size: Radius of the circle that has the same area as the shape.
        rotation: Degrees, clockwise.

    Examples:
        >>> SceneObject("star", "red", x=0.5, y=0.5, size=0.1).extent > 0.1
        True
    """

    shape: str
    color: str
    x: float
    y: float
    size: float
    rotation: float = 0.0

    def __post_init__(self) -> None:
        """Checks the two names.

        Raises:
            ValueError: The shape or the colour is not of this world.
        """
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {self.shape!r}.")
        if self.color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}; got {self.color!r}.")

    @property
    def extent(self) -> float:
        """Radius of the smallest disc around the centroid that covers the shape."""
        return self.size * EXTENTS[self.shape]


@dataclass(frozen=True)
class Scene:
    """Objects on one canvas, none touching another."""

    objects: tuple[SceneObject, ...]
