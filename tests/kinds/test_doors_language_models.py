"""Models in the manner of Hugging Face: many keywords, an output with the loss first."""

import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap
from torch.nn.functional import cross_entropy

from tests.kinds._by_hand import SIDES, Step, assert_is, distance, exact, numbers, share, slope

IDS = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 1, 2, 3]])
MASK = (IDS > 0).double()
LABELS = torch.tensor([0, 1, 1])
EMBEDS = numbers(3, 4, 5, seed=6)


class ModelOutput(OrderedDict):
    """Fields by name, by key and by number."""

    __getattr__ = OrderedDict.__getitem__

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def decorated(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    return wrapper


class Classifier(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding, self.inner = nn.Embedding(7, 5), nn.Linear(5, 5)
            self.outer = nn.Linear(5, 2)
        self.double()

    def logits(self, embeds, mask):
        mixed = torch.tanh(self.inner(embeds)) * mask[..., None]
        return self.outer(mixed.sum(-2) / mask.sum(-1, keepdim=True))

    @decorated
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("either input_ids or inputs_embeds")
        embeds = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        logits = self.logits(embeds, attention_mask)
        loss = () if labels is None else (("loss", cross_entropy(logits, labels)),)
        return ModelOutput([*loss, ("logits", logits)])


class Finetunes(Step):
    def __init__(self, net=None):
        super().__init__(Classifier() if net is None else net)

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss


BATCH = {"attention_mask": MASK, "inputs_embeds": EMBEDS, "labels": LABELS}


def by_hand(student, teacher):
    ours, theirs = (
        vmap(jacrev(model.logits), in_dims=(0, 0))(EMBEDS, MASK) for model in (student, teacher)
    )
    return slope(distance(ours, theirs.detach()), student)


@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_the_input_alone_is_named(side, doctor):
    callback = exact(Classifier(7), wrt="inputs_embeds", term={"side": side}, doctor=doctor)
    found = share(Finetunes, [BATCH], callback)
    assert_is(found, by_hand(Classifier(), Classifier(7)))


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("output", [None, "logits"])
def test_the_output_may_be_named_and_labels_may_be_left_out(output, labels):
    class Own(Finetunes):
        def training_step(self, batch, batch_idx):
            given = {"labels": batch["labels"]} if labels else {}
            found = self.net(None, MASK, inputs_embeds=batch["inputs_embeds"], **given)
            return cross_entropy(found.logits, batch["labels"])

    callback = exact(Classifier(7), wrt="inputs_embeds", output=output)
    assert_is(share(Own, [BATCH], callback), by_hand(Classifier(), Classifier(7)))


def test_the_teacher_is_called_with_the_same_keywords():
    class Spied(Classifier):
        def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
            asked.append((input_ids, attention_mask, labels))
            return super().forward(input_ids, attention_mask, inputs_embeds, labels)

    asked = []
    share(Finetunes, [BATCH], exact(Spied(7), wrt="inputs_embeds"))
    assert asked
    for ids, mask, labels in asked:
        assert ids is None
        torch.testing.assert_close((mask, labels), (MASK, LABELS))


def test_a_teacher_with_other_arguments_gets_the_input_alone():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Classifier(7)

        def forward(self, embeds):
            return self.inner.logits(embeds, MASK.new_ones(embeds.shape[:-1]))

    found = share(Finetunes, [BATCH], exact(Pooled(), wrt="inputs_embeds"))
    student, teacher = Classifier(), Pooled().inner
    ours = vmap(jacrev(student.logits), in_dims=(0, 0))(EMBEDS, MASK)
    theirs = vmap(jacrev(teacher.logits), in_dims=(0, 0))(EMBEDS, torch.ones_like(MASK))
    assert_is(found, slope(distance(ours, theirs.detach()), student))


def test_integers_alone_are_answered_by_a_hint():
    batch = {"input_ids": IDS, "labels": LABELS}

    class Ids(Finetunes):
        def training_step(self, batch, batch_idx):
            return self.net(batch["input_ids"], (batch["input_ids"] > 0).long()).logits.mean()

    with pytest.raises(ValueError, match="wrt"):
        share(Ids, [batch], exact(Classifier(7)))


def tiny(seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).double()


@pytest.mark.parametrize("doctor", [False, True])
def test_bert_trains_by_its_input_alone(doctor):
    batch = {"inputs_embeds": numbers(3, 4, 8), "attention_mask": MASK.long(), "labels": LABELS}
    callback = exact(tiny(7), wrt="inputs_embeds", doctor=doctor)
    found = share(lambda: Finetunes(tiny(0)), [batch], callback)
    rows, student = [], tiny(0)
    for model in (student, tiny(7)):
        x = batch["inputs_embeds"].clone().requires_grad_()
        y = model(inputs_embeds=x, attention_mask=batch["attention_mask"]).logits
        parts = [torch.autograd.grad(y[:, c].sum(), x, create_graph=True)[0] for c in (0, 1)]
        rows.append(torch.stack(parts, 1))
    assert_is(found, slope(distance(rows[0], rows[1].detach()), student), 1e-6)
