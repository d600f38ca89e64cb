"""Lets the compiler trace what mutmut wraps around every function; ``-p tests._traceable``."""

import sys

import torch
from mutmut.core import MutmutCallStack
from mutmut.mutation import trampoline

# Who called whom is kept in a ContextVar, which the compiler does not trace.
MutmutCallStack.get = staticmethod(lambda: (None, 0))
MutmutCallStack.set = staticmethod(lambda _: None)
MutmutCallStack.reset = staticmethod(lambda _: None)
for _name in ("get_mutant_under_test", "record_trampoline_hit"):
    _constant = torch.compiler.assume_constant_result(getattr(trampoline, _name))
    setattr(trampoline, _name, _constant)


def pytest_runtest_setup():
    if "torch._dynamo" in sys.modules:  # graphs of the parent process know of no mutant
        torch._dynamo.reset()
