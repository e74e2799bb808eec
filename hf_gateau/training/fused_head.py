"""TRL's fused head, the internal of TRL that weighting sequences stands on: what is known of it stands here alone.

In TRL 1.16 `SFTTrainer.compute_loss` calls `model(**inputs, fused_lm_head=True)`, and its loss is minus the sum of
`outputs.log_probs` over `num_items_in_batch`; these are (B, T - 1), zero where there is no target. So a weight on a target's
log-probability is a weight on its loss. `tests/training/test_fused_head.py` says for which versions of TRL this holds.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch


ASKED = "fused_lm_head"  # the argument by which TRL asks a model for log-probabilities in place of logits


class WeightedHead:
    """A model whose log-probabilities come weighted, in the place of a model that `SFTTrainer.compute_loss` takes.

    Args:
        model: a model with TRL's fused head.
        weights_BT (`torch.Tensor` of shape `(B, T - 1)`, *optional*): of every target, aligned with `labels[:, 1:]`; None
            where the targets are none that count, and loss and metrics are to be zero.

    Attributes:
        is_used (`bool`): whether a loss was asked for.
    """

    def __init__(self, model, weights_BT: torch.Tensor | None):
        self.model, self.weights_BT, self.is_used = model, weights_BT, False

    def __call__(self, **kwargs) -> Any:
        outputs = self.model(**kwargs)
        if kwargs.get(ASKED):
            self.is_used = True
            self._silence(outputs) if self.weights_BT is None else self._weight(outputs)
        return outputs

    def _weight(self, outputs) -> None:
        log_probs_BT = outputs.log_probs
        missing = log_probs_BT.shape[1] - self.weights_BT.shape[1]  # virtual tokens that PEFT puts in front
        weights_BT = torch.nn.functional.pad(self.weights_BT, (missing, 0))
        outputs.log_probs = log_probs_BT * weights_BT.to(log_probs_BT.device)

    def _silence(self, outputs) -> None:
        outputs.log_probs = outputs.log_probs * 0.0
        outputs.entropy = outputs.entropy * 0.0
        for name in ("is_top1", "label_mask"):
            setattr(outputs, name, torch.zeros_like(getattr(outputs, name)))

    def check(self) -> None:
        """Refuse to go on with a loss that was not weighted.

        Raises:
            RuntimeError: TRL has made the loss in another way.
        """
        if not self.is_used:
            raise RuntimeError(
                f"TRL {version('trl')} makes its loss without asking the model for {ASKED}=True, so the loss is not weighted "
                "by sequence. Install a version that tests/training/test_fused_head.py names, or give "
                "loss_weighting='token'."
            )
