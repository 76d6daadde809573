"""Settings of loading a model and of reading its hidden states."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lens.models.tokenization import ChatOptions, Role
from lens.utils.settings import Settings, Size, group, option

Pooling = Literal["mean", "last", "weighted"]


def _sites(value: Any) -> Any:
    """Split names of sites; a slice such as ``"-2:"`` or ``"2,4:"`` stays as it is."""
    named = isinstance(value, str) and "," in value and ("block" in value or "final" in value)
    return tuple(part.strip() for part in value.split(",")) if named else value


Sites = Annotated[str | int | tuple[str | int, ...], BeforeValidator(_sites)]
"""``all``, ``-2:``, ``block.3,final``, a number, or a list; see `lens.models.resolve_sites`."""


class TokenizerSettings(Settings):
    """Which checkpoint is read, where a verb needs its config or tokenizer alone."""

    model: str | None = option(None, "Folder of a checkpoint, or hub id.")
    revision: str | None = option(None, "Branch, tag or commit of a hub id (or ID@REVISION).")
    trust_remote_code: bool = option(False, "Run code of the checkpoint.")


class AnyModelSettings(TokenizerSettings):
    """Which model, and how it is loaded, where a verb can do without one."""

    device: str = option("cpu", "cpu, cuda, mps or auto.")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16.")

    def load(self, **more: Any) -> tuple[Any, Any]:
        """Load the model and its tokenizer; ``more`` goes to `lens.models.load`."""
        from lens.models.loading import load

        return load(
            str(self.model),
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            **more,
        )


class ModelSettings(AnyModelSettings):
    """Which model, and how it is loaded."""

    model: str = option(..., "Folder of a checkpoint, or hub id.")


class CaptureSettings(Settings):
    """How rows of text run through a model, and which of its states are pooled."""

    sites: Sites = option("all", "Where to read: all, -2:, block.3,final, ...")
    pooling: Pooling = option("mean", "Which positions of a row count, and how much.")
    role: Role = option("text", "What a row is to the model.")
    chat: ChatOptions | None = group(None, "Options of the chat template.")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = option(
        "auto", "Rows per batch, or auto; halved when memory runs out."
    )
    max_tokens: int | None = option(None, "Cut rows after this many tokens.", ge=1)
    max_memory: Size | None = option(
        None,
        "Such as 12GB, for weights, activations and states: smaller batches keep it.",
        metavar="SIZE",
    )
    layer_by_layer: bool | None = option(
        None,
        "Run one block after another and hold the weights of one at a time, for a model larger "
        "than memory (default: where the model was loaded so).",
    )
    row_offset: int = option(0, "Id of the first row, where the rows are one shard of more.", ge=0)
    blocks: str | None = option(
        None, "Dotted name of the list of blocks, where it cannot be found by structure."
    )
    n_threads: int | None = option(None, "Threads of the C core.", ge=1, key="threads", short="j")
    padding_side: Literal["right", "left"] = option(
        "right", "Side of padding; the result is the same to rounding.", hidden=True
    )
    progress: bool | None = option(
        None, "Show a progress bar; by default on a terminal only.", hidden=True
    )
