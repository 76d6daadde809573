"""Tuning on answers: whole blocks, parts of them, adapters."""

import copy

import pytest
import torch

from lens.errors import InputError
from lens.training.finetune import finetune
from tests.helpers import tiny
from tests.unit.training.test_trainer import PROMPTS, short


def test_finetuning_learns_the_answers():
    net, tokenizer = tiny.model(), tiny.tokenizer()
    answers = {lang: ["red", "me", "here", "now"] for lang in PROMPTS}
    config = short(steps=25, learning_rate=5e-3)
    log = finetune(net, tokenizer, PROMPTS, answers, layers="-2:", config=config).log
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    with pytest.raises(InputError, match="4 prompts and 1 answers"):
        finetune(net, tokenizer, PROMPTS, {**answers, "eng_Latn": ["x"]}, config=config)


def test_finetuning_trains_a_part_or_adapters_and_takes_them_off():
    net, tokenizer = tiny.model(), tiny.tokenizer()
    answers = {lang: ["red", "me", "here", "now"] for lang in PROMPTS}
    before = copy.deepcopy(net.state_dict())
    done = finetune(net, tokenizer, PROMPTS, answers, modules="mlp", config=short(steps=2))
    moved = {name for name, w in net.state_dict().items() if not torch.equal(w, before[name])}
    assert moved == set(done.trainable.parameters) and all(".mlp." in name for name in moved)
    net.load_state_dict(before)
    config = short(steps=25, learning_rate=2e-2)
    done = finetune(net, tokenizer, PROMPTS, answers, lora=4, config=config)
    assert done.log[-1]["loss"] < 0.7 * done.log[0]["loss"]
    done.release()
    assert all(torch.equal(w, before[name]) for name, w in net.state_dict().items())
    wild = short(learning_rate=1e30)
    with pytest.raises(InputError, match="diverged"):
        finetune(net, tokenizer, PROMPTS, answers, lora=4, config=wild)
    assert list(net.state_dict()) == list(before)
