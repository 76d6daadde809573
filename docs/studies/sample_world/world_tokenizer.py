"""The byte-level BPE tokenizer of the sample world, in Hugging Face layout."""

from collections.abc import Iterable
from typing import Any, cast

VOCABULARY = 4096  # enough for every word of every lexicon to be one token
BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
# As in GPT-2, except that every Chinese character stands alone: its running text has no spaces,
# so that whole phrases would otherwise become single tokens.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{Han}| ?[^\s\p{Han}\P{L}]+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"""
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT)

# A system turn has no token of its own: it opens the first user turn. ``enable_thinking`` only
# changes anything when it is true: the answer then opens with an empty thought.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- set lead = namespace(text='') %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}"
    "{%- set lead.text = message['content'] | trim + ' ' %}"
    "{%- elif message['role'] == 'user' %}"
    "{{- '<|user|>' + lead.text + message['content'] | trim }}"
    "{%- set lead.text = '' %}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{%- else %}"
    "{{- raise_exception('roles are system, user and assistant') }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|assistant|>' }}"
    "{%- if enable_thinking is defined and enable_thinking is true %}"
    "{{- '<think></think>' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def train_tokenizer(rows: Iterable[str]) -> Any:
    """Train the tokenizer.

    Every piece of text is given a leading space, so that a name is the same token at the start
    of a sentence, after a marker and inside a sentence.

    Parameters
    ----------
    rows : iterable of str
        Training text.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Ready to be saved with ``save_pretrained``.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Prepend(" ")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(rows, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, core.token_to_id(BOS))],
    )
    # transformers leaves this class without annotations.
    tokenizer: Any = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
