"""The command that measures the studies of docs/known-derivatives.md."""

from lightning_sobolev.tasks.stacked.cells import Cell
from scripts import known_derivatives as script


def test_the_command_line_writes_a_table(tmp_path, monkeypatch):
    cell = Cell("booth", 12, "none", 0.0, 0)
    monkeypatch.setitem(script.STUDIES, "noise", lambda: [[cell]])
    path = tmp_path / "noise.csv"
    monkeypatch.setattr("sys.argv", ["x", "noise", "--out", str(path), "--steps", "2"])
    script.main()
    header, row = path.read_text().splitlines()
    assert header.startswith("function,num_points,method,noise,seed,derivatives,label_nmse")
    assert row.startswith("booth,12,none,0,0,exact,0,")
    assert list(tmp_path.iterdir()) == [path]


def test_every_study_pairs_what_is_taught_with_a_plain_run():
    for cells in (cell for study in script.STUDIES.values() for cell in study()):
        assert len(set(cells)) == len(cells)
        plain = {(c.function, c.seed) for c in cells if c.method == "none"}
        assert {(c.function, c.seed) for c in cells} == plain
        assert len({c.num_points for c in cells}) == 1
