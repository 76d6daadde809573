"""Settings models: from options to one object, every problem at once, keywords of functions."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from lens.errors import InputError
from lens.utils.settings import (
    Flat,
    Layers,
    Names,
    Numbers,
    Settings,
    Size,
    group,
    grouped,
    option,
    options_of,
    takes,
    validated,
)


@dataclass(frozen=True)
class Chat:
    """A group of flags."""

    template: bool | None = option(None, "Use the template.")
    system: str | None = option(None, "System message.")
    extra: dict[str, Any] = option({}, "Variables.", hidden=True)


class Adapter(Settings):
    """An adapter."""

    rank: int = option(..., "Rank.", ge=1)
    alpha: int | None = option(None, "Scale.", ge=1, key="adapter-alpha")


class Loss(Settings):
    """Loss."""

    preset: str = "plain"
    steps: int = option(100, "Optimizer steps.", ge=1)
    rate: float = option(1e-3, "Learning rate.", gt=0, also=("lr",))


def _ranked(value: Any) -> Any:
    return {"rank": value} if isinstance(value, int | str) else value


def _preset(value: Any) -> Any:
    if value == "fast" or (isinstance(value, dict) and value.get("preset") == "fast"):
        return {"steps": 5, **(value if isinstance(value, dict) else {"preset": value})}
    return {"preset": value} if isinstance(value, str) else value


class Fit(Settings):
    """Everything of a run."""

    layers: Layers = option("-2:", "Blocks.")
    langs: Names | None = option(None, "Languages.")
    strength: Numbers = option(1.0, "Length of the step.")
    batch: Literal["auto"] | Annotated[int, "n"] = option("auto", "Rows.")
    memory: Size | None = option(None, "Budget.")
    mode: Literal["full", "part"] = option("full", "What.")
    out: Path | None = option(None, "Folder.")
    loss: Annotated[Loss, BeforeValidator(_preset)] = group(
        "plain", "Losses.", base="preset", file=True, defaults=False
    )
    adapter: Annotated[Adapter, BeforeValidator(_ranked)] | None = group(
        None, "Adapter rank.", base="rank"
    )
    chat: Chat = group(Chat())


def test_names_keys_and_paths_of_options() -> None:
    found = options_of(Fit)
    assert list(found) == [
        "layers",
        "langs",
        "strength",
        "batch",
        "memory",
        "mode",
        "out",
        "loss",
        "steps",
        "rate",
        "adapter",
        "adapter_alpha",
        "template",
        "system",
    ]
    assert found["adapter_alpha"].path == ("adapter", "alpha")
    assert found["rate"].spellings == ("rate", "lr")
    assert found["mode"].choices == ("full", "part") and found["batch"].choices == ()
    assert found["template"].is_flag and found["template"].off == "no-template"
    assert found["steps"].default is None and found["loss"].default == "plain"


def test_text_and_python_values_give_the_same_settings() -> None:
    typed = validated(
        Fit,
        {
            "layers": "2:4",
            "langs": "en, es",
            "strength": "es=1.5,sw=2",
            "batch": "8",
            "memory": "12GB",
            "out": "x",
            "steps": "3",
            "adapter": "4",
            "adapter_alpha": "2",
            "template": True,
        },
    )
    given = validated(
        Fit,
        {
            "layers": ["2:4"],
            "langs": ["en", "es"],
            "strength": {"es": 1.5, "sw": 2},
            "batch": 8,
            "memory": "12GB",
            "out": Path("x"),
            "loss": {"steps": 3},
            "adapter": Adapter(rank=4, alpha=2),
            "chat": Chat(True),
        },
    )
    assert typed == given
    assert typed.strength == {"es": 1.5, "sw": 2.0} and typed.langs == ("en", "es")
    assert typed.batch == 8 and typed.out == Path("x")


def test_parts_of_a_group_change_what_its_base_gives() -> None:
    assert validated(Fit, {"loss": "fast"}).loss == Loss(preset="fast", steps=5)
    assert validated(Fit, {"loss": "fast", "rate": 1}).loss == Loss(preset="fast", steps=5, rate=1)
    assert validated(Fit, {"loss": "fast", "steps": 7}).loss.steps == 7
    assert validated(Fit, {"loss": "fast", "steps": None}).loss.steps == 5  # nothing was said
    assert validated(Fit, {"chat": Chat(system="s"), "template": False}).chat == Chat(False, "s")
    start = validated(Fit, {"loss": "fast", "system": "s", "layers": "1:"})
    changed = validated(Fit, {"steps": 7, "template": True}, start=start)
    assert changed.loss == Loss(preset="fast", steps=7)
    assert changed.chat == Chat(True, "s") and changed.layers == "1:"


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "loss.yaml"
    file.write_text("{step: 1, rate: -1}")
    with pytest.raises(InputError) as raised:
        validated(
            Fit,
            {
                "mode": "whole",
                "strength": "es=x",
                "memory": "lots",
                "batch": "many",
                "adapter_alpha": 0,
                "loss": file,
                "steps": 0,
                "langs": ",",
            },
            spelled={"mode": "--mode", "loss": "--loss", "steps": "run.yaml: steps"},
            unsaid=lambda one: f"--{one.key}",
        )
    lines = str(raised.value).splitlines()
    for start, words in (
        ("--mode: got 'whole', ", "'full' or 'part'"),
        ("strength: ", "one per language: spa_Latn=1.5"),
        ("memory: ", "expected for instance 12GB"),
        ("batch: got 'many'", "valid integer"),
        ("--adapter: missing", ""),
        ("adapter_alpha: got 0", "greater than or equal to 1"),
        (f"--loss: {file}: unknown key 'step'", "the nearest is 'steps'"),
        (f"--loss: {file}: rate: got -1", "greater than 0"),
        ("run.yaml: steps: got 0", "greater than or equal to 1"),
        ("langs: ", "names nothing"),
    ):
        assert sum(line.startswith(start) and words in line for line in lines) == 1, (start, lines)
    assert len(lines) == 10


def test_a_file_that_cannot_be_read_hides_no_other_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        validated(Fit, {"loss": str(tmp_path / "no.yaml"), "mode": "x"})
    first, second = str(raised.value).splitlines()
    assert first.startswith("loss: no config file") and second.startswith("mode: got 'x'")


@takes(Fit)
def fit(model: str, rows: Any = (), *, answers: Any = None, settings: Fit) -> tuple[Any, ...]:
    """Fit a model.

    Parameters
    ----------
    model : str
        What is fitted.

    Returns
    -------
    tuple
        What came in.
    """
    return model, rows, answers, settings


def test_a_function_takes_options_as_keywords() -> None:
    assert fit("m") == ("m", (), None, Fit())
    model, rows, answers, settings = fit("m", [1], answers=2, steps=np.int64(3), template=False)
    assert (model, rows, answers) == ("m", [1], 2)
    assert settings.loss.steps == 3 and settings.chat == Chat(False)
    again = fit("m", settings=settings, layers=[1, 2])[3]
    assert again.layers == "1,2" and again.loss.steps == 3
    assert fit("m", settings=settings)[3] is settings
    with pytest.raises(InputError, match="steps: got 0, expected a number greater"):
        fit("m", steps=0)
    with pytest.raises(
        TypeError, match=r"fit\(\): unknown option 'layer'; the nearest is 'layers'"
    ):
        fit("m", layer="x")
    with pytest.raises(TypeError, match="expected Fit"):
        fit("m", settings={"layers": "x"})


def test_signature_and_docstring_list_every_option() -> None:
    shown = inspect.signature(fit).parameters
    assert list(shown)[:3] == ["model", "rows", "answers"] and list(shown)[-1] == "settings"
    assert set(options_of(Fit)) <= set(shown) and "chat" in shown and "extra" not in shown
    assert shown["layers"].default == "-2:" and shown["steps"].default is None
    doc = inspect.getdoc(fit)
    assert doc is not None
    parameters = doc[: doc.index("Returns\n")]
    for name, one in options_of(Fit).items():
        assert f"\n{name} : " in parameters and f"\n    {one.field.description}" in parameters
    assert "\nmodel : str\n    What is fitted.\n" in parameters
    assert "\nmode : {'full', 'part'}, default 'full'\n" in parameters
    assert "What came in." in doc[doc.index("Returns\n") :]


def test_models_describe_their_fields() -> None:
    assert "Attributes\n----------\n" in (Fit.__doc__ or "")
    assert "\nlangs : tuple of str\n    Languages.\n" in (Fit.__doc__ or "")


def test_adding_a_field_is_all_it_takes_for_a_keyword() -> None:
    class More(Fit):
        warmth: float = option(0.5, "Share of warmth.", ge=0, le=1)

    @takes(More)
    def run(*, settings: More) -> float:
        """Run."""
        return settings.warmth

    assert run(warmth=0.25) == 0.25 and run() == 0.5
    assert inspect.signature(run).parameters["warmth"].default == 0.5
    assert "warmth : float, default 0.5\n    Share of warmth." in (inspect.getdoc(run) or "")
    with pytest.raises(InputError, match="warmth: got 2, expected a number less than or equal"):
        run(warmth=2)


class Nested(Flat):
    """Settings inside a larger file."""

    loss: Annotated[Loss, BeforeValidator(_preset)] = group("plain", "Losses.", base="preset")
    adapter: Annotated[Adapter, BeforeValidator(_ranked)] | None = group(
        None, "Adapter.", base="rank"
    )


def test_flat_settings_take_options_of_their_groups_wherever_they_stand() -> None:
    found = Nested.model_validate({"adapter": 2, "adapter-alpha": 3, "steps": 7})
    assert found.adapter == Adapter(rank=2, alpha=3) and found.loss.steps == 7
    assert Nested.model_validate(found.model_dump()) == found
    with pytest.raises(InputError) as raised:
        read_as_outer({"inner": {"adapter": 2, "adapter_alpha": 0, "stepz": 1}})
    assert "inner: adapter_alpha: got 0" in str(raised.value)
    assert "inner: unknown key 'stepz'; the nearest is 'steps'" in str(raised.value)


def read_as_outer(content: dict[str, Any]) -> Settings:
    class Outer(Settings):
        inner: Nested = option(Nested(), "Inside.")

    return validated(Outer, content)


@takes(Fit)
def plan(*, refused: Any = (), settings: Fit) -> tuple[Any, Fit]:
    """Plan."""
    return refused, settings


def test_a_function_that_asks_for_them_gets_the_options_that_do_not_fit() -> None:
    refused, settings = plan(mode="whole", steps=0, layers="1:")
    assert [name for name, _ in refused] == ["mode", "steps"] and settings == Fit(layers="1:")
    assert refused[1][1] == "got 0, expected a number greater than or equal to 1"
    assert "refused" not in inspect.signature(plan).parameters


def test_value_classes_refuse_by_name_and_by_position() -> None:
    @grouped()
    class Pair:
        first: int = option(1, "First.", ge=1)
        second: int = option(1, "Second.", ge=1)

    assert Pair(2, second=3) == Pair(first=2, second=3)
    for given in ((0,), (1, 0)):
        with pytest.raises(InputError, match=r"Pair: (first|second): got 0"):
            Pair(*given)
    with pytest.raises(InputError, match="Pair: second: got 'x'"):
        Pair(second="x")
