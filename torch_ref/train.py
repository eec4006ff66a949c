"""The training step of Ho et al. 2020 (Algorithm 1, appendix B): Adam, warm-up, clipping, EMA."""

import torch
from torch import Tensor, nn

from .diffusion import training_loss
from .schedule import Schedule


@torch.no_grad()
def ema_update(
    ema: dict[str, Tensor], params: dict[str, Tensor], decay: float
) -> dict[str, Tensor]:
    """ema <- decay * ema + (1 - decay) * params, in place; returns ema."""
    for name, average in ema.items():
        average.mul_(decay).add_(params[name], alpha=1.0 - decay)
    return ema


class Trainer:
    """The model, Adam, the averaged parameters `ema`, and `step`, the number of updates so far."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        max_grad_norm: float | None = 1.0,
        ema_decay: float = 0.9999,
        ema_warmup: bool = False,
        prediction_type: str = "eps",
        loss_type: str = "l2",
    ):
        """Updates `model` in place. With max_grad_norm None, gradients are not clipped."""
        self.model, self.schedule, self.step = model, schedule, 0
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.max_grad_norm, self.ema_decay, self.ema_warmup = max_grad_norm, ema_decay, ema_warmup
        self.kinds = prediction_type, loss_type
        self.optimizer = torch.optim.Adam(model.parameters(), learning_rate, betas, eps=1e-8)
        self.ema = {name: p.detach().clone() for name, p in model.named_parameters()}

    def train_step(self, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One update on x_0[B,C,H,W] in [-1, 1] and t[B]; returns mean loss and gradient norm."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = training_loss(self.model, self.schedule, x_0, t, noise, *self.kinds).mean()
        loss.backward()
        grad_norm = self._clip_gradients()
        # Warm-up starts at 0, as in Ho et al.'s code: the first step only fills Adam's moments.
        warmth = min(self.step / self.warmup_steps, 1.0) if self.warmup_steps > 0 else 1.0
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * warmth
        self.optimizer.step()
        ramp = (1 + self.step) / (10 + self.step) if self.ema_warmup else 1.0
        ema_update(self.ema, dict(self.model.named_parameters()), min(self.ema_decay, ramp))
        self.step += 1
        return loss.detach(), grad_norm

    def _clip_gradients(self) -> Tensor:
        """Limit the joint L2 norm of all gradients to max_grad_norm; return the norm before."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        if self.max_grad_norm is not None:
            # as in TensorFlow and Optax; torch's clip_grad_norm_ would divide by norm + 1e-6
            factor = (self.max_grad_norm / norm).clamp(max=1.0)
            for grad in grads:
                grad.mul_(factor)
        return norm
