"""Examine an experiment's student without training it: ``python -m lightning_sobolev.doctor``.

A door to :mod:`lightning_sobolev.experiments.run.doctor`, which needs the extra ``experiments``.
"""

import sys

if __name__ == "__main__":
    from lightning_sobolev.experiments.run.doctor import main

    sys.exit(main(sys.argv[1:]))
