"""The Q-network: a TCN, a bidirectional GRU and a Transformer over the window of one frame.

Run:    not a script; DQN.py trains it
Reads:  nothing
Writes: nothing
Shapes: B batch, C channels, W window, A actions; in the GRU I inputs, H hidden
Next:   DQN.py

Sizes: slides, page 8, and the original program where they are silent (see `config.Network`).
"""

import torch
from torch import nn

from config import Bandit, Network


class BothWays(torch.autograd.Function):
    """A bidirectional GRU layer whose gradients are written out; numbers as torch.nn.GRU's up to
    rounding.

    PyTorch's own runs a frame and a direction at a time and adds to the gradients of the weights
    at every frame. Here both directions share each product, and the weights get theirs in one
    product at the end. The second direction runs on the reversed window.
    """

    @staticmethod
    def forward(ctx, x, w_in, w_hidden, b_in, b_hidden):
        """x (W, B, I), weights (2, 3H, I) and (2, 3H, H), biases (2, 3H) -> (W, B, 2H)."""
        window, batch, inputs = x.shape
        h = w_hidden.shape[2]
        both = torch.stack([x, x.flip(0)]).view(2, window * batch, inputs)
        gates = torch.baddbmm(b_in[:, None], both, w_in.transpose(1, 2))
        gates = gates.view(2, window, batch, 3 * h)  # in the end r, z and n of every frame
        states = x.new_zeros(2, window + 1, batch, h)
        hidden = torch.empty_like(gates)  # the hidden side's part of the three sums
        # The views of all frames at once: taking them one by one costs as much as the products.
        r, z, n = (part.unbind(1) for part in gates.split(h, 3))
        r_z, of_r_z = (part[..., : 2 * h].unbind(1) for part in (gates, hidden))
        of_n = hidden[..., 2 * h :].unbind(1)
        hidden_of, states_of = hidden.unbind(1), states.unbind(1)
        weight, bias = w_hidden.transpose(1, 2), b_hidden[:, None]
        for t in range(window):
            torch.baddbmm(bias, states_of[t], weight, out=hidden_of[t])
            r_z[t].add_(of_r_z[t]).sigmoid_()
            n[t].addcmul_(r[t], of_n[t]).tanh_()
            torch.lerp(n[t], states_of[t], z[t], out=states_of[t + 1])
        ctx.save_for_backward(both, w_in, w_hidden, gates, hidden, states)
        return torch.cat([states[0, 1:], states[1, 1:].flip(0)], 2)

    @staticmethod
    def backward(ctx, grad):
        """grad (W, B, 2H) -> gradients of x, weights and biases."""
        both, w_in, w_hidden, gates, hidden, states = ctx.saved_tensors
        _, window, batch, h = states[:, 1:].shape
        r, z, n = gates.split(h, 3)
        proposal = hidden[..., 2 * h :]  # what r is multiplied by
        # What the gradient of a state is multiplied by for each gate's sum, on the hidden side.
        slope = gates.new_empty(2, window, batch, 3, h)
        slope_r, slope_z, slope_n = slope.unbind(3)
        of_n = torch.mul(1 - z, 1 - n * n)
        torch.mul(of_n, r, out=slope_n)
        torch.mul(slope_n, proposal * (1 - r), out=slope_r)
        torch.mul((states[:, :-1] - n).mul_(z), 1 - z, out=slope_z)
        of_state = torch.stack([grad[..., :h], grad[..., h:].flip(0)])
        of_hidden = torch.empty_like(slope)
        into, goes_on, slopes, z_of = (x.unbind(1) for x in (of_state, of_hidden, slope, z))
        for_each, flat = of_state[:, :, :, None].unbind(1), of_hidden.flatten(3).unbind(1)
        for t in reversed(range(window)):
            torch.mul(slopes[t], for_each[t], out=goes_on[t])
            if t:
                into[t - 1].addcmul_(into[t], z_of[t])
                into[t - 1].baddbmm_(flat[t], w_hidden)
        of_input = of_hidden.clone()
        torch.mul(of_n, of_state, out=of_input[..., 2, :])
        of_input, of_hidden = (x.view(2, window * batch, 3 * h) for x in (of_input, of_hidden))
        earlier = states[:, :-1].reshape(2, window * batch, h)
        of_x = torch.bmm(of_input, w_in).view(2, window, batch, -1)
        return (
            of_x[0] + of_x[1].flip(0),
            torch.bmm(of_input.transpose(1, 2), both),
            torch.bmm(of_hidden.transpose(1, 2), earlier),
            of_input.sum(1),
            of_hidden.sum(1),
        )


class BiGRU(nn.GRU):
    """torch.nn.GRU, bidirectional, batch first, from a zero state; learns faster on a CPU.

    Without gradients, in mixed precision, and on a GPU it is PyTorch's.
    """

    def __init__(self, inputs: int, hidden: int, layers: int):
        super().__init__(inputs, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, W, I) -> (B, W, 2H), and the last state or None."""
        mixed = torch.is_autocast_enabled(x.device.type)
        if x.is_cuda or mixed or not torch.is_grad_enabled():
            return super().forward(x)
        x = x.transpose(0, 1)
        for layer in range(self.num_layers):
            pairs = zip(self.all_weights[2 * layer], self.all_weights[2 * layer + 1], strict=True)
            x = BothWays.apply(x, *(torch.stack(pair) for pair in pairs))
        return x.transpose(0, 1), None


class QNetwork(nn.Module):
    """TCN -> BiGRU -> Transformer -> head on the centre frame; (B, C, W) -> Q-values (B, A)."""

    rivals = False  # a state holds nothing of the clip's other queries

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
        self.gru = BiGRU(hidden, hidden, network.gru_layers)
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
