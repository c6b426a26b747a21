"""Triton's kernels compile for GPUs on a machine without one, and read and write in whole vectors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import triton
from surgrec.kernels import (
    add_norm,
    column_sums,
    feature_loss,
    fold,
    gelu,
    join_heads,
    nv12_crop,
    patchify,
    pixel_loss,
    place_tokens,
    rotary,
    triton_attention,
)
from surgrec.kernels.triton_mode import INTERPRETED, warps_across
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pytestmark = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")

CAPABILITIES = [80, 90, 100]
TOKEN = dict.fromkeys(("clip_bytes", "frame_bytes", "row_bytes", "grid_rows", "grid_columns"), "i32")
TOKEN_CONSTANTS = {"TUBELET": 2, "PATCH": 16, "LINES": 32, "LINE": 64}
ALIGNED = {"clip_bytes", "frame_bytes", "row_bytes", "token_stride", "head_stride", "heads", "width", "size"}
ALIGNED |= {"batch_stride", "rows", "columns", "count"}
"""Numbers that are multiples of 16 with the presets' shapes, which Triton finds out at the launch."""
CROP = {"facts": "*i64", "out": "*u8"}


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int = 4
) -> Any:
    names = kernel.arg_names
    assert set(names) == set(types) | set(constants)
    aligned = [name for name in names if name in ALIGNED or types.get(name, "").startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def accesses(kernel: Any) -> set[str]:
    """Loads and stores of global memory in the PTX, but for single numbers of 64 bits (a token, a clip)."""
    found = re.findall(r"(?:ld|st)\.global(?:\.\w+)*", kernel.asm["ptx"])
    return {access for access in found if not access.endswith(".b64")}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_patches(capability: int, dtype: str) -> None:
    types = TOKEN | {"frames": "*u8", "clips": "*i64", "tokens": "*i64", "out": f"*{dtype}"}
    types |= {f"{name}_{channel}": "fp32" for name in ("mean", "std") for channel in range(3)}
    kernel = compiled(patchify._patch_kernel, types, TOKEN_CONSTANTS, capability)
    assert accesses(kernel) == {"ld.global.v4.b32", "st.global.v4.b32"}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_pixel_loss(capability: int, differentiated: bool, normalise: bool) -> None:
    types = TOKEN | {"predicted": "*bf16", "frames": "*u8", "tokens": "*i64", "errors": "*fp32"}
    types |= {"gradient": "*bf16", "per_clip": "i32", "epsilon": "fp32", "share": "fp32"}
    constants = TOKEN_CONSTANTS | {"NORMALISE": normalise, "DIFFERENTIATED": differentiated}
    kernel = compiled(pixel_loss._error_kernel, types, constants, capability)
    # A single number besides: the error of the token.
    wide = {"ld.global.v4.b32"} | ({"st.global.v4.b32"} if differentiated else set())
    assert wide <= accesses(kernel) <= wide | {"st.global.b32"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_scaled_gradient(capability: int) -> None:
    types = {"values": "*bf16", "by": "*fp32", "factor": "fp32", "count": "i64"}
    kernel = compiled(pixel_loss._scale_kernel, types, {"BLOCK": pixel_loss.ELEMENTS}, capability)
    assert {"ld.global.v4.b32", "st.global.v4.b32"} <= accesses(kernel)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("transposed", [False, True])
def test_rotation(capability: int, transposed: bool) -> None:
    types = {"x": "*bf16", "factors": "*fp32", "out": "*bf16"}
    types |= dict.fromkeys(("token_stride", "head_stride", "heads", "width"), "i32")
    constants = {"HEADS": 16, "WIDTH": 64, "TRANSPOSED": transposed}
    kernel = compiled(rotary._rotate_kernel, types, constants, capability)
    assert accesses(kernel) == {"ld.global.v4.b32", "st.global.v4.b32"}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [512, 1024])
def test_decoder_tokens(capability: int, width: int) -> None:
    types = {"visible": "*bf16", "mask_token": "*fp32", "table": "*fp32", "tokens": "*i64", "out": "*fp32"}
    types |= dict.fromkeys(("rows", "per_clip", "visible_per_clip", "columns"), "i32")
    constants = {"ROWS": place_tokens.ELEMENTS // width, "WIDTH": width}
    kernel = compiled(place_tokens._place_kernel, types, constants, capability)
    assert accesses(kernel) == {"ld.global.v4.b32", "st.global.v4.b32"}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("backward", [False, True])
def test_feature_loss(capability: int, backward: bool) -> None:
    types = {"predicted": "*bf16", "rows": "*i64", "count": "i32", "columns": "i32"}
    types |= dict.fromkeys(("targets", "weights", "gradient"), "*fp32")
    types["out"] = "*bf16" if backward else "*fp32"
    constants = {"ROWS": feature_loss.ELEMENTS // 1024, "WIDTH": 1024, "BACKWARD": backward}
    kernel = compiled(feature_loss._loss_kernel, types, constants, capability)
    assert "ld.global.v4.b32" in accesses(kernel)
    assert ("st.global.v4.b32" in accesses(kernel)) == backward


WIDE = {"ld.global.v4.b32", "st.global.v4.b32"}
NARROW = {f"{what}.global.{size}" for what in ("ld", "st") for size in ("b16", "b32", "v2.b32")}
"""One number of a row, or what one thread has of a row or of a sum over rows."""


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [512, 1024])
@pytest.mark.parametrize(("added", "kept", "picked"), [(0, 0, 0), (1, 1, 0), (1, 0, 0), (1, 0, 1)])
def test_sum_and_norm(capability: int, width: int, added: int, kept: int, picked: int) -> None:
    constants = {"ROWS": add_norm.ELEMENTS // width, "WIDTH": width}
    constants |= {"ADD": added, "KEPT": kept, "PICKED": picked}
    numbers = {"rows": "i32", "columns": "i32", "picked": "*i64"}
    types = {"stream": "*fp32", "rest": "*bf16", "bias": "*fp32", "total": "*fp32", "normalised": "*bf16"}
    types |= numbers | {"scale": "*fp32", "epsilon": "fp32"}
    kernel = compiled(add_norm._add_norm_kernel, types, constants, capability)
    assert WIDE <= accesses(kernel) <= WIDE | NARROW
    warps = warps_across(width)
    constants = {"ROWS": add_norm.BACKWARD_ELEMENTS * warps // width, "WIDTH": width, "PICKED": picked}
    types = dict.fromkeys(("gradient", "normalised", "sum_gradient", "out"), "*bf16") | numbers
    types |= {"sums": "*fp32", "scale": "*fp32"}
    for used in (False, True):
        both = constants | {"USED": used, "SUMMED": added}
        kernel = compiled(add_norm._add_norm_backward_kernel, types, both, capability, warps)
        assert WIDE <= accesses(kernel) <= WIDE | NARROW


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_gelu(capability: int) -> None:
    types = {"x": "*bf16", "out": "*bf16", "count": "i32"}
    assert accesses(compiled(gelu._gelu_kernel, types, {"BLOCK": gelu.BLOCK}, capability)) == WIDE
    types = dict.fromkeys(("gradient", "x", "out", "activated"), "*bf16")
    types |= {"sums": "*fp32", "rows": "i32", "columns": "i32"}
    constants = {"ROWS": gelu.ROWS, "COLUMNS": gelu.COLUMNS}
    kernel = compiled(gelu._gelu_backward_kernel, types, constants, capability)
    assert WIDE <= accesses(kernel) <= WIDE | NARROW


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [512, 1024])
def test_folding(capability: int, width: int) -> None:
    types = dict.fromkeys(("weight", "bias", "scale", "shift"), "*fp32")
    types |= {"out": "*bf16", "out_bias": "*bf16", "columns": "i32"}
    kernel = compiled(fold._fold_kernel, types, {"WIDTH": width, "BIASED": True}, capability)
    assert {"ld.global.v4.b32"} <= accesses(kernel) <= WIDE | NARROW
    types = dict.fromkeys(("weight", "scale", "shift", "out", "sums"), "*fp32")
    types |= {"gradient": "*bf16", "bias_gradient": "*bf16", "rows": "i32", "columns": "i32"}
    kernel = compiled(fold._fold_backward_kernel, types, {"WIDTH": width}, capability)
    assert WIDE <= accesses(kernel) <= WIDE | NARROW


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("turn", "moved", "summed"),
    [(True, False, 0), (True, False, 2), (True, True, 2), (False, False, 1), (False, True, 1)],
)
def test_joining(capability: int, turn: bool, moved: bool, summed: int) -> None:
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"factors": "*fp32", "sums": "*fp32"}
    names = ("rows", "tokens", "batch_stride", "token_stride", "head_stride", "columns")
    types |= dict.fromkeys(names, "i32")
    warps = warps_across(1024)
    constants = {"HEAD": 64, "ROWS": join_heads.ELEMENTS * warps // 1024, "WIDTH": 1024}
    constants |= {"TURN": turn, "MOVED": moved, "SUMMED": summed, "BACKWARD": summed > 0}
    kernel = compiled(join_heads._join_kernel, types, constants, capability, warps)
    assert WIDE <= accesses(kernel) <= WIDE | NARROW


@pytest.mark.parametrize("width", [512, 1024, 2048])
def test_sums_over_rows_stay_within_threads(width: int) -> None:
    """No warp waits for another within the loop over rows: one barrier, behind it."""
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"factors": "*fp32", "sums": "*fp32"}
    names = ("rows", "tokens", "batch_stride", "token_stride", "head_stride", "columns")
    types |= dict.fromkeys(names, "i32")
    warps = warps_across(width)
    constants = {"HEAD": 64, "ROWS": join_heads.ELEMENTS * warps // width, "WIDTH": width}
    constants |= {"TURN": False, "MOVED": False, "SUMMED": 1, "BACKWARD": True}
    kernel = compiled(join_heads._join_kernel, types, constants, 90, warps)
    assert kernel.asm["ptx"].count("bar.sync") <= 1
    assert "shfl.sync" not in kernel.asm["ptx"]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_column_sums(capability: int) -> None:
    types = {"parts": "*fp32", "out": "*fp32", "rows": "i32", "columns": "i32"}
    constants = {"ROWS": column_sums.ROWS, "COLUMNS": column_sums.COLUMNS}
    kernel = compiled(column_sums._sum_kernel, types, constants, capability)
    assert {"ld.global.v4.b32"} <= accesses(kernel) <= WIDE | NARROW


@pytest.mark.parametrize("width", [32, 64])
def test_attention(width: int) -> None:
    """On tensor cores, with the loads of 16 bytes, and in as many registers as four programs may have."""
    types = dict.fromkeys(("q", "k", "v", "out", "gradient"), "*bf16")
    types |= dict.fromkeys(("q_gradient", "k_gradient", "v_gradient"), "*bf16")
    types |= dict.fromkeys(("sums", "along"), "*fp32")
    types |= {"tokens": "i32", "heads": "i32", "token_stride": "i32", "scale": "fp32"}
    tilings = triton_attention.Tilings()
    first, second = triton_attention.parts_of(160)
    kernels = (
        (
            triton_attention._whole_kernel,
            tilings.whole,
            {"ROWS": tilings.whole.rows, "FIRST": first, "SECOND": second, "MASKED": False},
        ),
        (
            triton_attention._running_kernel,
            tilings.running,
            {"ROWS": tilings.running.rows, "KEYS": tilings.running.others},
        ),
        (
            triton_attention._queries_kernel,
            tilings.queries,
            {"ROWS": tilings.queries.rows, "KEYS": tilings.queries.others},
        ),
        (
            triton_attention._keys_kernel,
            tilings.keys,
            {"ROWS": tilings.keys.others, "KEYS": tilings.keys.rows},
        ),
    )
    for kernel, tiling, constants in kernels:
        names = set(kernel.arg_names) - set(constants) - {"WIDTH"}
        chosen = {name: types[name] for name in names}
        made = compiled(kernel, chosen, constants | {"WIDTH": width}, 90, tiling.warps)
        assert "wgmma.mma_async" in made.asm["ptx"]
        assert re.search(r"cp\.async\.cg|ld\.global\.v4", made.asm["ptx"])


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("wide", [False, True])
def test_crop(capability: int, wide: bool) -> None:
    """Pictures have any size and windows any place: here it is enough that they compile, on tensor cores."""
    tiling = nv12_crop.TILING
    constants = {"SIDE": tiling.side, "TAPS": tiling.taps, "WIDE": wide}
    kernel = compiled(nv12_crop._crop_kernel, CROP | {"size": "i32"}, constants, capability)
    assert "mma" in kernel.asm["ptx"]
    constants = {"ROWS": nv12_crop._RGB_ROWS, "COLUMNS": nv12_crop._RGB_COLUMNS, "WIDE": wide}
    compiled(nv12_crop._rgb_kernel, CROP, constants, capability)
