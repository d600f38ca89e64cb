import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cached_accuracy.py"


@pytest.mark.slow
def test_every_way_is_trained_and_told(tmp_path):
    asked = [sys.executable, "-W", "ignore", str(SCRIPT), "--steps", "2", "--seeds", "3"]
    asked += ["--out", str(tmp_path)]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=600).stdout
    found = re.findall(r"(values only|fresh directions|[14] stored) seed 3 test KL ([\d.]+)", told)
    assert [name for name, _ in found] == [
        "values only",
        "fresh directions",
        "1 stored",
        "4 stored",
    ]
    assert all(0.0 < float(kl) < 2.0 for _, kl in found)
    assert len((tmp_path / "cached_accuracy.csv").read_text().splitlines()) == 5
