"""The card of a shared space: what it holds and how it was read, as a hub shows it."""

from typing import TYPE_CHECKING

import yaml

from lens.data.languages import english_name

if TYPE_CHECKING:
    from lens.space.space import Space

_TEXT = """\
# Language space

Means and spread of the states of a language model, per language and place, without any text: what
[lens](https://pypi.org/project/lens-lm/) needs to steer, train or inspect its languages.

```python
import lens
space = lens.Space.load("OWNER/NAME")     # this repository
print(space.summary())
```

{facts}

## Languages

| language | code | rows |
|---|---|---|
{languages}

## Places

{sites} (block outputs, counted from 0; `final` is after the final norm). Width {width}.

The hash of the content is `{sha256}`; it is checked when the file is loaded, and the model's when
it is used.
"""


def of(space: "Space") -> str:
    """Write the card of a space: a YAML head and Markdown.

    Parameters
    ----------
    space : Space
        Any space.

    Returns
    -------
    str
        Text of README.md.
    """
    about = space.about
    model = about.model
    codes = sorted({code.partition("_")[0] for code in space.languages})
    head = {
        "library_name": "lens-lm",
        "tags": ["lens", "language-space", "multilingual", "interpretability"],
        "language": codes,
    }
    facts = {
        "pivot": f"{english_name(space.pivot)} ({space.pivot})",
        "model": f"{model.get('model_type')}, {model.get('num_hidden_layers')} blocks of width "
        f"{model.get('hidden_size')}, weights `{str(model.get('weights_sha256'))[:16]}`"
        if model
        else "not recorded: made from states",
        "tokenizer": f"`{about.tokenizer_sha256[:16]}`"
        if about.tokenizer_sha256
        else "not recorded",
        "a row is": about.role,
        "pooling": about.pooling,
        "rows cut at": f"{about.max_tokens} tokens" if about.max_tokens else "not cut",
        "chat template": f"`{about.template_sha256[:16]}`" if about.template_sha256 else "none",
        "made by": f"lens {about.package_version}, seed {about.seed}",
    }
    rows = [
        f"| {english_name(code)} | `{code}` | {count} |" for code, count in space.counts.items()
    ]
    body = _TEXT.format(
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        languages="\n".join(rows),
        sites=", ".join(f"`{site}`" for site in space.sites),
        width=space.width,
        sha256=space.sha256,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}"
