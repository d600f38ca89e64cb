"""Look before a training: ``python -m lightning_sobolev.doctor``.

``labels FILE.npz`` examines the stored derivatives in a file
(:mod:`lightning_sobolev.doctor.labels_file`). Anything else is a door to
:mod:`lightning_sobolev.experiments.run.doctor`, which examines an experiment's student and needs
the extra ``experiments``.
"""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["labels"]:
        from lightning_sobolev.doctor.labels_file import main

        sys.exit(main(sys.argv[2:]))
    from lightning_sobolev.experiments.run.doctor import main as examine_experiment

    sys.exit(examine_experiment(sys.argv[1:]))
