"""Pictures in one piece of memory: their views and their layouts are the same thing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from surgrec.kernels.planes import ALIGNMENT, Colour, Nv12Pictures, Planes, check_planes

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@given(size=SIZES, dtype=st.sampled_from([torch.uint8, torch.uint16]), rotation=st.sampled_from([0, 90]))
def test_layouts_are_those_of_the_views(size: tuple[int, int, int], dtype: torch.dtype, rotation: int):
    count, height, width = size
    values = Nv12Pictures.values(count, height, width, dtype)
    pictures = Nv12Pictures(torch.zeros(values, dtype=dtype), count, height, width)
    clip = Planes(pictures, (count - 1,), Colour("bt709", False), rotation)
    luma, blue, red = pictures
    as_tuple = Planes((luma, blue, red), clip.rows, clip.colour, rotation)
    # PyTorch gives any stride to a side of one sample.
    for ours, views in zip(clip.layouts(), as_tuple.layouts(), strict=True):
        assert (ours.address, ours.shape, ours.dtype) == (views.address, views.shape, views.dtype)
        for length, one, two in zip(ours.shape, ours.strides, views.strides, strict=True):
            assert length == 1 or one == two
    assert (clip.height, clip.width) == (as_tuple.height, as_tuple.width)
    assert (clip.device, clip.dtype) == (as_tuple.device, as_tuple.dtype)
    assert (clip.width, clip.height)[:: -1 if rotation else 1] == (width, height)
    check_planes(0, clip, 1, torch.device("cpu"))
    assert len(pictures) == 3
    assert pictures[1] is pictures[1]


@given(size=SIZES, dtype=st.sampled_from([torch.uint8, torch.uint16]))
def test_planes_neither_overlap_nor_leave_the_memory(size: tuple[int, int, int], dtype: torch.dtype):
    values = Nv12Pictures.values(*size, dtype)
    memory = torch.zeros(values, dtype=dtype)
    pictures = Nv12Pictures(memory, *size)
    for plane in pictures:
        plane.numpy()[...] += 1  # PyTorch does not add uint16
    assert int(memory.numpy().sum()) == sum(plane.numel() for plane in pictures)
    assert int(memory.numpy().max()) == 1
    assert (pictures[1].data_ptr() - memory.data_ptr()) % ALIGNMENT == 0
