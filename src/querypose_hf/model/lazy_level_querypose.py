"""A level of the pyramid whose output convolution runs only where RoIs look.

At P2 this convolution is a quarter of all arithmetic of a light r50, and in inference only RoIs read P2.
"""

import torch
from torch import Tensor, nn


# Cells a side of what is computed at once. P2 of an image that is padded to multiples of 32 pixels is whole tiles.
_TILE = 8
# So many tiles stay in the processor's cache.
_TILES_PER_BATCH = 64
# Where the first RoIs need more than this share of the tiles, the whole level is convolved: tiles cost a little more.
_DENSE_SHARE = 0.8


class QueryPoseLazyLevel:
    """A level of the pyramid, `(B, d, height, width)`, that convolves tiles when they are first read, and keeps them.

    Its cells are those of `conv(features)`, to floating-point tolerance.

    Args:
        conv (`nn.Conv2d`): 3x3, padded by 1.
        features (`Tensor` of shape `(B, channels, height, width)`): what it takes; sides are multiples of 8.
    """

    def __init__(self, conv: nn.Conv2d, features: Tensor):
        self.conv = conv
        self.features = features.contiguous(memory_format=torch.channels_last)
        self.dtype = features.dtype
        self.device = features.device
        batch_size, _, height, width = features.shape
        self.shape = (batch_size, conv.out_channels, height, width)
        self._done = torch.zeros(batch_size, height // _TILE, width // _TILE, dtype=torch.bool)
        self._cells: Tensor | None = None

    def dense(self) -> Tensor:
        """The whole level as a tensor."""
        return self.conv(self.features)

    def read(self, index: Tensor) -> Tensor:
        """The level's cells as rows `(B * height * width, d)`, in float32 at least; only those in `index` are set.

        Args:
            index (`LongTensor`): of cells, `(image * height + y) * width + x`, in any shape.
        """
        batch_size, channels, height, width = self.shape
        seen = torch.zeros(batch_size * height * width, dtype=torch.bool)
        seen[index.flatten()] = True
        tiles = seen.view(-1, height // _TILE, _TILE, width // _TILE, _TILE).any(dim=4).any(dim=2)
        missing = (tiles & ~self._done).flatten().nonzero()[:, 0]
        dtype = torch.promote_types(self.dtype, torch.float32)
        if self._cells is None and len(missing) > _DENSE_SHARE * self._done.numel():
            self._cells = _as_rows(self.dense().to(dtype))
            self._done.fill_(True)
        elif self._cells is None:
            self._cells = self.features.new_empty(batch_size * height * width, channels, dtype=dtype)
        if len(missing) and not self._done.all():
            rows = _as_rows(self.features)
            for some in missing.split(_TILES_PER_BATCH):
                self._convolve(some, rows, self._cells)
            self._done |= tiles
        return self._cells

    def _convolve(self, tiles: Tensor, features: Tensor, into: Tensor) -> None:
        """Sets the cells of some tiles, given by their number; `features` and `into` are rows of all cells."""
        batch_size, _, height, width = self.shape
        around = torch.arange(-1, _TILE + 1)
        # lines count through all images
        lines = tiles // (width // _TILE) * _TILE
        first = (lines // height * height)[:, None]
        lines = lines[:, None] + around
        columns = (tiles % (width // _TILE) * _TILE)[:, None] + around
        beyond_lines, beyond_columns = (lines < first) | (lines >= first + height), (columns < 0) | (columns >= width)
        beyond = beyond_lines[:, :, None] | beyond_columns[:, None]
        lines, columns = lines.clamp(0, batch_size * height - 1), columns.clamp(0, width - 1)
        cells = lines[:, :, None] * width + columns[:, None]
        taken = features.index_select(0, cells.flatten())
        taken.index_fill_(0, beyond.flatten().nonzero()[:, 0], 0)  # the convolution's padding
        taken = taken.view(*cells.shape, -1).permute(0, 3, 1, 2)
        found = nn.functional.conv2d(taken, self.conv.weight, self.conv.bias)
        into.index_copy_(0, cells[:, 1:-1, 1:-1].flatten(), _as_rows(found).to(into.dtype))


def _as_rows(features: Tensor) -> Tensor:
    """`(B, d, height, width)` to `(B * height * width, d)`, without a copy where channels are last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def convolve_lazily(conv: nn.Conv2d, features: Tensor) -> Tensor | QueryPoseLazyLevel:
    """`conv(features)`, as a [`QueryPoseLazyLevel`] where that can be done and saves time.

    That is on a CPU, since elsewhere each look would be a host sync, outside of graphs, whose shapes may not depend on
    boxes, without gradients, and for a convolution that nothing has wrapped.
    """
    if features.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return conv(features)
    learns = torch.is_grad_enabled() and (features.requires_grad or conv.weight.requires_grad)
    wrapped = type(conv) is not nn.Conv2d or "forward" in vars(conv)
    hooked = bool(conv._forward_hooks or conv._forward_pre_hooks)
    return conv(features) if learns or wrapped or hooked else QueryPoseLazyLevel(conv, features)
