"""Norms that are modulated by the prompts: the paper's PSAP, and its ablation RFF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.layers import Conv3d, instance_norm, resize
from ctsam3d.model.prompts import MAX_CLICKS

PROMPTS = 3  # P, N, Y

Places = tuple[Tensor, Tensor, Tensor, Tensor]  # of N voxels in a batch: the patch and z, y, x, int64 (N,) each


class PsapLayer(nn.Module):
    """Instance norm whose scale and shift are computed from the prompt maps, voxel by voxel (PSAP).

    The paper's equation has the scale alone; the published network has both, and so has this one.

    Attributes:
        plain: take the equation as it stands also where no gradient is wanted.
    """

    plain = False

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.shared = Conv3d(PROMPTS, hidden, 3, padding=1)
        self.gamma = Conv3d(hidden, channels, 3, padding=1)
        self.beta = Conv3d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """The modulated norm of x; by `dense` where gradients are wanted, else by `sparse` where that is faster.

        Args:
            x: (B, C, D, H, W).
            prompts: (B, 3, D, H, W), of the same size.
        """
        if self.plain or torch.is_grad_enabled():
            return self.dense(x, prompts)
        filled, hidden = (prompts != 0).any(1), self.shared.out_channels
        most = _DENSE_SHARE * hidden / (hidden + _ROW_OVERHEAD) * filled.numel()
        if int(filled.sum()) > most or int((near := _near(filled)).sum()) > most:  # the first is sooner known
            return self.dense(x, prompts)
        return self.sparse(x, prompts, near.nonzero(as_tuple=True))

    def dense(self, x: Tensor, prompts: Tensor) -> Tensor:
        """The equation as it stands; the truth for `sparse`."""
        weight, bias = self._both_kernels()
        gamma, beta = F.conv3d(F.relu(self.shared(prompts)), weight, bias, padding=1).chunk(2, dim=1)
        return torch.addcmul(beta, instance_norm(x), 1 + gamma)

    def sparse(self, x: Tensor, prompts: Tensor, places: Places) -> Tensor:
        """As `dense`; scale and shift are computed only around what is in the maps, which are zero almost everywhere.

        Elsewhere they are those of empty maps: one value inside the patch, others on its outermost layer, where the
        convolutions meet their zero padding.

        Args:
            places: the voxels up to 2 from something in the maps, once 1 for each convolution.
        """
        normed = instance_norm(x)
        out = self._of_empty_maps(normed)
        if len(places[0]):
            gamma, beta = self._at(prompts, places).chunk(2, dim=1)
            rows = normed.permute(0, 2, 3, 4, 1)[places]  # (N, C)
            out.permute(0, 2, 3, 4, 1)[places] = torch.addcmul(beta, rows, 1 + gamma)
        return out

    def _at(self, prompts: Tensor, places: Places) -> Tensor:
        """Scale and shift (N, 2C) at N voxels: their 27 neighbours in a row each, times the kernels as a matrix."""
        hidden = F.relu(self.shared(prompts)).permute(0, 2, 3, 4, 1)  # (B, D, H, W, hidden)
        hidden = F.pad(hidden, (0, 0, 1, 1, 1, 1, 1, 1))
        _, depth, height, width, channels = hidden.shape
        patch, z, y, x = places
        first = ((patch * depth + z) * height + y) * width + x  # the neighbour at the low corner, of padded volumes
        steps = torch.arange(3, device=first.device)
        offsets = ((steps[:, None, None] * height + steps[:, None]) * width + steps).flatten()
        weight, bias = self._both_kernels()
        matrix = weight.permute(2, 3, 4, 1, 0).reshape(27 * channels, -1)
        voxels, parts = hidden.reshape(-1, channels), []
        for start in first.split(_ROWS):
            rows = voxels.index_select(0, (start[:, None] + offsets).flatten())
            parts.append(torch.addmm(bias, rows.view(len(start), -1), matrix))
        return torch.cat(parts)

    def _both_kernels(self) -> tuple[Tensor, Tensor]:
        """Weight (2C, hidden, 3, 3, 3) and bias (2C,) of scale and shift."""
        return torch.cat([self.gamma.weight, self.beta.weight]), torch.cat([self.gamma.bias, self.beta.bias])

    def _of_empty_maps(self, normed: Tensor) -> Tensor:
        """The answer (B, C, D, H, W) to maps without anything in them."""
        # (1, C, 3, 3, 3) each: low face, inside, high face along each axis.
        hidden = F.relu(self.shared.bias).view(1, -1, 1, 1, 1).expand(-1, -1, 3, 3, 3)
        gamma, beta = self.gamma(hidden), self.beta(hidden)
        inside = (..., slice(1, 2), slice(1, 2), slice(1, 2))
        out = torch.addcmul(beta[inside], normed, 1 + gamma[inside])
        for axis in (2, 3, 4):
            for side in (0, 2):
                scale, shift = (self._face(cube, axis, side, normed.shape) for cube in (1 + gamma, beta))
                place = (*[slice(None)] * axis, slice(0, 1) if side == 0 else slice(-1, None))
                out[place] = torch.addcmul(shift, normed[place], scale)
        return out

    @staticmethod
    def _face(cube: Tensor, axis: int, side: int, shape: Sequence[int]) -> Tensor:
        """One face of a patch, (1, C, D, H, W) with 1 along `axis`, from its cube of low, inside and high values."""
        face = cube.narrow(axis, side, 1)
        for other in {2, 3, 4} - {axis}:
            index = torch.tensor([0] + [1] * (shape[other] - 2) + [2], device=cube.device)
            face = face.index_select(other, index)
        return face


_ROWS = 512  # voxels at a time; their neighbours then stay in a core's cache
# From this share of the volume on one large convolution is faster than rows; from less where there are few hidden
# channels, as the rest of the work on a row costs as much as that many of them. Measured for 16, 32 and 128 on a CPU.
_DENSE_SHARE, _ROW_OVERHEAD = 0.6, 16


def _near(filled: Tensor) -> Tensor:
    """bool (B, D, H, W): whether anything that is true in one is up to 2 voxels away along each axis."""
    near = filled.float()
    for axis in (1, 2, 3):
        lines = near.movedim(axis, -1)
        near = F.max_pool1d(lines.flatten(0, 2)[:, None], 5, 1, 2)[:, 0].view(lines.shape).movedim(-1, axis)
    return near > 0


class RffLayer(nn.Module):
    """The paper's ablation of PSAP: clicks as tokens of random Fourier features that every voxel attends to.

    The clicks are read off the maps, whose value is 1 at a click and nowhere else.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, hidden // 2))
        self.sign = nn.Embedding(2, hidden)
        self.no_click = nn.Parameter(torch.zeros(hidden))
        self.query = Conv3d(channels, hidden, 1)
        self.value = nn.Linear(hidden, channels)
        self.mask = Conv3d(1, channels, 3, padding=1)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """x (B, C, D, H, W), prompts (B, 3, D', H', W') at the patch's full size."""
        normed, size = instance_norm(x), x.shape[2:]
        axes = [(torch.arange(n, device=x.device) + 0.5) / n for n in size]
        places = self._encode(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1))  # (D, H, W, hidden)
        query = (self.query(normed).permute(0, 2, 3, 4, 1) + places).flatten(1, 3)  # (B, N, hidden)
        out = torch.stack([self._attend(q, p) for q, p in zip(query, prompts)])  # (B, N, C)
        return normed + out.transpose(1, 2).unflatten(2, size) + self.mask(resize(prompts[:, 2:], size))

    def _attend(self, query: Tensor, prompts: Tensor) -> Tensor:
        """query (N, hidden) over the clicks of one patch's prompts (3, D, H, W); returns (N, C)."""
        sign, *index = torch.nonzero(prompts[:2] == 1, as_tuple=True)
        if len(sign) == 0:
            tokens = self.no_click[None]
        else:
            scale = torch.tensor(prompts.shape[1:], device=query.device)
            tokens = self._encode((torch.stack(index, dim=-1) + 0.5) / scale) + self.sign(sign)  # (clicks, hidden)
            tokens = tokens[-2 * MAX_CLICKS :]
        weight = torch.softmax(query @ tokens.T / math.sqrt(tokens.shape[1]), dim=1)  # (N, clicks)
        return self.value(weight @ tokens)

    def _encode(self, place: Tensor) -> Tensor:
        """place (..., 3) in [0, 1] to (..., hidden)."""
        angle = 2 * math.pi * (2 * place - 1) @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
