"""LSTM and GRU, and what is around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CellTagger", "GRUForecaster", "LSTMTagger", "Seq2Seq"]


class LSTMTagger(nn.Module):
    """Embedding, LSTM, linear layer over every step."""

    def __init__(self, layers: int = 1, bidirectional: bool = False, proj_size: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(
            12, 16, num_layers=layers, batch_first=True, bidirectional=bidirectional, proj_size=proj_size
        )
        self.fc = nn.Linear((proj_size or 16) * (2 if bidirectional else 1), 9)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(ids))
        return self.fc(out)


class GRUForecaster(nn.Module):
    """Time first, the last hidden state read, a linear layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 12)
        self.gru = nn.GRU(12, 16)
        self.fc1 = nn.Linear(16, 20)
        self.fc2 = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encode(x)).transpose(0, 1)
        _, hidden = self.gru(x)
        return self.fc2(F.relu(self.fc1(hidden[-1])))


class Seq2Seq(nn.Module):
    """The state of one LSTM starts another: their hidden units are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.encoder = nn.LSTM(12, 16, batch_first=True)
        self.decoder = nn.LSTM(12, 16, batch_first=True)
        self.out = nn.Linear(16, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.embed(source))
        decoded, _ = self.decoder(self.embed(target), state)
        return self.out(decoded)


class CellTagger(nn.Module):
    """A loop over a cell, its state made by ``new_zeros``."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 12)
        self.cell = nn.LSTMCell(12, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), self.cell.hidden_size)
        c = x.new_zeros(x.size(0), self.cell.hidden_size)
        steps = []
        for t in range(x.size(1)):
            h, c = self.cell(torch.relu(self.inp(x[:, t])), (h, c))
            steps.append(h)
        return self.fc(torch.stack(steps, dim=1))
