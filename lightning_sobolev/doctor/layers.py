"""Which layers of the student need a remedy, and which cannot work."""

from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.layers import NoiseInjection
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.observe.recorder import Recorder
from lightning_sobolev.observe.remedies import sharded_parts

_NORMS = (nn.LayerNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Finding:
    """One thing about the student that a user should know."""

    name: str
    kind: str
    remark: str


@dataclass(frozen=True)
class Facts:
    """What a fit does, as far as layers mind."""

    engine: str
    pushes: bool  # forward mode itself
    exact_norms: bool
    again: bool  # some term is evaluated by a replay with other rows
    batch_norm: str

    @classmethod
    def of(cls, loss: SobolevLoss, recorder: Recorder) -> "Facts":
        """Collect them."""
        is_func = recorder.engine == "func" or recorder.compiled is not None
        pushes = recorder.engine == "func" and loss.pushed_term is not None
        terms = loss.spec.terms
        return cls(
            "func" if is_func else "tape",
            pushes,
            any(term.needs_tangents for term in terms),
            any(term.rows < 1.0 for term in terms),
            recorder.options.batch_norm,
        )


def scan(student: nn.Module, facts: Facts) -> list[Finding]:
    """Look for layers that need a remedy; refuse those that have none."""
    if facts.engine == "func" and sharded_parts(student):
        raise ValueError(
            "engine='func' cannot run a student split by fully_shard, whose gathering of the "
            "parameters it does not see (wrong gradients at order 2); use engine='tape'"
        )
    findings: dict[tuple[str, str], Finding] = {}
    for name, layer in student.named_modules():
        remark = _remark(layer, facts)
        if remark is not None:
            kind = type(layer).__name__
            findings.setdefault((kind, remark), Finding(name or "(itself)", kind, remark))
    return list(findings.values())


def _remark(layer: nn.Module, facts: Facts) -> str | None:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
        return _batch_norm_remark(layer, facts)
    if isinstance(layer, nn.LSTM) and facts.pushes:
        raise ValueError("engine='func' has no forward mode for nn.LSTM; use engine='tape'")
    if isinstance(layer, nn.RNNBase):
        return "cuDNN is off in the student: its kernels have no second derivative"
    if isinstance(layer, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return "the math attention kernel is used: fused ones have no second derivative"
    if isinstance(layer, _NORMS) and facts.exact_norms:
        return "written out: the fused norm gives wrong parameter gradients here"
    if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 and facts.again:
        return "the replay on some rows draws its own mask, which adds noise to the term"
    if isinstance(layer, NoiseInjection) and facts.again:
        return "the replay on some rows draws its own noise, which the term then has, too"
    return None


def _batch_norm_remark(layer: nn.modules.batchnorm._BatchNorm, facts: Facts) -> str | None:
    if facts.batch_norm == "eval":
        if not layer.track_running_stats:
            raise ValueError(
                "batch_norm='eval' needs running statistics, got a batch norm with "
                "track_running_stats=False; use batch_norm='train'"
            )
        return None
    if isinstance(layer, nn.SyncBatchNorm):
        raise ValueError(
            "nn.SyncBatchNorm in train mode cannot be differentiated twice: its kernels have no "
            "second derivative; use batch_norm='eval', or nn.BatchNorm for statistics by process"
        )
    if facts.engine == "func" and layer.track_running_stats:
        raise ValueError(
            "engine='func' cannot run batch norm in train mode (it writes its statistics in "
            "place); use engine='tape' or batch_norm='eval'"
        )
    return (
        "rows are coupled in train mode: the derivative of a row is not its own; "
        "batch_norm='eval' takes it in a replay with uncoupled rows"
    )


def report(findings: list[Finding]) -> None:
    """Say once what was found."""
    for found in findings:
        rank_zero_info(f"Sobolev doctor: {found.name} ({found.kind}): {found.remark}")
