"""Say what lens understands of a model: its blocks, and the sites where states can be read."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lens.models.blocks import locate, looks_ahead
from lens.models.pooling import site_module
from lens.models.sites import resolve_sites


@dataclass(frozen=True, slots=True)
class Site:
    """A place where states can be read: the output of a module."""

    name: str
    module: str
    kind: str


@dataclass(frozen=True, slots=True)
class Description:
    """What lens understands of a model.

    Attributes
    ----------
    model, type : str
        Class of the model, and the type its config names.
    direction : str
        ``"decoder"``, or ``"encoder"`` where a token sees those after it.
    blocks : str
        Dotted name of the list of blocks.
    n_blocks, width, parameters : int
        Number of blocks, width of the residual stream, number of parameters.
    sites : tuple of Site
        In the order of the forward pass.
    """

    model: str
    type: str
    direction: str
    blocks: str
    n_blocks: int
    width: int
    parameters: int
    sites: tuple[Site, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a table for people to read."""
        size = f"{self.parameters / 1e6:.1f} M parameters"
        head = [
            f"{self.model} ({self.type}, {self.direction}), {size}",
            f"{self.n_blocks} blocks of width {self.width} in {self.blocks}",
        ]
        wide = max(len(site.name) for site in self.sites)
        names = max(len(site.module) for site in self.sites)
        rows = [f"  {s.name:<{wide}}  {s.module:<{names}}  {s.kind}" for s in self.sites]
        return "\n".join([*head, *rows])


def describe(model: nn.Module, *, blocks: str | None = None) -> Description:
    """Describe a model.

    Parameters
    ----------
    model : torch.nn.Module
        What `lens.models.load` returned, or any other; its weights are not looked at.
    blocks : str, optional
        Dotted name of the block list, when `lens.models.locate` cannot find it.

    Returns
    -------
    Description
        Blocks and sites.

    Raises
    ------
    InputError
        When the structure is not understood; the message lists the candidates.
    """
    parts = locate(model, blocks=blocks)
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for site in resolve_sites("all", len(parts.blocks)):
        module = site_module(parts, site)
        found.append(Site(site, names[id(module)], type(module).__name__))
    config: Any = getattr(model, "config", None)
    return Description(
        model=type(model).__name__,
        type=str(getattr(config, "model_type", "unknown")),
        direction="encoder" if looks_ahead(model) else "decoder",
        blocks=parts.blocks_name,
        n_blocks=len(parts.blocks),
        width=parts.width,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sites=tuple(found),
    )
