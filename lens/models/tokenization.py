"""From rows of text to token ids, by the role of a row, and to padded batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from lens.errors import InputError
from lens.utils.settings import grouped, option

if TYPE_CHECKING:
    import torch

Role: TypeAlias = Literal["text", "user", "assistant"]

ROLES: tuple[Role, ...] = ("text", "user", "assistant")


@grouped()
class ChatOptions:
    """How prompts are put into the chat template; None leaves it to the tokenizer's template."""

    template: bool | None = option(None, "Use the chat template (default: where there is one).")
    system: str | None = option(None, "System message.")
    enable_thinking: bool | None = option(
        None, "Value of the template's enable_thinking flag.", off="no-thinking"
    )
    extra: Mapping[str, Any] = option({}, "Further variables of the template.", hidden=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, to be recorded with a result."""
        return {
            "template": self.template,
            "system": self.system,
            "enable_thinking": self.enable_thinking,
            "extra": dict(self.extra),
        }


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of one row.

    Attributes
    ----------
    ids : tuple of int
        All tokens, special ones included.
    pool_start, pool_stop : int
        Half-open range of positions to pool over.
    truncated : bool
        Whether tokens were cut off.
    """

    ids: tuple[int, ...]
    pool_start: int
    pool_stop: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch of encoded rows.

    Attributes
    ----------
    input_ids, attention_mask, position_ids : torch.Tensor
        (n, t) int64. Positions count real tokens from 0, whatever the padding.
    pool_mask : torch.Tensor
        (n, t) bool, the positions to pool over.
    """

    input_ids: "torch.Tensor"
    attention_mask: "torch.Tensor"
    position_ids: "torch.Tensor"
    pool_mask: "torch.Tensor"

    @property
    def inputs(self) -> dict[str, "torch.Tensor"]:
        """Tensors by the names that a model's forward has for them."""
        names = ("input_ids", "attention_mask", "position_ids")
        return {name: getattr(self, name) for name in names}


def uses_template(tokenizer: Any, chat: ChatOptions | None = None) -> bool:
    """Whether prompts go through the tokenizer's chat template."""
    chat = chat or ChatOptions()
    template = getattr(tokenizer, "chat_template", None)
    if chat.template and not template:
        raise InputError(
            "a chat template was asked for, but the tokenizer has none; "
            "use ChatOptions(template=False) or a tokenizer with a chat template"
        )
    used = bool(template) and chat.template is not False
    if not used and (chat.system or chat.enable_thinking or chat.extra):
        raise InputError("system, enable_thinking and extra need a chat template; none is in use")
    if used:
        named = template.values() if isinstance(template, dict) else [template]
        text = " ".join(map(str, named))
        wanted = [*chat.extra, *(["enable_thinking"] if chat.enable_thinking else [])]
        unknown = [key for key in wanted if key not in text]
        if unknown:
            raise InputError(
                f"the chat template does not know {', '.join(map(repr, unknown))}; "
                "remove the option or use a template that reads it"
            )
    return used


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str], *, chat: ChatOptions | None = None
) -> list[list[int]]:
    """Encode user prompts, ready for generation.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Tokenizer.
    prompts : sequence of str
        One user prompt each.
    chat : ChatOptions, optional
        Template, system message, thinking flag.

    Returns
    -------
    list of list of int
        Token ids; with a template they end in its generation prompt. A beginning-of-sequence
        token appears at most once.

    Raises
    ------
    InputError
        When an option does not fit the tokenizer or a prompt gives no tokens.
    """
    used = uses_template(tokenizer, chat)
    encoded: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        if used:
            ids = _ids(tokenizer, _render(tokenizer, _messages(prompt, chat), chat))
        else:
            ids = _plain(tokenizer, prompt)[0]
        if not ids:
            raise InputError(f"prompt {row} gives no tokens: {prompt!r}")
        encoded.append(ids)
    return encoded


def encode(
    tokenizer: Any,
    rows: Sequence[str],
    *,
    role: Role = "text",
    prompts: Sequence[str] | None = None,
    chat: ChatOptions | None = None,
    max_tokens: int | None = None,
    whole: bool = False,
) -> list[EncodedRow]:
    """Encode rows for a probe.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Tokenizer.
    rows : sequence of str
        Text, one row each.
    role : str
        ``"text"``: running text without a template, pooled over its tokens (the special tokens
        that the tokenizer adds are not pooled). ``"user"``: a user prompt under the chat
        template, pooled at its last token when the pooling is ``last``. ``"assistant"``: text in
        the assistant's turn after a user prompt, pooled over the positions that *predict* it,
        from the last prompt token to the one before the end.
    prompts : sequence of str, optional
        User prompts for ``"assistant"``; row i follows prompt ``i mod len(prompts)``.
    chat : ChatOptions, optional
        Template, system message, thinking flag.
    max_tokens : int, optional
        Cut text and assistant rows after this many tokens. A user prompt is never cut: its end
        is what matters.
    whole : bool
        Keep the special tokens that come after a text, which every token of an encoder sees; they
        are not pooled.

    Returns
    -------
    list of EncodedRow
        In the order of `rows`.

    Raises
    ------
    InputError
        When the role is unknown, prompts are missing, or a row cannot be used.
    """
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; expected one of: {', '.join(ROLES)}")
    if role == "assistant" and not prompts:
        raise InputError("role 'assistant' needs prompts=, the user prompts that text follows")
    if role == "text":
        encoded = [_text_row(tokenizer, row, whole) for row in rows]
    elif role == "user":
        ids = encode_prompts(tokenizer, rows, chat=chat)
        encoded = [EncodedRow(tuple(i), 0, len(i)) for i in ids]
    else:
        turns = cast("Sequence[str]", prompts)
        encoded = [
            _assistant_row(tokenizer, turns[i % len(turns)], row, chat)
            for i, row in enumerate(rows)
        ]
    for i, row in enumerate(encoded):
        if row.pool_stop <= row.pool_start:
            raise InputError(f"row {i} gives no tokens to pool over: {rows[i]!r}")
    if max_tokens is None:
        return encoded
    return [_cut(row, max_tokens, role, i) for i, row in enumerate(encoded)]


def pad(
    rows: Sequence[EncodedRow],
    *,
    pad_id: int = 0,
    side: Literal["left", "right"] = "right",
    device: Any = "cpu",
) -> Batch:
    """Pad rows to one length.

    Parameters
    ----------
    rows : sequence of EncodedRow
        Rows of the batch.
    pad_id : int
        Token that fills the padding; it is masked, so any valid id gives the same states.
    side : str
        ``"right"`` or ``"left"``.
    device : torch.device or str
        Where the tensors go.

    Returns
    -------
    Batch
        Ids, masks and explicit positions.

    Raises
    ------
    InputError
        When the side is unknown.
    """
    import torch

    if side not in ("left", "right"):
        raise InputError(f"unknown padding side {side!r}; expected 'left' or 'right'")
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    pool = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        offset = length - len(row.ids) if side == "left" else 0
        ids[i, offset : offset + len(row.ids)] = torch.tensor(row.ids)
        mask[i, offset : offset + len(row.ids)] = 1
        pool[i, offset + row.pool_start : offset + row.pool_stop] = True
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return Batch(ids.to(device), mask.to(device), positions.to(device), pool.to(device))


def pad_id_of(tokenizer: Any) -> int:
    """Token id to fill padding with: the tokenizer's, else end of sequence, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def _messages(prompt: str, chat: ChatOptions | None) -> list[dict[str, str]]:
    system = chat.system if chat else None
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt}]


def _render(
    tokenizer: Any,
    messages: list[dict[str, str]],
    chat: ChatOptions | None,
    *,
    generation: bool = True,
) -> str:
    options = dict(chat.extra) if chat else {}
    if chat is not None and chat.enable_thinking is not None:
        options["enable_thinking"] = chat.enable_thinking
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **options
        )
    except Exception as error:  # jinja raises whatever a template wants to raise
        raise InputError(f"the chat template refused the prompt: {error}") from error
    return str(text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text: a template writes its own special tokens, so none are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(tokenizer: Any, text: str) -> tuple[list[int], int, int]:
    """Tokens of plain text with the tokenizer's special tokens, and the range of the text."""
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    bare = _ids(tokenizer, text)
    added = len(ids) - len(bare)
    start = next((s for s in range(added + 1) if ids[s : s + len(bare)] == bare), 0)
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and ids[:2] == [bos, bos]:  # the text itself began with the token
        ids, start = ids[1:], max(start - 1, 0)
        if bare[:1] == [bos]:
            bare, start = bare[1:], 1
    return ids, start, start + len(bare)


def _text_row(tokenizer: Any, text: str, whole: bool) -> EncodedRow:
    ids, start, stop = _plain(tokenizer, text)
    # In a decoder an end-of-sequence token after the text changes no state before it: left out.
    return EncodedRow(tuple(ids if whole else ids[:stop]), start, stop)


def _assistant_row(
    tokenizer: Any, prompt: str, answer: str, chat: ChatOptions | None
) -> EncodedRow:
    if uses_template(tokenizer, chat):
        messages = _messages(prompt, chat)
        head = _render(tokenizer, messages, chat)
        turn = [*messages, {"role": "assistant", "content": answer}]
        whole = _render(tokenizer, turn, chat, generation=False)
        # Some templates put text between the generation prompt and the answer, such as an empty
        # thought; it belongs to the prompt. Where they rewrite the turn, the answer is appended.
        end = whole.find(answer, len(head)) if whole.startswith(head) else -1
        prompt_text = whole[:end] if answer and end >= 0 else head
        before = _ids(tokenizer, prompt_text)
        joint = _ids(tokenizer, prompt_text + answer)
    else:
        before = _plain(tokenizer, prompt + "\n")[0]
        joint = _plain(tokenizer, prompt + "\n" + answer)[0]
    if joint[: len(before)] != before:  # a token would straddle the border: keep the prompt's own
        joint = before + _ids(tokenizer, answer)
    if len(joint) == len(before):
        return EncodedRow(tuple(joint), 0, 0)
    return EncodedRow(tuple(joint), max(len(before) - 1, 0), len(joint) - 1)


def _cut(row: EncodedRow, max_tokens: int, role: Role, index: int) -> EncodedRow:
    if len(row.ids) <= max_tokens:
        return row
    behind = row.ids[row.pool_stop :] if role == "text" else ()
    stop = min(row.pool_stop, max_tokens - (len(behind) if role == "text" else 1))
    if role == "user" or stop <= row.pool_start:
        raise InputError(
            f"row {index} has {len(row.ids)} tokens, more than max_tokens={max_tokens}, and its "
            "prompt cannot be cut; raise max_tokens or shorten the row"
        )
    ids = row.ids[: max_tokens - len(behind)] + behind
    return EncodedRow(ids, row.pool_start, stop, truncated=True)
