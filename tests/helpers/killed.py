"""Train, be killed at random moments, resume, and compare with a run that was left alone.

Run as a program, since each attempt is a fork that must start before torch has any threads:
``python -m tests.helpers.killed FOLDER KILLS``; prints what was seen as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import lens
from lens.training import LensConfig, Retain, Separate
from lens.training.run import RunOptions
from lens.training.trainer import LensTrainer
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who is it?", "where?", "when is tea?", "why?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?", "por que?"],
}
STEPS = 14


def train(running=None):
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(net, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    config = LensConfig(
        terms=(Separate(), Retain()), rank="full", steps=STEPS, batch_size=2, validate_every=4
    )
    trainer = LensTrainer(net, tokenizer, space, PROMPTS, validation=PROMPTS)
    return trainer.run(config, seed=3, running=running)


def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def last_step(work):
    """Steps of the last checkpoint; 0 without one."""
    return max((int(item.name[5:]) for item in work.glob("step-*")), default=0)


def killed_once(child, progress, *, within):
    """Kill a child up to ``within`` seconds after its progress changed; False if it has ended."""
    seen, moment = progress(), random.random() * within
    while progress() == seen:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
        time.sleep(0.001)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder, kills):
    work = folder / "out.unfinished"
    running = RunOptions(folder=work, checkpoint_every=1, resume=True)

    def keep(name, running=None):
        result = train(running)
        torch.save((result.weights, result.log), folder / name)

    assert os.waitpid(forked(lambda: keep("alone")), 0)[1] == 0
    left = []
    while len(left) < kills:
        child = forked(lambda: keep("killed", running))
        if not left:  # before its first checkpoint, the others some checkpoints later
            begun = killed_once(child, lambda: lines(work / "metrics.jsonl"), within=0.02)
        else:
            wanted = last_step(work) + len(left)
            begun = killed_once(child, lambda n=wanted: last_step(work) >= n, within=0.06)
        if not begun:
            break
        left.append(sorted(item.name for item in work.iterdir()))
    assert os.waitpid(forked(lambda: keep("killed", running)), 0)[1] == 0
    alone, killed = (torch.load(folder / name, weights_only=False) for name in ("alone", "killed"))
    written = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    found = {
        "left": left,
        "same_log": alone[1] == killed[1] == written,
        "same_band": all(torch.equal(w, killed[0][n]) for n, w in alone[0].items()),
        "steps": len(killed[1]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
