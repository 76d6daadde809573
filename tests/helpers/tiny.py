"""Random-weight models of every supported family and a small tokenizer, made in a moment."""

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 4}),
    "mistral": ("MistralConfig", GROUPED),
    "phi3": ("Phi3Config", GROUPED),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", {**SIZES, "n_layer": 3, "n_head": 4}),
    "gpt2": ("GPT2Config", {**SIZES, "n_positions": 128}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "falcon": ("FalconConfig", SIZES),
    "olmo2": ("Olmo2Config", GROUPED),
}
# Training is tested with these; some experts of the others change in the last bit with padding.
FAMILIES = tuple(CONFIGS)
CONFIGS |= {
    "olmo": ("OlmoConfig", SIZES),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 24},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**GROUPED, **EXPERTS, "head_dim": 8}),
}
PROBED = tuple(CONFIGS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def model(family: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """Make a random-weight model of width 32 with 3 blocks.

    Weights are larger than at the usual initialisation, so that states differ between rows.
    """
    name, values = CONFIGS[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**values, **changes})
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return made


def multimodal(*, seed: int = 0) -> Any:
    """Make a random-weight LLaVA: a longer stack of vision blocks beside a Llama."""
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16,
    }  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**GROUPED),
        image_token_index=VOCABULARY - 1,
    )
    return transformers.AutoModelForImageTextToText.from_config(config).eval()


def encoder(name: str = "Bert", *, seed: int = 0) -> Any:
    """Make a random-weight encoder of width 32 with 3 blocks."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**SIZES)
    made = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return made


@cache
def _backend() -> str:
    """Byte-level tokenizer without merges: one token per byte, then the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<think>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer.to_str()


def tokenizer(*, template: str | None = TEMPLATE) -> Any:
    """Make a byte-level tokenizer that puts ``<s>`` first, with or without a chat template."""
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    made.chat_template = template
    return made
