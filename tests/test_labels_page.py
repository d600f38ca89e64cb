"""Every block of docs/labels.md runs, teaches, and has nothing to teach to the truth."""

import re
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "labels.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NUMBERED = [n for n, block in enumerate(BLOCKS) if "train(Plain(" in block]
QUIET = "enable_progress_bar=False, enable_model_summary=False, logger=False, "
QUIET += 'enable_checkpointing=False, accelerator="cpu", log_every_n_steps=1, '


class Seen(L.Callback):
    def __init__(self):
        self.terms = []

    def on_train_batch_end(self, trainer, *_):
        self.terms.append(float(trainer.callback_metrics["train/sobolev/total"]))


def taught(names, own_train):
    """Train as the page does; return the terms, and the first one of the truth."""

    def train(student, batch, *callbacks):
        seen, of_truth = Seen(), Seen()
        own_train(student, batch, *callbacks, seen)
        if names["truth"] is not None:
            student.net.load_state_dict(names["truth"].state_dict())
            own_train(student, batch, *callbacks, of_truth)
        names["results"].append((seen.terms, of_truth.terms[:1]))

    return train


@pytest.fixture(scope="module")
def results():
    """Terms of every block that trains."""
    found, names = {}, {"results": []}
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*does not have many workers")
        for number, block in enumerate(BLOCKS):
            block = block.replace("L.Trainer(", f"L.Trainer({QUIET}")
            exec(
                compile(block.replace("max_epochs=100", "max_epochs=15"), str(PAGE), "exec"), names
            )
            if number == 0:
                names["train"] = taught(names, names["train"])
            if number in NUMBERED:
                (found[number],) = names["results"]
                names["results"] = []
    return found


@pytest.mark.parametrize("number", NUMBERED)
def test_a_block_teaches_and_the_truth_has_learned(results, number):
    terms, of_truth = results[number]
    assert terms[0] > 1e-3
    assert min(terms[-3:]) < 0.9 * terms[0]
    if of_truth:
        assert abs(of_truth[0]) < 1e-6


def test_every_line_of_the_table_has_its_block():
    lines = re.findall(r"^\| .* \| (.*) \| *\[(\d+)\]\(#([\w-]+)\) \|$", TEXT, re.MULTILINE)
    assert [int(number) for _, number, _ in lines] == list(range(1, len(NUMBERED) + 1))
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-")
               for h in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}  # fmt: skip
    for code, number, anchor in lines:
        assert anchor in anchors
        teachers = re.findall(r"\w+Teacher", code)
        assert all(name in BLOCKS[NUMBERED[int(number) - 1]] for name in teachers), number
