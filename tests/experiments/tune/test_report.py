"""Searches side by side: one table, a line a search."""

from omegaconf import OmegaConf

from lightning_sobolev.experiments.report.records import read_csv
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.finished import write_metrics


def finished(folder, rule, seed, error):
    (folder / ".hydra").mkdir(parents=True)
    config = {"name": "regression", "seed": seed, "tuning": {"population": 4, "intervals": 3}}
    OmegaConf.save(OmegaConf.create(config), folder / ".hydra" / "config.yaml")
    choices = {"hydra": {"runtime": {"choices": {"tune": rule, "sobolev": "order1"}}}}
    OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    numbers = {"test/value_nmse": error, "score": 2 * error, "copies": 3, "total_steps": 80}
    write_metrics(folder, numbers)


def test_searches_are_averaged_by_their_rule(tmp_path):
    for rule, errors in {"pbt": (0.1, 0.3), "random": (0.4, 0.6)}.items():
        for seed, error in enumerate(errors):
            finished(tmp_path / f"{rule}_{seed}", rule, seed, error)
    report(tmp_path)
    columns, records = read_csv(tmp_path / "pbt.csv")
    assert {"tune", "population", "test_value_nmse", "validation_score"} <= set(columns)
    assert [r["test_value_nmse"] for r in records if r["tune"] == "random"] == [0.4, 0.6]
    text = (tmp_path / "pbt.md").read_text()
    assert "| pbt | 2 | 0.2 ± 0.1 | 0.4 ± 0.2 |" in text
    report(tmp_path / "pbt.csv")
    again = (tmp_path / "pbt.md").read_text()
    assert again.splitlines()[6:] == text.splitlines()[6:]
