"""Which layers of the student need a remedy, and which cannot work."""

from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.layers import NoiseInjection
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.protect import sharded_parts

_NORMS = (nn.LayerNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Finding:
    """One thing about the student that a user should know."""

    name: str
    kind: str
    remark: str


def scan(student: nn.Module, policy: Policy) -> list[Finding]:
    """Look for layers that need a remedy under this policy."""
    if policy.engine == "func" and sharded_parts(student):
        raise ValueError(
            "engine='func' cannot run a student split by fully_shard, whose gathering of the "
            "parameters it does not see (wrong gradients at order 2); use engine='tape'"
        )
    findings: dict[tuple[str, str], Finding] = {}
    for name, layer in student.named_modules():
        remark = _remark(layer, policy)
        if remark is not None:
            kind = type(layer).__name__
            findings.setdefault((kind, remark), Finding(name or "(itself)", kind, remark))
    return list(findings.values())


def _remark(layer: nn.Module, policy: Policy) -> str | None:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
        return _batch_norm_remark(layer, policy)
    if isinstance(layer, nn.LSTM) and policy.pushed is not None:
        raise ValueError("engine='func' has no forward mode for nn.LSTM; use engine='tape'")
    if isinstance(layer, nn.RNNBase):
        return "cuDNN is off during the step: its kernels have no second derivative"
    if isinstance(layer, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return "the math attention kernel is used: fused ones have no second derivative"
    if isinstance(layer, _NORMS) and policy.exact_norms:
        return "written out: the fused norm gives wrong parameter gradients here"
    if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 and _calls_again(policy):
        return "the derivative's own forward draws its own mask, which adds noise to the term"
    if isinstance(layer, NoiseInjection) and _calls_again(policy):
        return "the derivative's own forward draws its own noise, which the term then has, too"
    return None


def _calls_again(policy: Policy) -> bool:
    if policy.again or any(term.rows < 1.0 for term in policy.spec.terms):
        return True
    if policy.half and policy.inner_precision == "float32":
        return True
    return policy.engine == "func" and policy.spec.max_order == 2


def _batch_norm_remark(layer: nn.modules.batchnorm._BatchNorm, policy: Policy) -> str | None:
    if policy.batch_norm == "eval":
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
    if policy.engine == "func" and layer.track_running_stats:
        raise ValueError(
            "engine='func' cannot run batch norm in train mode (it writes its statistics in "
            "place); use engine='tape' or batch_norm='eval'"
        )
    return (
        "rows are coupled in train mode: the derivative of a row is not its own; "
        "batch_norm='eval' takes it in a second forward with uncoupled rows"
    )


def report(findings: list[Finding], policy: Policy, chosen: bool) -> None:
    """Say once what was found and which engine runs."""
    if chosen and policy.engine == "tape":
        text = "compiled parts of the step run eager meanwhile; engine='func' compiles them, too"
        eager = f"; {text}" if policy.compiled else ""
        rank_zero_info(f"Sobolev: engine='tape', which reuses the step's own forward{eager}")
    if policy.half and policy.inner_precision == "float32":
        rank_zero_info(
            "Sobolev: derivatives are taken in a second forward in float32; inner_precision='step' "
            "takes them from the step's own"
        )
    for found in findings:
        rank_zero_info(f"Sobolev doctor: {found.name} ({found.kind}): {found.remark}")
