"""The raw half of Eq. 4: how much attention the response pays to each segment, collected layer by layer in one forward pass.

Shapes: B batch, H heads, K keys (all tokens so far), Q rows of one chunk, T rows from the first that is collected, S segments.
"""

from collections.abc import Sequence

import torch

from ..rows.samples import Sample
from .device import exact_dtype, to_device, to_host
from .packing import Cut


class ResponseAttention:
    """Collects the attention from the responses' rows to the contexts' tokens over one forward pass of some samples.

    Hand it to the model's decoder as the keyword argument `response_attention`.

    Args:
        samples: one for each sequence of the batch, in order; a response's row and all after it are query rows.

    Attributes:
        totals: what was collected, tensors on the devices of the layers; `to_host` of them may take their places.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples
        self.first_row = min(sample.response_start for sample in samples)
        self.num_layers = 0
        self.num_tokens = max(sample.response_end for sample in samples)
        self._share_BT = torch.zeros(len(samples), self.num_tokens - self.first_row)  # 1 / |y| on a sample's own rows
        for share_T, sample in zip(self._share_BT, samples, strict=True):
            rows = slice(sample.response_start - self.first_row, sample.response_end - self.first_row)
            share_T[rows] = 1 / (sample.response_end - sample.response_start)
        self.totals: list[torch.Tensor] = []

    def begin_layer(self) -> tuple[int, ...] | None:
        """To be called by every layer as it runs; returns the heads whose weights are collected of it, None for all."""
        self.num_layers += 1
        return None

    def add(self, weights_BHQK: torch.Tensor, first_row: int, first_key: int) -> None:
        """Add a chunk of rows of the layer that runs, from `first_row`, whose keys begin at `first_key`."""
        share_BQ = self.share(first_row, weights_BHQK.shape[2], weights_BHQK.device)
        share_BHQ = share_BQ.unflatten(1, (1, 1, -1)).expand(-1, weights_BHQK.shape[1], -1, -1)
        self.add_mass(torch.matmul(share_BHQ.to(weights_BHQK.dtype), weights_BHQK).squeeze(2), first_key)

    def share(self, first_row: int, num_rows: int, device: torch.device) -> torch.Tensor:
        """What rows from `first_row` count in the mean over their response's tokens: float32 (B, Q), on a device."""
        self._share_BT = to_device(self._share_BT, device)  # layers may be on several devices
        return self._share_BT.narrow(1, first_row - self.first_row, num_rows)

    def add_mass(self, mass_BHK: torch.Tensor, first_key: int) -> None:
        """Add what rows of the layer that runs pay to keys from `first_key` on, weights times `share` summed over the rows."""
        num_heads, num_keys = mass_BHK.shape[1:]
        if not self.totals:
            shape, device = (len(self.samples), self.num_tokens), mass_BHK.device
            self.totals.append(torch.zeros(shape, dtype=exact_dtype(device), device=device))
        total_BK = self.totals[0].narrow(1, first_key, num_keys)
        total_BK += (mass_BHK.sum(1, dtype=total_BK.dtype) / num_heads).to(total_BK.device)

    def check(self) -> None:
        """To be called after the pass.

        Raises:
            ValueError: no layer knew of this.
        """
        if self.num_layers == 0:
            raise ValueError(
                "No attention layer reported its weights: the model does not hand keyword arguments on to transformers' "
                "attention interface. Use a model class from transformers itself."
            )

    def segment_means(self, cut: Cut) -> list[list[float]]:
        """Mean attention per token of each segment, averaged over response tokens, heads and layers: Eq. 4 of
        arXiv 2410.15633 before the softmax. For each sample one float per segment; the last segment over its own tokens."""
        self.check()
        total_BK = to_host(self.totals)[0] / self.num_layers
        spans = [
            total[sample.context_start : sample.context_end]
            for total, sample in zip(total_BK, self.samples, strict=True)
        ]
        return [[float(part.mean()) for part in cut(span.split(cut.length))] for span in spans]


class HeadAttention(ResponseAttention):
    """The same head by head, summed over segments at once: of all heads, or of those alone that are named.

    A layer without a named head does not compute weights at all.

    Args:
        samples: as there.
        cut: where segments end, and which are kept.
        heads (*optional*): (layer, head) of those that are collected, counted from 0 in the order in which attention layers run.
    """

    def __init__(self, samples: Sequence[Sample], cut: Cut, heads: Sequence[tuple[int, int]] | None = None):
        super().__init__(samples)
        self.cut, self.heads = cut, heads
        # A total (B, H, S + 1) for each of some layers; what belongs to no segment goes to the last place.
        self._layers: list[int] = []
        counts = [-(-len(sample.context) // cut.length) for sample in samples]
        self._places, self._rest = [cut(range(count)) for count in counts], max(counts)
        self._segment_BK = torch.full((len(samples), self.num_tokens), self._rest)
        for segment_K, sample in zip(self._segment_BK, samples, strict=True):
            inside = torch.arange(len(sample.context)) // cut.length
            segment_K[sample.context_start : sample.context_end] = inside

    def begin_layer(self) -> tuple[int, ...] | None:
        self.num_layers += 1
        if self.heads is None:
            return None
        return tuple(sorted(head for layer, head in self.heads if layer == self.num_layers - 1))

    def add_mass(self, mass_BHK: torch.Tensor, first_key: int) -> None:
        device, (num_samples, num_heads, num_keys) = mass_BHK.device, mass_BHK.shape
        exact, layer = exact_dtype(device), self.num_layers - 1
        self._segment_BK = to_device(self._segment_BK, device)
        if layer not in self._layers:
            self._layers.append(layer)
            self.totals.append(torch.zeros(num_samples, num_heads, self._rest + 1, dtype=exact, device=device))
        segment_BK = self._segment_BK.narrow(1, first_key, num_keys)
        self.totals[-1].scatter_add_(2, segment_BK[:, None].expand_as(mass_BHK), mass_BHK.to(exact))

    def names(self) -> list[tuple[int, int]]:
        """(layer, head) of the columns of `segment_heads`."""
        if self.heads is not None:
            return sorted(self.heads)
        layers = zip(self._layers, self.totals, strict=True)
        return [(layer, head) for layer, total in layers for head in range(total.shape[1])]

    def segment_heads(self) -> list[torch.Tensor]:
        """Mean attention per token of each segment, averaged over response tokens: for each sample (S, H), float64, on the CPU; the
        last segment over its own tokens."""
        self.check()
        if lacking := {layer for layer, _ in self.heads or ()} - set(self._layers):
            raise ValueError(
                f"The model has no attention layer {min(lacking)}, of which heads were chosen; choose heads anew."
            )
        found = []
        sums_BHS = torch.cat(to_host(self.totals), 1)
        for sums_HS, sample, places in zip(sums_BHS, self.samples, self._places, strict=True):
            sizes = [min(self.cut.length, len(sample.context) - place * self.cut.length) for place in places]
            found.append((sums_HS[:, list(places)] / torch.tensor(sizes, dtype=sums_HS.dtype)).T)
        return found
