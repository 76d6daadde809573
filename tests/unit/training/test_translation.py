"""Self-translation: what is asked, shown, kept and refused; and a run of it on the sample world."""

import pytest

import lens
from lens.demo.languages import PIVOT
from lens.demo.models import load
from lens.demo.questions import questions, text
from lens.errors import InputError
from lens.training import translation as module
from lens.training.translation import TranslationOptions, self_translate

LANGS = (PIVOT, "spa_Latn", "zho_Hans")


@pytest.fixture(scope="module")
def world():
    model, tokenizer = load("chat")
    prompts = {code: [q.prompt for q in questions("train", code, 24)] for code in LANGS}
    texts = {code: text(code, 100) for code in LANGS}
    return model, tokenizer, prompts, texts


@pytest.fixture(scope="module")
def made(world):
    model, tokenizer, prompts, texts = world
    return self_translate(
        model,
        tokenizer,
        prompts,
        texts,
        translator=load("base")[0],
        options=TranslationOptions(batch_size=64, max_new_tokens=24),
    )


def test_a_model_translates_its_own_answers(world, made):
    from lens.demo.questions import is_correct

    assert list(made.answers) == list(LANGS)
    assert all(len(rows) == 24 for rows in made.answers.values())
    for code in LANGS:
        asked = questions("train", code, 24)
        right = [
            bool(said) and is_correct(q, said, code)
            for q, said in zip(asked, made.answers[code], strict=True)
            if not q.english_only
        ]
        assert sum(right) > 0.8 * len(right), code
    assert set(made.kept) == set(LANGS[1:]) and min(made.kept.values()) > 0.8


def test_training_on_them_gives_the_language(world, made):
    model, tokenizer, prompts, _ = world
    space = lens.probe(model, tokenizer, prompts, pivot=PIVOT, role="text", pooling="last")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = lens.train(
        model, tokenizer, space, prompts, losses="self-translation", answers=made.answers, steps=30
    )
    assert result.log[-1]["loss_lm"] < 0.5 * result.log[0]["loss_lm"]
    from lens.data.language_id import identifier
    from lens.models.generation import generate

    asked = [q.prompt for q in questions("validation", "spa_Latn", 20)]
    found = identifier("default", list(LANGS)).identify(generate(model, tokenizer, asked))
    assert found.count("spa_Latn") > 10
    model.load_state_dict(before, strict=False)


def test_the_nearest_pairs_are_shown_last():
    pool = ["the cat sleeps", "a dog runs home", "the dog runs"]
    assert module._nearest(["the dog runs fast"], pool, 2, seed=0) == [[1, 2]]
    shown = module._context("x y", [1, 0], ["a", "b"], ["A", "B"], "{source} = {target}", " ")
    assert shown == "b = B a = A x y ="


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (" Vive en casa. Y luego", "Vive en casa."),
        ("住在家里。然后", "住在家里。"),
        ("one line\nand another", "one line"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_a_translation_is_one_sentence(said, expected):
    assert module._first_sentence(said) == expected


def test_what_does_not_fit_is_refused(world):
    model, tokenizer, prompts, texts = world
    few = {code: rows[:1] for code, rows in texts.items()}
    cases = [
        ((prompts, {PIVOT: ["a", "b"]}), {}, "no spa_Latn, zho_Hans"),
        ((prompts, {**texts, "spa_Latn": ["a"]}), {}, "not parallel"),
        ((prompts, few), {}, "examples: got 2, expected 1 to 1"),
        ((prompts, texts), {"pair": "{target}: {source}"}, "pair: got"),
        (({PIVOT: ["a"]}, texts), {}, "at least one other"),
    ]
    for args, options, message in cases:
        with pytest.raises(InputError, match=message):
            self_translate(model, tokenizer, *args, options=TranslationOptions(**options))


def test_the_command_refuses_what_does_not_go_together(tmp_path):
    from click.testing import CliRunner

    from lens.cli.app import main

    def run(*options):
        needed = ("--model", "x", "--space", "s", "--prompts", "p", "--out", str(tmp_path / "o"))
        return CliRunner().invoke(main, ["train", *needed, *options])

    assert run("--losses", "lens", "--texts", "t").exit_code == 2
    from lens.cli.train import TrainCommand

    def check(losses, **given):
        needed = {"model": "x", "space": "s", "prompts": "p", "out": "o"}
        TrainCommand(losses=losses, **needed, **given).check_rows()

    on_text = {"terms": [{"kind": "separate"}, {"kind": "lm", "rows": "text"}]}
    with pytest.raises(InputError, match="--texts: not for these losses"):
        check("lens", texts=tmp_path)
    with pytest.raises(InputError, match="--answers: not for these losses"):
        check(on_text, answers=tmp_path, texts=tmp_path)
    with pytest.raises(InputError, match="give --answers, or --texts"):
        check("self-translation")
    with pytest.raises(InputError, match="read plain text in the languages trained"):
        check(on_text)
    check("self-translation", answers=tmp_path)
    check("self-translation", texts=tmp_path)
    check(on_text, texts=tmp_path)
    check("lens")
    check("question-translation")
    with pytest.raises(InputError, match="--texts: not for these losses"):
        check("question-translation", texts=tmp_path)


def test_question_translation_is_trained_from_the_command_line(tmp_path):
    import json

    from click.testing import CliRunner

    from lens.cli.app import main
    from lens.demo.models import checkpoint_path

    rows = {code: [q.prompt for q in questions("train", code, 6)] for code in LANGS}
    path, space, out = (str(tmp_path / name) for name in ("p.jsonl", "s.safetensors", "out"))
    lines = [json.dumps({code: rows[code][i] for code in LANGS}) + "\n" for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    model = ("--model", str(checkpoint_path("chat")), "--quiet")
    done = CliRunner().invoke(main, ["probe", *model, "--data", path, "--out", space])
    assert done.exit_code == 0, done.output
    given = ("--space", space, "--prompts", path, "--steps", "2", "--out", out)
    done = CliRunner().invoke(main, ["train", *model, *given, "--losses", "question-translation"])
    assert done.exit_code == 0, done.output
    inputs = json.loads((tmp_path / "out" / "reproduce.json").read_text())["inputs"]
    plain = CliRunner().invoke(main, ["train", *model, *given[:-1], out + "2"])
    assert plain.exit_code == 0, plain.output
    other = json.loads((tmp_path / "out2" / "reproduce.json").read_text())["inputs"]
    assert set(inputs["answers"]) == set(LANGS) and "answers" not in other
    same = {code: inputs["prompts"][code] == other["prompts"][code] for code in LANGS}
    assert same == {code: code == PIVOT for code in LANGS}  # the others are instructed
