"""Which unlabelled images to label next: the DQN of the source and its baselines.

Shapes: U unlabelled and L labelled images, n to choose, K classes, F features, S = K + 3 state

The DQN is a contextual bandit: state = what the classifier says of an image, action = skip (0) or
select (1), reward 1 where the classifier was wrong on a selected image, else 0. gamma is 0, so the
target of Q is the reward. Each query takes the n images with the highest Q(s, select).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from core.errors import InputError
from policy.qlearning import Replay
from studies.active_learning.settings import REPLAY

SKIP, SELECT = 0, 1
HIDDEN, BATCH = 128, 64  # of the Q-network and its gradient steps (slides)


class View(NamedTuple):
    """What a strategy may see when it chooses: no label among it."""

    probabilities: torch.Tensor  # (U, K)
    features: torch.Tensor  # (U, F)
    labelled_features: torch.Tensor  # (L, F)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, (U, K) -> (U,)."""
    return torch.special.entr(probabilities).sum(1)


def margin(probabilities: torch.Tensor) -> torch.Tensor:
    """Most probable class minus the second, (U, K) -> (U,)."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return first - second


UNCERTAINTY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "entropy": entropy,
    "margin": lambda p: -margin(p),
    "least-confidence": lambda p: -p.amax(1),
}


def make_states(probabilities: torch.Tensor) -> torch.Tensor:
    """State of each image: probabilities, their maximum, margin, entropy, (U, K) -> (U, K + 3)."""
    p = probabilities
    return torch.cat([p, torch.stack([p.amax(1), margin(p), entropy(p)], 1)], 1)


def ranking(scores: torch.Tensor, errors: torch.Tensor) -> float:
    """How well scores (U,) rank the classifier's errors (U,) bool: area under the ROC curve.

    The share of pairs of an error and a right answer in which the error scores higher.
    """
    wrong = int(errors.sum())
    right = len(errors) - wrong
    if not wrong or not right:
        return math.nan
    pairs = stats.mannwhitneyu(scores[errors].cpu().numpy(), scores[~errors].cpu().numpy())
    return float(pairs.statistic / (wrong * right))


def balance(labels: torch.Tensor, num_classes: int) -> float:
    """Effective share of the classes among labels (n,): exp of their entropy / K; 1: all alike."""
    shares = torch.bincount(labels, minlength=num_classes).double() / len(labels)
    return float(torch.special.entr(shares).sum().exp()) / num_classes


def highest(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Positions (n,) of the highest scores (U,); InputError where they are not finite."""
    if not scores.isfinite().all():
        raise InputError("scores of the unlabelled images are not finite: give a smaller --dqn-lr")
    return scores.topk(n).indices


def k_centre(view: View, n: int) -> torch.Tensor:
    """Greedy k-centre in feature space: always the image farthest from all that are labelled.

    Sener & Savarese, ICLR 2018, "Active learning for convolutional neural networks: a core-set
    approach", algorithm 1. Returns positions (n,).
    """
    features = view.features
    nearest = torch.full_like(features[:, 0], torch.inf)
    for part in view.labelled_features.split(1024):
        nearest = nearest.minimum(torch.cdist(features, part).amin(1))
    chosen = torch.empty(n, dtype=torch.int64, device=features.device)
    for i in range(n):
        at = nearest.argmax()[None]
        chosen[i : i + 1] = at
        nearest = nearest.minimum(torch.cdist(features, features[at])[:, 0])
        nearest[at] = -1.0  # never again, not even among copies of one image
    return chosen


def badge(view: View, n: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ on gradient embeddings of the last layer, the label guessed -> positions (n,).

    Ash et al., ICLR 2020, "Deep batch active learning by diverse, uncertain gradient lower bounds".
    An embedding is the outer product of (p - one-hot of the guess) and the features; distances
    are computed from the two factors, so that no (U, K F) array is needed. The first centre is the
    longest embedding, the others are drawn with probability proportional to the squared distance.
    """
    error = view.probabilities.clone()
    error[torch.arange(len(error), device=error.device), error.argmax(1)] -= 1
    features = view.features
    length = error.square().sum(1) * features.square().sum(1)  # squared norm of each embedding
    nearest = torch.full_like(length, torch.inf)
    chosen = torch.empty(n, dtype=torch.int64, device=error.device)
    at = length.argmax()[None]
    for i in range(n):
        chosen[i : i + 1] = at
        dot = (error @ error[at][0]) * (features @ features[at][0])
        distance = (length + length[at] - 2 * dot).clamp_min(1e-30)  # 0 would never be drawn
        nearest = nearest.minimum(distance)
        nearest[at] = 0.0  # zero weight: never drawn again
        if i + 1 < n:
            at = torch.multinomial(nearest, 1, generator=generator)
    return chosen


class Selector:
    """Q-network with its replay: scores the unlabelled images, learns from what was bought."""

    def __init__(self, num_classes: int, lr: float, seed: int, device: torch.device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(num_classes + 3, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, 2),
            ).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        columns = {
            "state": ((num_classes + 3,), torch.float32),
            "action": ((), torch.int64),
            "reward": ((), torch.float32),
        }
        self.replay = Replay(REPLAY, columns, device)

    @torch.inference_mode()
    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Q(s, select) of states (U, S) -> (U,)."""
        return self.network(states)[:, SELECT]

    def store(
        self,
        states: torch.Tensor,
        chosen: torch.Tensor,
        wrong: torch.Tensor,
        rng: np.random.Generator,
    ) -> None:
        """Keep the chosen positions (n,) with reward `wrong` (n,), and as many skipped ones with 0.

        `states` (U, S) are those of all images that could have been chosen.
        """
        skipped = torch.ones(len(states), dtype=torch.bool, device=states.device)
        skipped[chosen] = False
        others = skipped.nonzero()[:, 0]
        few = rng.choice(len(others), min(len(chosen), len(others)), replace=False)
        others = others[torch.from_numpy(few).to(others.device)]
        self.replay.add(
            state=states[torch.cat([chosen, others])],
            action=torch.cat([torch.full_like(chosen, SELECT), torch.full_like(others, SKIP)]),
            reward=torch.cat([wrong.float(), torch.zeros(len(others), device=states.device)]),
        )

    def learn(self, steps: int, rng: np.random.Generator) -> None:
        """The gradient steps of one query: squared error between Q(s, a) and the reward."""
        for _ in range(steps):
            rows = self.replay.sample(min(BATCH, len(self.replay)), rng)
            q_taken = self.network(rows["state"]).gather(1, rows["action"][:, None])[:, 0]
            loss = functional.mse_loss(q_taken, rows["reward"])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        filled, columns = len(self.replay), self.replay.columns
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": {name: column[:filled].clone() for name, column in columns.items()},
            "count": self.replay.count,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, column in state["replay"].items():
            self.replay.columns[name][: len(column)] = column
        self.replay.count = state["count"]
