"""A small Lens run that the tests of running, precision and saving carry out in many ways."""

import resource
from contextlib import contextmanager

import torch

import lens
from lens.training import LensConfig, Retain, Separate
from lens.training.losses import SiteGeometry
from lens.training.trainer import LensTrainer
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who?", "where are we?", "when is tea?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?"],
    "swh_Latn": ["nini nyekundu?", "ni nani?", "wapi?", "chai lini?"],
}
HELD_OUT = {
    "eng_Latn": ["why is it?", "how much tea?", "whose?"],
    "spa_Latn": ["por que?", "cuanto te?", "de quien?"],
    "swh_Latn": ["kwa nini?", "chai kiasi gani?", "ya nani?"],
}


def config(**changes):
    """A short run with short losses."""
    usual = {"terms": (Separate(), Retain()), "rank": "full", "steps": 8, "batch_size": 2}
    return LensConfig(**{**usual, **changes})


def make(*, dtype=torch.float32, **options):
    """A trainer of a model whose weights are bfloat16 numbers, whatever the dtype."""
    net, tokenizer = tiny.model().bfloat16().to(dtype), tiny.tokenizer()
    probed = tiny.model().bfloat16().to(torch.float16 if dtype == torch.float16 else torch.float32)
    space = lens.probe(probed, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    return LensTrainer(net, tokenizer, space, PROMPTS, **options)


def geometry(trainer):
    """The space of a trainer at its last site."""
    return SiteGeometry.of(trainer.space, "final", rank="full", agnostic="complement")


def same(a, b):
    """Whether two results have the same log and the same bits."""
    return a.log == b.log and all(torch.equal(a.weights[n], w) for n, w in b.weights.items())


@contextmanager
def no_file_above(size):
    """Let no file of this process grow above so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
