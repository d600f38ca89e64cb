"""Networks and LightningModules of published packages, as they are but for their size.

A LightningModule gets plain SGD, whose step shows the gradient; nothing else of it is touched.
"""

import pytest
import torch

from tests.plugin._architectures import case, random
from tests.plugin._gradients import Case
from tests.plugin._students import Silent


def siren():
    """SIREN (siren-pytorch): sines all the way, w0 = 30 as published."""
    package = pytest.importorskip("siren_pytorch")
    return case(Silent(package.SirenNet(2, 8, 3, num_layers=2)), 4, 2)


def continuous_transformer():
    """A transformer over continuous tokens (x-transformers)."""
    package = pytest.importorskip("x_transformers")
    net = package.ContinuousTransformerWrapper(
        dim_in=3, dim_out=2, max_seq_len=5, attn_layers=package.Encoder(dim=8, depth=1, heads=2)
    )
    return case(Silent(net), 3, 5, 3)


class Tabular(Silent):
    """Its network takes continuous and categorical features; there are none of the latter."""

    def output(self, batch):
        return self.net(batch[0], None)


def ft_transformer():
    """FT-Transformer (rtdl_revisiting_models): attention over tabular features."""
    package = pytest.importorskip("rtdl_revisiting_models")
    net = package.FTTransformer(
        n_cont_features=4, cat_cardinalities=[], d_out=2, n_blocks=1, d_block=8,
        attention_n_heads=2, attention_dropout=0.0, ffn_d_hidden_multiplier=2.0,
        ffn_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    observed = lambda module, batch: [(lambda x: module.net(x, None), batch[0])]  # noqa: E731
    return case(Tabular(net), 3, 4, observed=observed)


def fourier_neural_operator():
    """A Fourier neural operator (neuraloperator): complex weights between two FFTs."""
    models = pytest.importorskip("neuralop.models")
    net = models.FNO(n_modes=(3,), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2)
    net._apply(lambda t: t.to(torch.complex128) if t.is_complex() else t)  # double() does not
    return case(Silent(net), 2, 1, 8)


def sgd(kind):
    """The class with an optimizer whose step shows the gradient."""

    class Plain(kind):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    return Plain


def message_passing():
    """Chemprop's MPNN, a LightningModule that never calls its own forward."""
    chemprop = pytest.importorskip("chemprop")
    molecules = ["CCO", "c1ccccc1", "CC(=O)N"]
    points = [
        chemprop.data.MoleculeDatapoint.from_smi(smiles, [float(number)])
        for number, smiles in enumerate(molecules)
    ]
    data = chemprop.data.MoleculeDataset(
        points, chemprop.featurizers.SimpleMoleculeMolGraphFeaturizer()
    )
    batch = chemprop.data.collate_batch(list(data))
    batch.bmg.V, batch.bmg.E = batch.bmg.V.double(), batch.bmg.E.double()
    module = sgd(chemprop.models.MPNN)(
        chemprop.nn.BondMessagePassing(d_h=6, depth=2, activation="tanh"),
        chemprop.nn.MeanAggregation(),
        chemprop.nn.RegressionFFN(input_dim=6, hidden_dim=5, activation="tanh"),
    )

    def observed(module, batch):
        return [(module.predictor.ffn, module.fingerprint(batch.bmg, batch.V_d, batch.X_d))]

    return Case(module, batch, observed, {"module": "predictor.ffn"}, plain_loss=True)


def n_beats():
    """N-BEATS (pytorch-forecasting), a LightningModule that takes and returns structures."""
    package = pytest.importorskip("pytorch_forecasting")
    module = sgd(package.NBeats)(
        stack_types=["generic"], num_blocks=[1], num_block_layers=[2], widths=[6], sharing=[False],
        expansion_coefficient_lengths=[4], prediction_length=2, context_length=4, dropout=0.0,
        output_transformer=package.data.encoders.TorchNormalizer(),
    )  # fmt: skip
    x = {
        "encoder_cont": random(3, 4, 1),
        "encoder_target": random(3, 4, seed=2),
        "target_scale": torch.ones(3, 2).double(),
        "encoder_lengths": torch.full((3,), 4),
        "decoder_target": random(3, 2, seed=1),
        "decoder_lengths": torch.full((3,), 2),
    }
    batch = (x, (x["decoder_target"], None))

    def observed(module, batch):
        x, _ = batch
        return [(lambda e: module({**x, "encoder_cont": e}).prediction, x["encoder_cont"])]

    options = {"wrt": "x.encoder_cont"}
    return Case(module, batch, observed, options, plain_loss=True)


COMPUTE_IN_SINGLE = ("x-transformers", "neuraloperator")
"""Whose softmax or Fourier transform is float32 whatever comes in."""

PIECEWISE_LINEAR = ("pytorch-forecasting",)
"""Whose second derivative is zero."""

MODULES = {
    "siren-pytorch: SirenNet": siren,
    "x-transformers: ContinuousTransformerWrapper": continuous_transformer,
    "rtdl_revisiting_models: FTTransformer": ft_transformer,
    "neuraloperator: FNO": fourier_neural_operator,
    "chemprop: MPNN": message_passing,
    "pytorch-forecasting: NBeats": n_beats,
}
