"""Look before a training: ``python -m lightning_sobolev.doctor``.

``labels FILE.npz`` examines the stored derivatives in a file
(:mod:`lightning_sobolev.doctor.labels_file`), ``teacher`` measures how linear a teacher is between
states (:mod:`lightning_sobolev.doctor.teacher_file`). Anything else is a door to
:mod:`lightning_sobolev.experiments.run.doctor`, which examines an experiment's student and needs
the extra ``experiments``.
"""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["labels"]:
        from lightning_sobolev.doctor.labels_file import main as examine_labels

        sys.exit(examine_labels(sys.argv[2:]))
    if sys.argv[1:2] == ["teacher"]:
        from lightning_sobolev.doctor.teacher_file import main as examine_teacher

        sys.exit(examine_teacher(sys.argv[2:]))
    from lightning_sobolev.experiments.run.doctor import main as examine_experiment

    sys.exit(examine_experiment(sys.argv[1:]))
