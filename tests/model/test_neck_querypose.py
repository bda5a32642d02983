"""Neck: a coarser level added without an upsampled map is the sum that interpolation gives."""

import pytest
import torch

from querypose_hf.model.backbone_querypose import add_upsampled


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_coarser_level_counts_for_four_cells(memory_format, with_gradients):
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(2, 5, 6, 8, generator=generator).to(memory_format=memory_format)
    coarse = torch.randn(2, 5, 3, 4, generator=generator).to(memory_format=memory_format)
    expected = level + coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.set_grad_enabled(with_gradients):
        found = add_upsampled(level, coarse)
    assert torch.equal(found, expected)
    assert (found is level) == (not with_gradients)
    assert found.is_contiguous(memory_format=memory_format)
