import pytest

from lightning_sobolev.experiments.common import figures


def test_a_figure_that_broke_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(28, "disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        figures.save(figures.blank(1, 1), tmp_path / "some.png")
    assert list(tmp_path.iterdir()) == []
