"""The sample world's tokenizer, training and shipped checkpoints."""

import json
from pathlib import Path

import pytest

from lens.demo.languages import LANGUAGES, PIVOT
from lens.demo.lexicon import lexicon
from lens.demo.questions import PEOPLE, is_correct, questions, text
from lens.errors import InputError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from lens.demo.models import CHECKPOINTS, checkpoint_path, load
from tests.helpers.studies import load_study

training = load_study("sample_world/train_world")
TrainConfig, mixtures, train = training.TrainConfig, training.mixtures, training.train

SIZE_LIMIT = 16 * 2**20  # bytes, all three checkpoints together


@pytest.fixture(scope="module")
def chat() -> tuple:
    return load("chat")


@pytest.fixture(scope="module")
def mixed() -> tuple:
    return load("mixed")


def ask(model: object, tokenizer: object, prompts: list[str]) -> list[str]:
    """Greedy answers to several prompts, padded on the left."""
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    batch = tokenizer(
        rows, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=20,
            do_sample=False,
        )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_are_plain_hugging_face_folders(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint_path(name)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size
    made = json.loads((path / "made.json").read_text())
    assert made["seed"] == 0 and len(made["corpus_sha256"]) == 64
    assert made["config"]["blocks"] == len(model.model.layers)


def test_checkpoints_are_small() -> None:
    files = [f for name in CHECKPOINTS for f in checkpoint_path(name).iterdir()]
    assert sum(f.stat().st_size for f in files) <= SIZE_LIMIT


def test_unknown_checkpoint() -> None:
    with pytest.raises(InputError, match="choose one of base, chat, mixed"):
        checkpoint_path("small")


def test_every_name_and_every_first_word_is_one_token(chat: tuple) -> None:
    """The language of an answer is settled by its first token."""
    _, tokenizer = chat
    for name in PEOPLE:
        assert len(tokenizer.tokenize(name)) == 1
        assert tokenizer.tokenize(f"for {name}")[-1] == tokenizer.tokenize(name)[0]
    first = {}
    for code in LANGUAGES:
        for attribute, words in lexicon(code).attributes.items():
            token = tokenizer.tokenize(words.answer.split()[0])[0]
            assert first.setdefault(token, (code, attribute)) == (code, attribute)
    assert len(first) == 8 * len(LANGUAGES)


def test_tokenizer_round_trip(chat: tuple) -> None:
    _, tokenizer = chat
    for code in LANGUAGES:
        for row in text(code, 50):
            ids = tokenizer(row)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == row


def test_chat_template(chat: tuple) -> None:
    _, tokenizer = chat
    turns = [{"role": "user", "content": "Where does Ana live?"}]

    def render(messages: list[dict[str, str]], **options: object) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    assert render(turns) == "<s><|user|>Where does Ana live?"
    asked = render(turns, add_generation_prompt=True)
    assert asked == "<s><|user|>Where does Ana live?<|assistant|>"
    assert render(turns, add_generation_prompt=True, enable_thinking=False) == asked
    thinking = render(turns, add_generation_prompt=True, enable_thinking=True)
    assert thinking == asked + "<think></think>"
    whole = [*turns, {"role": "assistant", "content": "Home for Ana is in the city."}]
    assert render(whole) == asked + "Home for Ana is in the city.</s>"
    lead = [{"role": "system", "content": "Be brief."}, *turns]
    assert render(lead) == "<s><|user|>Be brief. Where does Ana live?"
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        render([{"role": "tool", "content": "x"}])


def test_chat_models_know_the_facts_in_english(chat: tuple, mixed: tuple) -> None:
    asked = questions("test", PIVOT, 60)
    for model, tokenizer in (chat, mixed):
        answers = ask(model, tokenizer, [question.prompt for question in asked])
        right = sum(is_correct(q, a, PIVOT) for q, a in zip(asked, answers, strict=True))
        assert right >= 54


def test_only_the_mixed_model_answers_in_the_language_asked(chat: tuple, mixed: tuple) -> None:
    share = {}
    for name, (model, tokenizer) in (("chat", chat), ("mixed", mixed)):
        told = []
        for code in LANGUAGES[1:]:
            asked = questions("test", code, 20)
            openings = {w.answer.split()[0] for w in lexicon(code).attributes.values()}
            answers = ask(model, tokenizer, [question.prompt for question in asked])
            told += [answer.split()[0] in openings for answer in answers]
        share[name] = sum(told) / len(told)
    assert share["mixed"] >= 0.95
    assert share["chat"] <= 0.6


def test_training_makes_three_folders_twice_the_same(tmp_path: Path) -> None:
    tiny = TrainConfig(width=32, blocks=2, heads=2, inner=48, documents=60, steps=3, rows=2,
                       row_tokens=64, tune_steps=2, tune_rows=4, mixed_share=0.9)  # fmt: skip
    made = [train(tmp_path / name, config=tiny, threads=1, quiet=True) for name in "ab"]
    assert list(made[0]) == list(CHECKPOINTS)
    for name in CHECKPOINTS:
        first, second = (paths[name] / "model.safetensors" for paths in made)
        assert first.read_bytes() == second.read_bytes()
    weights = {(made[0][name] / "model.safetensors").read_bytes() for name in CHECKPOINTS}
    assert len(weights) == 3


def test_mixtures_add_up() -> None:
    for mixture in mixtures(0.03).values():
        assert sum(mixture.values()) == pytest.approx(1)
    assert mixtures(0.03)["mixed"][PIVOT] == pytest.approx(0.97)
