"""Scores from coarse to fine: the scores of a coarse level modulate the next finer level (Focus-DETR, section 3.1).

    released    S_l = network(z_l (1 + alpha_l U_l))             U_l: raw S_{l+1}, corners aligned, padding included
    exact       S_l = network's MLP(norm(z_l) (1 + alpha_l U_l)) U_l: 2 p_{l+1} - 1 at the token's centre, p = sigmoid S

The network starts with a layer normalisation, which removes a positive factor of its input. So the released form
changes no score, except where 1 + alpha U is negative: there it flips the sign of a token's features. The exact form
multiplies after the normalisation, with U in [-1, 1]: features of foreground grow, features of background shrink. No
gradient flows back to the coarser level: the many foreground tokens of fine levels would dominate what the coarse
scores learn.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection.selector import ScoringNetwork, TokenScores
from sparse_detr.structures import Pyramid, Tokens, geometry_dtype


class TopDownScorer(nn.Module):
    """One scoring network for all levels; the scores of a level modulate the next finer one.

    Args:
        network: the network.
        num_levels: L.
        modulation: `exact` multiplies after the network's normalisation, by probabilities interpolated between token
            centres of the unpadded image; `released` is the public implementation; see the formulas above.
    """

    initial_alpha = {"exact": (0.5, 0.5), "released": (-0.3, 0.3)}  # uniform between these

    def __init__(self, *, network: ScoringNetwork, num_levels: int, modulation: Literal["exact", "released"] = "exact"):
        super().__init__()
        self.network, self.modulation = network, modulation
        # One for each level except the coarsest, the second coarsest first; none for a single level.
        self.alpha = nn.Parameter(torch.empty(num_levels - 1), requires_grad=num_levels > 1)
        nn.init.uniform_(self.alpha, *self.initial_alpha[modulation])

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens, from the coarsest level to the finest."""
        pyramid = tokens.pyramid
        levels = pyramid.split(proposals.project(tokens.content + tokens.position))
        padding_masks = pyramid.split(pyramid.padding_mask)
        last = len(levels) - 1
        scores = [self.network(levels[last], padding_masks[last])]  # finer levels are inserted in front
        for level in reversed(range(last)):
            gain = 1 + self.alpha[last - 1 - level] * self._modulation(scores[0], pyramid, level)
            scores.insert(0, self._score(levels[level], padding_masks[level], gain))
        return TokenScores(torch.cat(scores, 1))

    def _modulation(self, coarser: Tensor, pyramid: Pyramid, level: int) -> Tensor:
        """Return U_l (B, n_l): the scores of level l + 1, interpolated at the tokens of level l."""
        if self.modulation == "exact":
            return interpolate_valid(2 * coarser.detach().sigmoid() - 1, pyramid, level + 1, level)
        coarse_map = coarser.unflatten(1, (1, *pyramid.spatial_shapes[level + 1]))
        fine_map = F.interpolate(coarse_map, pyramid.spatial_shapes[level], mode="bilinear", align_corners=True)
        return fine_map.flatten(1)

    def _score(self, x: Tensor, padding_mask: Tensor, gain: Tensor) -> Tensor:
        if self.modulation == "exact":
            return self.network(x, padding_mask, gain)
        return self.network(x * gain[..., None], padding_mask)


def interpolate_valid(values: Tensor, pyramid: Pyramid, source: int, target: int) -> Tensor:
    """Interpolate the values of one level bilinearly at the token centres of another, in the unpadded image.

    Beyond the outermost centres the values are constant. Padding is never read; its result is that of the border.

    Args:
        values: (B, h * w) of level `source`, floating point.

    Returns:
        (B, h' * w') for level `target`.
    """
    dtype = geometry_dtype(values.dtype)
    rows, columns = (_weights(pyramid, source, target, axis, dtype) for axis in (0, 1))
    with torch.autocast(values.device.type, enabled=False):
        level_map = values.to(dtype).unflatten(1, pyramid.spatial_shapes[source])
        return (rows @ level_map @ columns.transpose(1, 2)).flatten(1).to(values.dtype)


def _weights(pyramid: Pyramid, source: int, target: int, axis: int, dtype: torch.dtype) -> Tensor:
    """Return (B, n', n): the weight of each source row (axis 0) or column (axis 1) in a target row or column."""
    valid = pyramid.valid_sizes[:, source, axis, None].to(dtype)  # (B, 1)
    valid_target = pyramid.valid_sizes[:, target, axis, None].to(dtype)
    centers = torch.arange(pyramid.spatial_shapes[target][axis], device=pyramid.device).to(dtype) + 0.5
    position = (centers / valid_target * valid - 0.5).clamp(min=0)
    position = torch.minimum(position, valid - 1)
    cells = torch.arange(pyramid.spatial_shapes[source][axis], device=pyramid.device).to(dtype)
    return (1 - (position[..., None] - cells).abs()).clamp(min=0)
