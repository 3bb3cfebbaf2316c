"""The Q-network: a TCN, a bidirectional GRU and a Transformer over the window of one frame.

Shapes: B batch, C channels, W window, A actions

Sizes: slides, page 8, and the original program where they are silent (see `config.Network`).
"""

import torch
from torch import nn

from config import Bandit, Network


class QNetwork(nn.Module):
    """TCN -> BiGRU -> Transformer -> head on the centre frame; (B, C, W) -> Q-values (B, A)."""

    def __init__(self, bandit: Bandit, network: Network):
        super().__init__()
        hidden, width = network.hidden, network.width
        blocks: list[nn.Module] = []
        for i in range(network.tcn_layers):
            inputs = hidden if i else len(bandit.channels)
            same = 2**i * (network.tcn_kernel // 2)
            conv = nn.Conv1d(inputs, hidden, network.tcn_kernel, padding=same, dilation=2**i)
            blocks += [conv, nn.GELU(), nn.GroupNorm(network.tcn_groups, hidden)]
        self.tcn = nn.Sequential(*blocks)
        self.gru = nn.GRU(hidden, hidden, network.gru_layers, batch_first=True, bidirectional=True)
        self.pre_norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, network.heads, network.inner, network.dropout, "gelu", batch_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, network.transformer_layers, enable_nested_tensor=False
        )
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bandit.num_actions)
        )
        self.centre, self.window = bandit.context, bandit.window

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, C, W) -> (B, A): expected reward of each threshold shift."""
        x = self.tcn(states).transpose(1, 2)  # (B, W, hidden)
        x, _ = self.gru(x)  # (B, W, width)
        x = self.pre_norm(x)
        for layer in self.transformer.layers[:-1]:
            x = layer(x)  # (B, W, width)
        return self.head(self.last_layer(x))

    def last_layer(self, x: torch.Tensor) -> torch.Tensor:
        """Last encoder layer for the centre frame alone, the only one the head reads.

        (B, W, width) -> (B, width); the same numbers as the whole layer, a fifth less work.
        """
        layer = self.transformer.layers[-1]
        query = x[:, self.centre : self.centre + 1]  # (B, 1, width)
        attended = layer.self_attn(query, x, x, need_weights=False)[0]
        y = layer.norm1(query + layer.dropout1(attended))
        inner = layer.dropout(layer.activation(layer.linear1(y)))
        return layer.norm2(y + layer.dropout2(layer.linear2(inner)))[:, 0]


class Classifier(QNetwork):
    """The Q-network with one output in place of the Q-values: (B, C, W) -> (B, 1), the log odds
    that the centre frame is on."""

    def __init__(self, bandit: Bandit, network: Network):
        super().__init__(bandit, network)
        self.head[-1] = nn.Linear(network.hidden, 1)


def make_network(method: str, bandit: Bandit, network: Network) -> QNetwork:
    """The network of a method that decides by windows."""
    return (Classifier if method == "classifier" else QNetwork)(bandit, network)
