"""Load a tokenizer without its model, for what can be told before any weight is read."""

import importlib.util
from pathlib import Path
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.models.loading import _explain, _source, quiet_bars

_LENGTHS = ("max_position_embeddings", "n_positions", "seq_length")
_NO_LIMIT = 10**9  # what tokenizers write when they know of none is larger


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, int | None]:
    """Load the tokenizer of a checkpoint and the length its model takes.

    Parameters
    ----------
    name, revision, trust_remote_code
        As in `lens.models.load`.

    Returns
    -------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer.
    longest : int or None
        Most tokens that config and tokenizer allow; None where neither says.

    Raises
    ------
    MissingExtraError
        When transformers is not installed.
    InputError
        When the checkpoint cannot be found or read.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf", "loading a tokenizer")
    source, revision = _source(str(name), revision)
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with quiet_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            config: Any = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_explain(source, error)) from error
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(text, key, None) for key in _LENGTHS]
    limits.append(getattr(tokenizer, "model_max_length", None))
    known = [int(n) for n in limits if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return tokenizer, min(known, default=None)
