"""Load models and tokenizers of Hugging Face checkpoints."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lens.errors import InputError, MissingExtraError, first_line
from lens.utils.progress import shown

_DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float64": "float64",
}


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    layer_by_layer: bool = False,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready for inference.

    Parameters
    ----------
    name : str or Path
        Folder of a Hugging Face checkpoint, or a hub id, also as ``"id@revision"``.
    revision : str, optional
        Branch, tag or commit of the hub id.
    dtype : str
        ``"auto"`` (as the checkpoint says), ``"float32"``, ``"bfloat16"``, ``"float16"``.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` to spread the model over
        what there is.
    trust_remote_code : bool
        Allow code that comes with the checkpoint to run.
    layer_by_layer : bool
        Leave the blocks on the disk, for a model larger than memory: `lens.probe` then holds the
        weights of one block at a time. Such a model can be probed, not trained or steered.

    Returns
    -------
    model : transformers.PreTrainedModel
        In evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.

    Raises
    ------
    MissingExtraError
        When transformers or torch is not installed.
    InputError
        When the checkpoint cannot be found or read, or an option is unknown.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "hf", "loading a model")
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype '{dtype}'; expected one of: {', '.join(_DTYPES)}")
    source, revision = _source(str(name), revision)
    _check_device(device)
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from lens.models.offload import open_by_blocks

    torch_dtype = dtype if dtype == "auto" else getattr(torch, _DTYPES[dtype])
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if layer_by_layer and device == "auto":
        raise InputError("layer_by_layer holds one block on one device; name it, such as 'cuda'")
    placement: Any = "auto" if device == "auto" else None
    model: Any

    def open_model(device_map: Any) -> Any:
        with quiet_bars(always=layer_by_layer):
            config = AutoConfig.from_pretrained(source, **options)
            return auto_class(config).from_pretrained(
                source, dtype=torch_dtype, device_map=device_map, **options
            )

    try:
        with quiet_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
        if layer_by_layer:
            _refuse_packed(source, options)
            return open_by_blocks(open_model, device=device).eval(), tokenizer
        model = open_model(placement)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_explain(source, error)) from error
    if device != "auto":
        model = model.to(device)
    return model.eval(), tokenizer


def auto_class(config: Any) -> Any:
    """Choose what loads a checkpoint: a decoder, the whole of a multimodal model, or an encoder."""
    import transformers as library
    from transformers.models.auto import modeling_auto

    kind, names = type(config), getattr(config, "architectures", None) or []
    masked: Any = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    pictures: Any = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    causal: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    named_causal = any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in names)
    if kind in masked and not named_causal and not getattr(config, "is_decoder", False):
        return library.AutoModel
    if kind in pictures and kind not in causal:
        return library.AutoModelForImageTextToText
    return library.AutoModelForCausalLM


def _refuse_packed(source: str, options: dict[str, Any]) -> None:
    """Refuse a checkpoint of packed weights, which are unpacked for the model as a whole."""
    from transformers import AutoConfig

    packed = getattr(AutoConfig.from_pretrained(source, **options), "quantization_config", None)
    if packed is not None:
        method = (
            dict(packed).get("quant_method", "packed") if isinstance(packed, dict) else "packed"
        )
        raise InputError(
            f"'{source}' holds {method} weights, which cannot be loaded layer by layer; load the "
            "whole model, or an unpacked checkpoint of it"
        )


@contextmanager
def quiet_bars(*, always: bool = False) -> Iterator[None]:
    """Keep the library's own progress bars to where ours are drawn, or hide them always."""
    import transformers

    logging: Any = transformers.utils.logging

    hidden = logging.is_progress_bar_enabled() and (always or not shown())
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()


def _source(name: str, revision: str | None) -> tuple[str, str | None]:
    """Split ``id@revision`` and refuse a path that does not exist."""
    path = Path(name).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise InputError(
                f"'{name}' is not a model folder: it has no config.json; expected a Hugging Face "
                "checkpoint (config.json, *.safetensors, tokenizer files)"
            )
        return str(path), revision
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path:
        raise InputError(f"model folder '{name}' does not exist; give a folder or a hub id")
    source, _, pinned = name.partition("@")
    if pinned and revision and pinned != revision:
        raise InputError(f"'{name}' names revision '{pinned}' but revision='{revision}' was given")
    return source, pinned or revision


def _check_device(device: str) -> None:
    """Refuse a device that is not there before anything is read."""
    import torch

    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(
            f"unknown device '{device}'; expected 'cpu', 'cuda', 'cuda:0', 'mps' or 'auto'"
        ) from error
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(kind, True):
        raise InputError(f"device '{device}' was asked for, but torch finds none; use 'cpu'")


def _explain(source: str, error: Exception) -> str:
    first = first_line(error)
    if Path(source).exists():
        return f"cannot load the checkpoint in '{source}': {first}"
    return (
        f"cannot load '{source}': it is not a folder here, and the hub did not give it ({first}). "
        "Give a local folder, or check the id, the network and your access to the model"
    )


_LENGTHS = ("max_position_embeddings", "n_positions", "seq_length")
_NO_LIMIT = 10**9  # what tokenizers write when they know of none is larger


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, int | None]:
    """Load a tokenizer without its model, and the most tokens that config and tokenizer allow."""
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
