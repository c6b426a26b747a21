"""AdamW over two groups of parameters: with weight decay and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from surgrec.configs.pretrain import OptimConfig


def parameter_groups(
    model: nn.Module, no_weight_decay: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, object]]:
    """Two groups, {"params", "names", "decays"}; what needs no gradient (an EMA teacher) is left out."""
    groups: list[dict[str, object]] = []
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for decays in (True, False):
        chosen = [(name, p) for name, p in trained if no_weight_decay(name, p) != decays]
        if chosen:
            groups.append(
                {"params": [p for _, p in chosen], "names": [name for name, _ in chosen], "decays": decays}
            )
    return groups


def build_adamw(
    model: nn.Module, no_weight_decay: Callable[[str, nn.Parameter], bool], optim: OptimConfig
) -> torch.optim.AdamW:
    """Fused AdamW. Learning rate and weight decay are set before each step by `set_hyperparameters`."""
    return torch.optim.AdamW(
        parameter_groups(model, no_weight_decay), lr=0.0, betas=optim.betas, eps=optim.eps, fused=True
    )


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Write this step's values into the groups; those without decay keep 0, and `scale` is of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def clip_gradients(parameters: Iterable[Tensor], largest: float | None) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `largest`; returns the norm before.

    The norm is a scalar on the device, which is not waited for; not finite where any gradient is not.
    None only measures.
    """
    held = [p for p in parameters if p.grad is not None]
    if largest is None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None], foreach=True)
    else:
        norm = torch.nn.utils.clip_grad_norm_(held, largest, error_if_nonfinite=False, foreach=True)
    # Under FSDP the norm is that of all shards only once they have been added up.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "exp_avg.<name>", "exp_avg_sq.<name>", "step.<name>"."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for kind, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = value
    return tensors


def prepare_state(optimizer: torch.optim.Optimizer, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Make room for the state of these names and whole shapes; returns it by name, to be filled in place.

    As `optimizer_tensors` gave the names. Under FSDP the tensors are DTensors like their parameters. Raises
    ValueError naming the entries that are left over or whose shape differs.
    """
    left = dict(shapes)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state: dict[str, Tensor] = {}
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                shape = left.pop(f"{kind}.{name}", None)
                if shape is None:
                    continue
                expected = () if kind == "step" else tuple(parameter.shape)
                if tuple(shape) != expected:
                    raise ValueError(
                        f"optimizer state {kind}.{name} has shape {tuple(shape)}, it must be {expected}"
                    )
                # Fused AdamW keeps its step counts on the device of the parameter, in float32.
                state[kind] = (
                    torch.zeros((), dtype=torch.float32, device=parameter.device)
                    if kind == "step"
                    else torch.zeros_like(parameter, requires_grad=False)
                )
            if state:
                optimizer.state[parameter] = state
    if left:
        raise ValueError(f"optimizer state for unknown parameters: {', '.join(sorted(left)[:5])}")
    return optimizer_tensors(optimizer)
