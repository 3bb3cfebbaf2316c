"""The classifier of the active learning study: networks, augmentation, training, prediction.

Shapes: N images, B batch, C channels, H x W pixels, K classes, F features

Images stay on the device as bytes; a batch is cropped, mirrored and normalised there.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from tqdm import trange

from core.errors import InputError
from studies.active_learning.images import Images
from studies.active_learning.settings import NetworkName, Protocol

PREDICT_BATCH = 1000  # images
MOMENTUM, WEIGHT_DECAY, DECAY_AT = 0.9, 5e-4, 0.8  # of SGD; share of epochs before lr / 10 (slides)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class Classifier(nn.Module):
    """Trunk -> features (B, F) -> linear head -> logits (B, K)."""

    def __init__(self, trunk: nn.Module, num_features: int, num_classes: int):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) -> logits (B, K), features (B, F)."""
        features = self.trunk(x)
        return self.head(features), features


def resnet18(channels: int, num_classes: int, width: int) -> Classifier:
    """ResNet-18 for 32 x 32 pixels: a 3 x 3 stem without pooling, four stages of two blocks."""
    stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    layers, inputs = [stem, nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(4):
        outputs = width * 2**stage
        layers += [BasicBlock(inputs, outputs, 2 if stage else 1), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(trunk, inputs, num_classes)


def small(channels: int, num_classes: int, width: int) -> Classifier:
    """Two convolutions and a hidden layer: enough for the digits, quick on a CPU."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    hidden = [nn.Linear(8 * width, 2 * width), nn.ReLU()]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *hidden)
    return Classifier(trunk, 2 * width, num_classes)


NETWORKS = {"resnet18": resnet18, "small": small}


def make_classifier(
    network: NetworkName, width: int, images: Images, seed: int, device: torch.device
) -> Classifier:
    """New weights from a seed of their own, the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = NETWORKS[network](images.train.shape[1], len(images.classes), width)
    return classifier.to(device, memory_format=layout_on(device))


def layout_on(device: torch.device) -> torch.memory_format:
    """Channels last on CUDA only: with 2 or 4 channels torch's convolution crashes on a CPU."""
    cuda = device.type == "cuda"
    return torch.channels_last if cuda else torch.contiguous_format


def normalisation(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of bytes (N, C, H, W) -> two (1, C, 1, 1)."""
    parts = pixels.split(PREDICT_BATCH)
    count = pixels.numel() / pixels.shape[1]
    total = sum(part.double().sum((0, 2, 3)) for part in parts)
    square = sum(part.double().square().sum((0, 2, 3)) for part in parts)
    mean = total / count
    std = (square / count - mean.square()).sqrt()
    return mean.float()[None, :, None, None], std.float()[None, :, None, None]


def normalise(pixels: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Bytes -> float32 of mean 0 and deviation 1."""
    scaled = (pixels - norm[0]) / norm[1]
    return scaled.contiguous(memory_format=layout_on(pixels.device))


def augment(
    pixels: torch.Tensor, padding: int, flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Mirror at random, then crop at random out of the zero-padded image; bytes (B, C, H, W)."""
    count, _, height, width = pixels.shape
    device = pixels.device

    def corner() -> torch.Tensor:
        shape = (count, 1)
        return torch.randint(2 * padding + 1, shape, generator=generator, device=device)

    rows = torch.arange(height, device=device) + corner()  # (B, H)
    cols = torch.arange(width, device=device) + corner()  # (B, W)
    if flip:
        mirrored = torch.rand((count, 1), generator=generator, device=device) < 0.5
        cols = torch.where(mirrored, width + 2 * padding - 1 - cols, cols)
    padded = functional.pad(pixels, (padding,) * 4).permute(0, 2, 3, 1)
    each = torch.arange(count, device=device)[:, None, None]
    return padded[each, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def learning_rate(cfg: Protocol, epoch: int) -> float:
    """Learning rate of an epoch, from 0."""
    return cfg.lr * (0.1 if epoch >= round(DECAY_AT * cfg.epochs) else 1.0)


def fit(
    classifier: Classifier,
    images: Images,
    labelled: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    cfg: Protocol,
    generator: torch.Generator,
    progress: str | None = None,
) -> None:
    """Train on the `labelled` (L,) images with SGD on cross-entropy; mixed precision on CUDA.

    `cfg` is settled. An epoch is cut into equal batches of at most `cfg.batch` images. The bar
    appears only where training takes longer than two seconds.
    """
    device = labelled.device
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)
    sgd = {"lr": cfg.lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(classifier.parameters(), **sgd)
    classifier.train()
    shown = {"desc": progress, "leave": False, "disable": progress is None, "delay": 2}
    for epoch in trange(cfg.epochs, **shown):
        optimizer.param_groups[0]["lr"] = learning_rate(cfg, epoch)
        order = torch.randperm(len(labelled), generator=generator, device=device)
        # Equal parts: batch statistics of a last batch of four images would spoil the network.
        for part in labelled[order].tensor_split(math.ceil(len(order) / cfg.batch)):
            pixels = augment(images.train[part], *cfg.augmentation, generator)
            with torch.autocast(device.type, torch.float16, enabled=mixed):
                logits, _ = classifier(normalise(pixels, norm))
                loss = functional.cross_entropy(logits, images.train_labels[part])
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


class Outlook(NamedTuple):
    """What the classifier says of images."""

    probabilities: torch.Tensor  # (N, K) float32
    features: torch.Tensor  # (N, F) float32, the last layer's input

    def right(self, labels: torch.Tensor) -> torch.Tensor:
        """Where the most probable class is the label, (N,) bool."""
        return self.probabilities.argmax(1) == labels


@torch.inference_mode()
def predict(
    classifier: Classifier, pixels: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]
) -> Outlook:
    """Outlook on bytes (N, C, H, W): in batches, in evaluation mode, without augmentation."""
    mixed, outputs = pixels.device.type == "cuda", []
    classifier.eval()
    for part in pixels.split(PREDICT_BATCH):
        with torch.autocast(pixels.device.type, torch.float16, enabled=mixed):
            outputs.append(classifier(normalise(part, norm)))
    logits, features = (torch.cat(part).float() for part in zip(*outputs, strict=True))
    if not logits.isfinite().all():
        raise InputError("the classifier's outputs are not finite: give a smaller --lr")
    return Outlook(logits.softmax(1), features)
