# ruff: noqa
"""What points of a term are worth to a student of a small network: python scripts/points.py."""

import statistics
import time

import torch
from torch import nn

from lightning_sobolev import Recombine, SobolevLoss, SobolevTerm

POINTS = Recombine(share=1.0)
METHODS = {
    "values": None,
    "values, twice the steps": None,
    "derivatives at the states": [SobolevTerm(weight=0.3)],
    "values at recombined states": [SobolevTerm(order=0, points=POINTS)],
    "both at recombined states": [
        SobolevTerm(order=0, points=POINTS, name="values"),
        SobolevTerm(points=POINTS, weight=0.3, rows=0.25, every_n_steps=2, name="slopes"),
    ],
}


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    return nn.Sequential(*layers)


def trained(method, count, seed):
    teacher = network(100 + seed).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.mul_(2.5)
    generator = torch.Generator().manual_seed(seed)
    x, test = torch.randn(count, 8, generator=generator), torch.randn(4000, 8, generator=generator)
    y, steps = teacher(x), 3000 if "twice" in method else 1500
    student, terms = network(seed), METHODS[method]
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_fn = None if terms is None else SobolevLoss(teacher, terms, seed=seed)
    began = time.process_time()
    for _ in range(steps):
        rows = torch.randint(count, (32,), generator=generator)
        if loss_fn is None:
            loss = (student(x[rows]) - y[rows]).square().mean() / y.var()
        else:
            with loss_fn.observe(student):
                found = student(x[rows])
            loss = (found - y[rows]).square().mean() / y.var() + loss_fn().loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds, truth = time.process_time() - began, teacher(test)
    return float((student(test) - truth).square().mean() / truth.var()), seconds


def main():
    torch.set_num_threads(1)
    print("| states | method | NMSE | ratio to values | CPU time |\n|---|---|---|---|---|")
    for count in (50, 200, 800):
        found = {name: [trained(name, count, seed) for seed in range(5)] for name in METHODS}
        plain = found["values"]
        for name, runs in found.items():
            pairs = [torch.tensor(a[0] / b[0]).log() for a, b in zip(runs, plain, strict=True)]
            logs = torch.stack(pairs)
            error = float(logs.std()) / 5**0.5
            times = [a[1] / b[1] for a, b in zip(runs, plain, strict=True)]
            nmse = statistics.mean(run[0] for run in runs)
            ratio = f"{logs.mean().exp():.2f} ± {logs.mean().exp() * error:.2f}"
            print(f"| {count} | {name} | {nmse:.3g} | {ratio} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    main()
