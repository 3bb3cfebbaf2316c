"""benchmarks/seeds.py: the GRU that stands in for PyTorch's, and the table."""

import torch
from torch import nn

from benchmarks import seeds
from config import Network


def test_the_written_gru_is_pytorchs():
    torch.manual_seed(0)
    gru, x = nn.GRU(3, 4, 2, batch_first=True, bidirectional=True), torch.rand(5, 6, 3)
    assert torch.allclose(seeds.WrittenGRU(gru)(x)[0], gru(x)[0], atol=1e-6)


def test_the_table(monkeypatch, capsys):
    small = Network(hidden=8, heads=2)
    monkeypatch.setattr(seeds, "Network", lambda **_: small)
    monkeypatch.setattr(seeds, "FRAMES", 20)
    seeds.main(seeds.SeedsConfig(seeds=(2,), repeats=1))
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].split(",")[0].strip() for row in rows] == ["slides", "hidden 32", "best", "best"]
    assert all(float(row[2]) > 0 and int(row[3]) > 50 for row in rows)
    on_frames = rows[2]
    assert on_frames[4].strip() == f"2 x {on_frames[3].strip()}"  # a seed axis adds none
