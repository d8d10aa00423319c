"""The network that grades pictures."""

from dataclasses import dataclass

from sdjax.config.checks import require, require_valid


@dataclass(frozen=True)
class Judge:
    """A small residual network with two heads: what is drawn, and in which style."""

    image_size: int  # pixels, square
    channels: tuple[int, ...]  # of each level; every level but the first halves the map
    groups: int  # of the norms
    embedding_dim: int  # of the space in which a picture is near its concept
    shades: int  # of red, of green and of blue that the style's palette tells apart
    concepts: int
    styles: int
    patch: int = 2  # pixels, folded into channels first

    def __post_init__(self) -> None:
        require_valid(self)
        unit = self.patch * 2 ** (len(self.channels) - 1)
        require(
            self.image_size % unit == 0,
            f"Judge: image_size {self.image_size} is no multiple of {unit}, the patch and the "
            f"{len(self.channels) - 1} halvings",
        )
        for width in self.channels:
            require(
                width % self.groups == 0,
                f"Judge: {width} channels are no multiple of groups {self.groups}",
            )
