"""The mixing function of splitmix64, on tensors and on integers.

int64 arithmetic wraps around as unsigned arithmetic does; only the shifts need a mask.

Source:
    Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators.
"""

from torch import Tensor

GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    return word - 2**64 if word >= 2**63 else word


def shifted(words: Tensor, by: int) -> Tensor:
    """Shift right as unsigned words."""
    return (words >> by).bitwise_and((1 << (64 - by)) - 1)


def mix(words: Tensor) -> Tensor:
    """Hash every int64."""
    words = words + signed(GOLDEN)
    words = (words ^ shifted(words, 30)) * signed(_FIRST)
    words = (words ^ shifted(words, 27)) * signed(_SECOND)
    return words.bitwise_xor(shifted(words, 31))


def _mix_int(word: int) -> int:
    word = (word + GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def hash_words(*words: int) -> int:
    """Hash integers, their order and their number to an unsigned word."""
    state = len(words)
    for word in words:
        state = _mix_int(state ^ _mix_int(word & _WORD))
    return state
