"""Powers of the rectifier, the networks that they make exactly, and one that approximates.

ReCU is max(0, x)^3, as in Abdeljawad and Grohs 2020 (arXiv:2101.06115). Elsewhere the name stands
for another function, whose slope saturates.
"""

from lightning_sobolev.activations import ReCU, ReQU, scale_by_sample
from lightning_sobolev.recu.approximation import approximate, num_weights
from lightning_sobolev.recu.exact import identity, monomial, partition_of_unity, product, square

__all__ = [
    "ReCU", "ReQU", "approximate", "identity", "monomial", "num_weights", "partition_of_unity",
    "product", "scale_by_sample", "square",
]  # fmt: skip
