"""Feature extractor and embedding head: a torchvision trunk, then one linear layer whose first n outputs are in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet

from guided.config import Backbone, Trunk


def _densenet_small() -> DenseNet:
    # Three of DenseNet-121's four stages with three layers each: a 48 px patch still has 3 x 3 positions at the end.
    return DenseNet(growth_rate=16, block_config=(3, 3, 3), num_init_features=32)


def _resnet10() -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1])


# name -> (constructor, attribute that holds its classification layers)
TRUNKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "densenet121": (models.densenet121, "classifier"),
    "densenet_small": (_densenet_small, "classifier"),
    "resnet10": (_resnet10, "fc"),
    "resnet18": (models.resnet18, "fc"),
    "resnet50": (models.resnet50, "fc"),
    "mobilenet_v3_small": (models.mobilenet_v3_small, "classifier"),
    "shufflenet_v2": (models.shufflenet_v2_x1_0, "fc"),
}


class EmbeddingNet(nn.Module):
    """Trunk and embedding head of `length` outputs, of which `forward` returns the first n.

    The head keeps its full size while the embedding grows, so shapes of parameters never change; outputs beyond n are
    not computed and get no gradient. Images are (B, 3, H, W), already normalised.
    """

    def __init__(self, config: Backbone, length: int) -> None:
        super().__init__()
        make, last = TRUNKS[config.name]
        self.trunk = make()
        features = _features(getattr(self.trunk, last))
        setattr(self.trunk, last, nn.Identity())
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                # MobileNetV3 averages over about 100 steps, longer than a short training runs: its statistics would
                # still be those of the start when the first epochs are validated.
                module.momentum = max(module.momentum, 0.1)
        if config.weights != "none":
            load_weights(self.trunk, config)
        self.head = nn.Linear(features, length)

    def forward(self, images: Tensor, length: int) -> Tensor:
        """Embedding (B, length) in the precision of the parameters, under autocast too.

        In bf16 neighbouring numbers near 5, the guide's radius, lie 0.03 apart: too coarse for a coordinate.
        """
        features = self.trunk(images)
        with torch.autocast(images.device.type, enabled=False):
            return F.linear(features.to(self.head.weight.dtype), self.head.weight[:length], self.head.bias[:length])


def restored(trunk: Trunk, length: int, state: dict[str, Tensor]) -> EmbeddingNet:
    """The network of a state dict, ready to embed. Raises ValueError where the state is not that of such a network."""
    with torch.device("meta"):  # no weights are drawn: they come with the state
        net = EmbeddingNet(Backbone(name=trunk), length)
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of {trunk} with {length} outputs: {error}") from None
    return net.eval()


def _features(classifier: nn.Module) -> int:
    first = next(module for module in classifier.modules() if isinstance(module, nn.Linear))
    return first.in_features


def load_weights(trunk: nn.Module, config: Backbone) -> None:
    """Put pretrained weights into the trunk: torchvision's default ones, or a state dict saved with torch.save.

    Raises ValueError where they cannot be had or do not fit; a file is read without unpickling code.
    """
    if config.weights == "torchvision":
        if config.name in ("densenet_small", "resnet10"):
            raise ValueError(
                f"torchvision has no weights for {config.name}; use another backbone.name or weights: none"
            )
        name = {"shufflenet_v2": "shufflenet_v2_x1_0"}.get(config.name, config.name)
        try:
            state = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"torchvision's weights for {config.name} could not be downloaded ({error}); "
                "give backbone.weights the path of a state dict instead, or none"
            ) from None
    else:
        try:
            state = torch.load(Path(config.weights), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"backbone.weights: no file {config.weights}; use none, torchvision or a path") from None
        except Exception as error:  # torch.load raises whatever a broken archive provokes
            raise ValueError(f"backbone.weights: {config.weights} is not a state dict ({error})") from None
    _, last = TRUNKS[config.name]
    wanted = trunk.state_dict()
    given = {_modern(key): value for key, value in state.items() if not key.startswith(f"{last}.")}
    bad = [key for key in wanted if key not in given or given[key].shape != wanted[key].shape]
    if bad or given.keys() - wanted.keys():
        odd = bad or sorted(given.keys() - wanted.keys())
        raise ValueError(f"backbone.weights: {config.weights} does not fit {config.name}, for example at {odd[0]!r}")
    trunk.load_state_dict(given)


def _modern(key: str) -> str:
    # DenseNet files of 2017 write norm.1 for norm1; torchvision still ships them.
    for layer in ("norm", "relu", "conv"):
        for number in "12":
            if "denselayer" in key:
                key = key.replace(f".{layer}.{number}.", f".{layer}{number}.")
    return key


class SlicedAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) over the open rows of parameters, each row counting its own steps.

    A row is a component of the embedding: an output of the embedding head, or what a loss keeps per component.

    A row that opens late under a common step count would skip Adam's bias correction: its second moment starts at 0
    while the correction has run on, and its first steps are up to 6.6 learning rates long. With its own count a row
    takes exactly the steps plain Adam would have taken had training begun at its opening. Rows that are not open are
    not touched, by weight decay neither (L2 in the gradient, as in torch.optim.Adam).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})
        self.open_rows: int | None = None  # all

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the first `open_rows` rows."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                    state["square"] = torch.zeros_like(p)
                    state["steps"] = torch.zeros((p.shape[0],) + (1,) * (p.dim() - 1), device=p.device)
                rows = slice(0, self.open_rows)
                gradient = p.grad[rows]
                if group["weight_decay"]:
                    gradient = gradient + group["weight_decay"] * p[rows]
                mean, square, steps = (state[key][rows] for key in ("mean", "square", "steps"))
                steps += 1
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
                p[rows] -= group["lr"] * (mean / (1 - beta1**steps)) / denominator


class Optimizers:
    """Adam for the trunk and SlicedAdam for the head, stepped and saved as one.

    A loss may bring parameters of its own: `sliced` ones with a row per component, and `whole` ones.
    """

    def __init__(
        self,
        net: EmbeddingNet,
        lr: float,
        weight_decay: float,
        *,
        sliced: Iterable[nn.Parameter] = (),
        whole: Iterable[nn.Parameter] = (),
    ) -> None:
        trunk, head = [*net.trunk.parameters(), *whole], [*net.head.parameters(), *sliced]
        self._trunk = torch.optim.Adam(trunk, lr=lr, weight_decay=weight_decay, fused=True)
        self._head = SlicedAdam(head, lr=lr, weight_decay=weight_decay)

    def _both(self) -> Iterator[torch.optim.Optimizer]:
        yield self._trunk
        yield self._head

    def prepare(self, lr: float, length: int) -> None:
        """Set the learning rate and the number of open components of an epoch."""
        self._head.open_rows = length
        for optimizer in self._both():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def step(self, loss: Tensor) -> None:
        """Backward pass and one step."""
        for optimizer in self._both():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self._both():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"trunk": self._trunk.state_dict(), "head": self._head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trunk.load_state_dict(state["trunk"])
        self._head.load_state_dict(state["head"])
