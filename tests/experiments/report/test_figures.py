"""What figures show, read from their axes; and that files are written whole."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from lightning_sobolev.experiments.report import curves, figures, style
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.curves import write_curves


@pytest.fixture
def drawn(monkeypatch):
    """Collect figures by the names of their files instead of writing them."""
    kept = {}

    def keep(figure, path):
        kept[path.name] = figure
        return path

    monkeypatch.setattr(curves, "save", keep)
    monkeypatch.setattr(figures, "save", keep)
    return kept


def test_a_sweep_becomes_tables_and_figures(store, tmp_path, drawn):
    """The same ones again from the tables alone."""
    cases = [(s, f, n) for s in ("order1", "none") for f in (0.125, 1.0) for n in (0, 1, 2)]
    for number, (sobolev, fraction, seed) in enumerate(cases):
        overrides = [f"sobolev={sobolev}", f"data.fraction={fraction}", f"seed={seed}"]
        numbers = {"test/kl": (1 + seed) / fraction, "test/accuracy": 0.5 + 0.1 * seed}
        folder = store(str(number), overrides, {**numbers, "seconds_fit": 2.0})
        rows = [{"step": s, "seconds": 3.0 * s, "val/kl": seed + 1 / s} for s in (10, 20)]
        write_curves(folder, rows[: 1 if seed == 2 else 2])  # one validation is no curve
    out = tmp_path / "out"
    pictures = ["pong.png", "pong_validations_seconds.png", "pong_validations.png"]
    names = {"pong.csv", "pong.md", "pong_validations.csv", *pictures}
    assert {path.name for path in report(tmp_path / "runs", out)} == names
    assert list(drawn) == pictures

    kl, accuracy = drawn["pong.png"].axes
    assert (kl.get_yscale(), accuracy.get_yscale(), kl.get_xscale()) == ("log", "linear", "log")
    assert kl.get_ylabel() == "KL (nats)\n(lower is better)"
    assert accuracy.get_ylabel() == "accuracy\n(higher is better)"
    assert [label.get_text() for label in kl.get_xticklabels()] == ["1/8", "1"]
    for line, color in zip(kl.get_lines()[:2], style.COLORS, strict=False):
        np.testing.assert_allclose(line.get_xydata(), [[0.125, 16.0], [1.0, 2.0]])
        assert same_color(line.get_color(), color)
    legend = [text.get_text() for text in drawn["pong.png"].legends[0].get_texts()]
    assert legend == ["none", "order1"]

    table = pd.read_csv(out / "pong_validations.csv")
    assert (set(table["seed"]), set(table["measure"])) == ({0, 1}, {"val/kl"})
    np.testing.assert_allclose(table["value"], table["seed"] + 1 / table["step"], rtol=1e-5)
    np.testing.assert_allclose(table["seconds"], 3.0 * table["step"])
    (axes,) = drawn["pong_validations.png"].axes
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.5 + 1 / 10, 0.5 + 1 / 20])

    page = (out / "pong.md").read_text()
    assert {path.name for path in report(out / "pong.csv")} == {"pong.md", "pong.png"}
    assert (out / "pong.md").read_text() == page


def test_names_are_points_and_more_settings_are_panels(tmp_path, drawn):
    keys = ["function", "activation", "dim", "sobolev"]
    rows = [(f, a, 2, s) for f in "pqr" for a in "xy" for s in ("none", "order1")]
    frame = pd.DataFrame(rows, columns=keys).assign(seed=0, test_value_nmse=range(1, 13))
    frame.assign(test_zero=0.0).to_csv(tmp_path / "regression.csv", index=False)
    report(tmp_path / "regression.csv")
    assert list(drawn) == ["regression_value_nmse.png"]  # test_zero says nothing
    axes = drawn["regression_value_nmse.png"].axes
    assert [one.get_title() for one in axes] == ["activation x", "activation y"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == list("pqr")


def test_too_many_panels_are_left_out_with_a_word(tmp_path, caplog):
    rows = [{"a": f"a{n}", "b": f"b{n % 5}", "c": f"c{n}", "test_kl": n} for n in range(1, 30)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    assert [path.name for path in report(tmp_path / "t.csv")] == ["t.md"]
    assert "t_kl.png is left out: 29 panels; choose with --x and --y" in caplog.text


def test_a_killed_writer_leaves_the_earlier_figure(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("earlier")

    def killed(_, writing, **__):
        writing.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", killed)
    with pytest.raises(KeyboardInterrupt):
        style.save(Figure(), path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.png", "earlier")]


def test_curves_of_a_run_have_a_panel_for_each_unit(tmp_path, drawn):
    train = {"train/loss": 1.0, "train/sobolev/total": 0.1, "train/sobolev/order_1": 2.0}
    rows = [{"step": n, "seconds": n, **train, "train/sobolev/order_1_rows": 0.0} for n in (1, 2)]
    cuts = {f"val/cut_{cut}/value_nmse": 0.1 * cut for cut in range(1, 12)}
    write_curves(tmp_path, [*rows, {"step": 2, "seconds": 2, "val/accuracy": 0.5, **cuts}])
    assert curves.save_curves(tmp_path) == tmp_path / "curves.png"
    panels = {axes.get_ylabel(): axes for axes in drawn["curves.png"].axes}
    shown = {name: len(axes.get_lines()) for name, axes in panels.items() if name}
    assert shown == {"train loss": 2, "train terms": 1, "val accuracy": 1, "val value NMSE": 8}
    np.testing.assert_allclose(
        panels["train loss"].get_lines()[1].get_xydata(), [[1, 0.1], [2, 0.1]]
    )
    assert panels["val accuracy"].get_yscale() == "linear"


def test_nothing_logged_is_no_figure_and_damage_is_named(tmp_path):
    assert curves.save_curves(tmp_path) is None
    (tmp_path / "curves.csv").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"curves.csv must be a table"):
        curves.save_curves(tmp_path)
