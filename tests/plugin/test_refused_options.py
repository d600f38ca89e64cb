"""Teachers and options that do not fit: one error that names what was expected and what came."""

import pytest
import torch

from lightning_sobolev import AnalyticTeacher, BatchTeacher, SobolevCallback, SobolevSpec
from tests.plugin._loops import refuses
from tests.plugin._students import Regressor, mlp


@pytest.mark.parametrize(
    ("teacher", "spec", "text"),
    [
        (BatchTeacher("1"), {}, r"jacobian of the batch must have shape .* got \[8, 2\]"),
        (
            AnalyticTeacher(lambda x: 0.0 * x[:, :2]),
            {},
            r"the target of term 'order_1' must not vanish when it is normalized, got a mean",
        ),
        (
            AnalyticTeacher(lambda x: torch.ones(len(x), 2).double()),
            {},
            r"the output does not depend on the observed input",
        ),
    ],
)
def test_teachers_that_cannot_answer(teacher, spec, text):
    refuses(Regressor(), text, teacher=teacher, spec=SobolevSpec(**spec))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"module": "encoder"}, r"module must name a submodule, one of \['net', .*got 'encoder'"),
        ({"module": ""}, r"module must name a submodule"),
        ({"output": "logits"}, r"output='logits': no 'logits' here; got a tensor \[8, 2\]"),
        ({"wrt": "x.y"}, r"wrt='x.y': no 'args.0.y' here; got a tensor"),
        (
            {"teacher": mlp(outputs=3)},
            r"term 'order_1': the teacher must answer .* output is \[2\]",
        ),
        ({"teacher": mlp(dim=2)}, r"cannot be multiplied|shape"),
    ],
)
def test_options_that_do_not_fit_the_module(options, text):
    error = RuntimeError if "multiplied" in text else ValueError
    refuses(Regressor(), text, error=error, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"teacher": None}, r"teacher must be a Teacher or a module, got NoneType"),
        ({"spec": "order1"}, r"spec must be a SobolevSpec, got str"),
        ({"engine": "jax"}, r"engine must be 'auto', 'tape' or 'func', got 'jax'"),
        ({"batch_norm": "off"}, r"batch_norm must be 'train' or 'eval', got 'off'"),
        ({"inner_precision": "16"}, r"must be 'float32', 'step' or 'bf16-mixed', got '16'"),
        ({"call": "last"}, r"call must be 'first', 'all' or an index, got 'last'"),
        ({"call": "an index"}, r"call must be 'first', 'all' or an index"),
        ({"wrt": []}, r"wrt must name one or more inputs, each once, got"),
        ({"wrt": ["x", "x"]}, r"wrt must name one or more inputs, each once, got"),
        ({"non_finite": "ignore"}, r"non_finite must be 'raise' or 'skip', got 'ignore'"),
        ({"wrt": "a..b"}, r"wrt must look like 'a.b.0', got 'a..b'"),
        ({"output": ""}, r"output must look like 'a.b.0', got ''"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_when_they_are_given(options, text):
    with pytest.raises(ValueError, match=text):
        SobolevCallback(**{"teacher": mlp(), **options})


def test_a_teacher_that_is_the_student():
    module = Regressor()
    refuses(module, r"teacher must not share parameters .* 4 shared ones, first '0.weight'",
            teacher=module.net)  # fmt: skip
