"""The mask decoder of S: five stages that double the resolution, each modulated by the prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.layers import INSTANCE_NORM_EPS, ChannelLayerNorm, Conv3d, conv3d, instance_norm, resize
from ctsam3d.model.prompts import MAX_CLICKS

PROMPTS = 3  # P, N, Y


class PsapLayer(nn.Module):
    """Instance norm whose scale and shift are computed from the prompt maps, voxel by voxel (PSAP).

    The paper's equation has the scale alone; the published network has both, and so has this one.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.shared = Conv3d(PROMPTS, hidden, 3, padding=1)
        self.gamma = Conv3d(hidden, channels, 3, padding=1)
        self.beta = Conv3d(hidden, channels, 3, padding=1)

    def dense(self, x: Tensor, prompts: Tensor) -> Tensor:
        """The equation as it stands; the truth for `forward`.

        Args:
            x: (B, C, D, H, W).
            prompts: (B, 3, D, H, W), of the same size.
        """
        gamma, beta = self.dense_modulation(prompts)
        return F.instance_norm(x, eps=INSTANCE_NORM_EPS) * (1 + gamma) + beta

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """As `dense`; scale and shift are computed only around what is in the maps, which are zero almost everywhere.

        Elsewhere they are those of empty maps: one value inside the patch, others on its outermost layer, where the
        convolutions meet their zero padding. Around is box by box, one for every `_SLAB` slices.
        """
        normed = instance_norm(x)
        boxes = [(number, box) for number, maps in enumerate(prompts) for box in _answer_boxes(maps)]
        if sum(_volume(box) for _, box in boxes) > _DENSE_SHARE * prompts[:, 0].numel():
            gamma, beta = self.dense_modulation(prompts)
            return torch.addcmul(beta, normed, 1 + gamma)
        out = self._of_empty_maps(normed)
        for number, box in boxes:
            place = (number, slice(None), *box)
            gamma, beta = self._answer(prompts[number], box).chunk(2)
            out[place] = torch.addcmul(beta, normed[place], 1 + gamma)
        return out

    def dense_modulation(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C, D, H, W) of prompts (B, 3, D, H, W), by the plain convolutions."""
        return tuple(self._scale_and_shift(F.relu(self.shared(prompts)), padding=1).chunk(2, dim=1))

    def _answer(self, maps: Tensor, box: tuple[slice, ...]) -> Tensor:
        """Scale and shift (2C, d, h, w) of maps (3, D, H, W) on a box."""
        size = maps.shape[1:]
        seen, reached = _grown(box, 2, size), _grown(box, 1, size)
        hidden = F.relu(self.shared(maps[(slice(None), *seen)][None]))  # wrong where `seen` cuts through the maps
        hidden = hidden[(slice(None), slice(None), *_within(reached, seen))]
        # At the patch's faces zeros lie beyond; F.pad begins with the last axis.
        faces = [int(wide) for part, n in zip(box, size) for wide in (part.start == 0, part.stop == n)]
        padding = [faces[2 * axis + side] for axis in (2, 1, 0) for side in (0, 1)]
        return self._scale_and_shift(F.pad(hidden, padding), padding=0)[0]

    def _scale_and_shift(self, hidden: Tensor, padding: int) -> Tensor:
        """Both convolutions at once, (B, 2C, D, H, W)."""
        weight = torch.cat([self.gamma.weight, self.beta.weight])
        return conv3d(hidden, weight, torch.cat([self.gamma.bias, self.beta.bias]), (padding,) * 3)

    def _of_empty_maps(self, normed: Tensor) -> Tensor:
        """The answer (B, C, D, H, W) to maps without anything in them."""
        hidden = F.relu(self.shared(normed.new_zeros(1, PROMPTS, 3, 3, 3)))  # so that every weight has a gradient
        # (1, C, 3, 3, 3) each: low face, inside, high face along each axis.
        gamma, beta = self._scale_and_shift(hidden, padding=1).chunk(2, dim=1)
        inside = (..., slice(1, 2), slice(1, 2), slice(1, 2))
        out = torch.addcmul(beta[inside], normed, 1 + gamma[inside])
        for axis in (2, 3, 4):
            for side in (0, 2):
                scale, shift = (self._face(cube, axis, side, normed.shape) for cube in (1 + gamma, beta))
                place = (*[slice(None)] * axis, slice(0, 1) if side == 0 else slice(-1, None))
                out[place] = torch.addcmul(shift, normed[place], scale)
        return out

    @staticmethod
    def _face(cube: Tensor, axis: int, side: int, shape: torch.Size) -> Tensor:
        """One face of a patch, (1, C, D, H, W) with 1 along `axis`, from its cube of low, inside and high values."""
        face = cube.narrow(axis, side, 1)
        for other in {2, 3, 4} - {axis}:
            index = torch.tensor([0] + [1] * (shape[other] - 2) + [2], device=cube.device)
            face = face.index_select(other, index)
        return face


_SLAB = 8  # slices; a box around what a slab holds fits a mask better than one around the whole
_DENSE_SHARE = 0.6  # of the volume; from there on one large convolution is faster than the parts


def _answer_boxes(maps: Tensor) -> list[tuple[slice, ...]]:
    """Boxes that hold every voxel whose answer to maps (3, D, H, W) can differ from that to empty ones.

    Those are the voxels up to 2 from something in the maps, once 1 for each convolution.
    """
    filled = (maps != 0).any(0)
    if not filled.any():
        return []
    depth, height, width = filled.shape
    rows, columns = _spread(filled.any(2)), _spread(filled.any(1))  # (D, H) and (D, W), of what is up to 2 slices away
    boxes = []
    for start in range(0, depth, _SLAB):
        slab = slice(start, min(start + _SLAB, depth))
        spans = [_span(part) for part in (rows[slab].any(1), rows[slab].any(0), columns[slab].any(0))]
        if spans[0] is not None:
            z, y, x = spans
            inside = _grown((y, x), 2, (height, width))
            boxes.append((slice(start + z.start, start + z.stop), *inside))
    return boxes


def _spread(lines: Tensor) -> Tensor:
    """bool (D, N): true also up to 2 slices away."""
    return F.max_pool1d(lines.T.float()[None], 5, stride=1, padding=2)[0].T > 0


def _span(line: Tensor) -> slice | None:
    """From the first to the last true of bool (N,); None where none is."""
    places = torch.nonzero(line)[:, 0]
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else None


def _within(inner: tuple[slice, ...], outer: tuple[slice, ...]) -> tuple[slice, ...]:
    """`inner` as an index into an array that spans `outer`."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer))


def _grown(box: tuple[slice, ...], voxels: int, size: Sequence[int]) -> tuple[slice, ...]:
    """A box with a margin, inside `size`."""
    return tuple(slice(max(0, part.start - voxels), min(n, part.stop + voxels)) for part, n in zip(box, size))


def _volume(box: tuple[slice, ...]) -> int:
    return math.prod(part.stop - part.start for part in box)


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


class PromptedBlock(nn.Module):
    """A residual block of two prompted norms, each followed by leaky ReLU and a convolution."""

    def __init__(self, channels: int, modulation: Callable[[int], nn.Module]):
        super().__init__()
        self.modulate_1, self.modulate_2 = modulation(channels), modulation(channels)
        self.conv_1 = Conv3d(channels, channels, 3, padding=1)
        self.conv_2 = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        hidden = self.conv_1(F.leaky_relu(self.modulate_1(x, prompts), 0.2))
        return x + self.conv_2(F.leaky_relu(self.modulate_2(hidden, prompts), 0.2))


def upscale(in_channels: int, channels: int) -> nn.Sequential:
    """(B, C, D, H, W) to (B, C', 2D, 2H, 2W)."""
    return nn.Sequential(nn.ConvTranspose3d(in_channels, channels, 2, stride=2), ChannelLayerNorm(channels), nn.GELU())


class Decoder(nn.Module):
    """Features and prompts to the logits of the mask.

    Args:
        width: channels into the first four stages; half of it into the fifth, a quarter into the head.
        modulation: makes the prompted norm for a number of channels (`PsapLayer` or `RffLayer`).
        resize_prompts: whether prompts are brought to each stage's size before its block sees them.
    """

    def __init__(self, width: int, modulation: Callable[[int], nn.Module], resize_prompts: bool = True):
        super().__init__()
        self.resize_prompts = resize_prompts
        ins, outs = [width] * 4 + [width // 2], [width // 2] * 4 + [width // 4]
        self.blocks = nn.ModuleList(PromptedBlock(channels, modulation) for channels in ins)
        self.upscales = nn.ModuleList(upscale(a, b) for a, b in zip(ins, outs))
        self.head = Conv3d(outs[-1], 1, 3, padding=1)

    def forward(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """features at 1/4, 1/8, 1/16, 1/32 of prompts (B, 3, D, H, W); returns logits (B, 1, D, H, W)."""
        *skips, x = features
        for block, up in zip(self.blocks, self.upscales):
            x = up(block(x, resize(prompts, x.shape[2:]) if self.resize_prompts else prompts))
            if skips:  # the encoder has a feature at 1/16, 1/8 and 1/4, none above
                x = torch.cat([x, skips.pop()], dim=1)
        return self.head(x)
