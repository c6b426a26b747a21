"""FlashAttention 4 without a GPU: what the package is asked for, when it fails, where its kernels lie."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from surgrec.kernels import attention as attention_module
from surgrec.kernels import flash4_attention as module
from surgrec.kernels.attention import attention
from surgrec.kernels.flash4_attention import flash4_attention
from surgrec.kernels.join_heads import side_by_side
from torch import Tensor

FOLDER = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"
ENABLED = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"


class Package:
    """Stands for flash_attn.cute.interface: its two functions in plain PyTorch, and what they were given."""

    def __init__(self, error: Exception | None = None, backward_error: Exception | None = None) -> None:
        self.error, self.backward_error = error, backward_error
        self.forward: list[dict[str, Any]] = []
        self.backward: list[dict[str, Any]] = []

    def _flash_attn_fwd(
        self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **where: Any
    ) -> tuple[Tensor | None, ...]:
        self.forward.append({"q": q, "k": k, "v": v, "return_lse": return_lse} | where)
        if self.error is not None:
            raise self.error
        assert not q.requires_grad, "it would make the log-sum-exp unasked"
        out = torch.empty(q.shape)
        lse = torch.empty(*q.shape[:-3], q.shape[-2], q.shape[-3])
        for sequence in sequences(q, where):
            scores, values = products(q[sequence], k[sequence]), v[sequence]
            lse.transpose(-1, -2)[sequence] = scores.logsumexp(-1).transpose(-1, -2)
            out[sequence] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values)
        return out, lse if return_lse else None, None, None, None

    def _flash_attn_bwd(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        gradient: Tensor,
        lse: Tensor,
        *,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        **where: Any,
    ) -> None:
        self.backward.append({"q": q, "gradient": gradient, "dq": dq, "dk": dk, "dv": dv} | where)
        if self.backward_error is not None:
            raise self.backward_error
        assert gradient.is_contiguous()
        for sequence in sequences(q, where):
            given = gradient[sequence]
            sums = (given * out[sequence]).sum(-1).t()[..., None]
            weights = (
                products(q[sequence], k[sequence]) - lse.transpose(-1, -2)[sequence].t()[..., None]
            ).exp()
            scores = weights * (torch.einsum("nhd,mhd->hnm", given, v[sequence]) - sums) * q.shape[-1] ** -0.5
            dv[sequence] = torch.einsum("hnm,nhd->mhd", weights, given)
            dq[sequence] = torch.einsum("hnm,mhd->nhd", scores, k[sequence])
            dk[sequence] = torch.einsum("hnm,nhd->mhd", scores, q[sequence])


def sequences(q: Tensor, where: dict[str, Any]) -> list[Any]:
    """What to index tensors with, for each sequence: [N, heads, d]."""
    if not where:
        assert q.dim() == 4
        return list(range(len(q)))
    assert where["cu_seqlens_q"] is where["cu_seqlens_k"]
    assert where["cu_seqlens_q"].dtype == torch.int32
    starts = where["cu_seqlens_q"].tolist()
    assert starts[-1] == len(q)
    return [slice(*pair) for pair in itertools.pairwise(starts)]


def products(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Package], Package]]:
    """Lets a Package compute on the CPU, in float32."""

    def installed(package: Package) -> Package:
        monkeypatch.setattr(module, "_package", lambda: package)
        monkeypatch.setattr(module, "_refuse", lambda q: None)
        module._prepare_backward.cache_clear()
        return package

    yield installed
    module._prepare_backward.cache_clear()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("sizes", [None, (5, 1, 8), (14,)])
def test_results_and_gradients(
    sizes: tuple[int, ...] | None, apart: bool, install: Callable[[Package], Package]
) -> None:
    package = install(Package())
    qkv = draw(*((2, 7) if sizes is None else (14,)), 3, 4, 8)
    memory = qkv.clone().requires_grad_()
    q, k, v = (x.clone() if apart else x for x in memory.unbind(-3))
    out = flash4_attention(q, k, v, sizes)
    wanted_of = [x.clone().requires_grad_() for x in qkv.unbind(-3)]
    expected = attention(*wanted_of, None if sizes is None else list(sizes), "sdpa")
    torch.testing.assert_close(out, expected)
    weights = draw(*out.shape)
    found = torch.autograd.grad(out, (q, k, v), weights)
    for one, other in zip(found, torch.autograd.grad(expected, wanted_of, weights), strict=True):
        torch.testing.assert_close(one, other)
    joined = side_by_side(*found)
    assert joined is not None, "the next product would have to copy them"
    assert joined.shape == (14, 3, 4, 8)
    (given,) = package.forward
    assert given.get("max_seqlen_q") == given.get("max_seqlen_k") == (max(sizes) if sizes else None)


def test_queries_keys_and_values_are_read_where_they_lie(install: Callable[[Package], Package]) -> None:
    package = install(Package())
    memory = draw(2, 7, 3, 4, 8)
    flash4_attention(*memory.unbind(-3))
    given = package.forward[-1]
    assert given["q"].data_ptr() == memory.data_ptr()
    assert side_by_side(given["q"], given["k"], given["v"]) is not None
    heads_first = draw(3, 2, 4, 7, 8).transpose(2, 3).unbind(0)
    flash4_attention(*heads_first)
    assert all(package.forward[-1][name].is_contiguous() for name in "qkv")


def test_what_the_backward_pass_reads_is_made_only_for_it(install: Callable[[Package], Package]) -> None:
    package = install(Package())
    q = draw(2, 7, 4, 8).requires_grad_()
    with torch.no_grad():
        flash4_attention(q, q, q)
    flash4_attention(q.detach(), q.detach(), q.detach())
    assert [place["return_lse"] for place in package.forward] == [False, False]
    assert package.backward == []
    flash4_attention(q.detach(), q, q.detach())
    assert package.forward[-1]["return_lse"]


@pytest.mark.parametrize("sizes", [None, (300, 20)])
def test_the_backward_pass_is_compiled_in_the_forward_pass(
    sizes: tuple[int, ...] | None, install: Callable[[Package], Package]
) -> None:
    """By a pass over little, once for all shapes that have its kernels."""
    package = install(Package())
    for tokens in (160, 200):
        rows = (2, tokens) if sizes is None else (320,)
        q = draw(*rows, 4, 8).requires_grad_()
        out = flash4_attention(q, q, q, sizes)
        assert len(package.backward) == 1
    (prepared,) = package.backward
    assert prepared["q"].numel() <= 2 * 129 * 2 * 8
    assert side_by_side(prepared["dq"], prepared["dk"], prepared["dv"]) is not None
    if sizes is not None:
        assert prepared["cu_seqlens_q"].tolist() == [0, 1, 2]
        assert prepared["max_seqlen_k"] == 129
    out.sum().backward()
    assert len(package.backward) == 2
    short = draw(2, 128, 4, 8).requires_grad_()
    flash4_attention(short, short, short)
    assert package.backward[-1]["q"].shape == (2, 128, 2, 8)


@pytest.mark.parametrize("which", ["error", "backward_error"])
def test_what_the_compiler_raises_is_told_in_short(which: str, install: Callable[[Package], Package]) -> None:
    """Of either pass in the forward pass, and as the error that other backends are taken for."""
    install(Package(**{which: AssertionError("no such\n" + 5000 * "kernel ")}))
    q = draw(2, 7, 4, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="flash-attn-4: AssertionError: no such kernel") as caught:
        flash4_attention(q, q, q)
    assert len(str(caught.value)) < 400
    install(Package(**{which: torch.OutOfMemoryError("none left")}))
    with pytest.raises(torch.OutOfMemoryError):
        flash4_attention(q, q, q)


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says otherwise."""

    is_cuda = True


def absent() -> Any:
    raise ImportError("flash-attn-4 is not installed")


@pytest.mark.parametrize(
    ("broken", "level", "said"),
    [
        ("absent", logging.INFO, "flash-attn-4 is not installed"),
        ("compiler", logging.WARNING, "flash-attn-4: TypeError: another signature"),
        ("old GPU", logging.INFO, "compute capability 9.x"),
    ],
)
def test_auto_takes_another_backend(
    broken: str,
    level: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = Package(backward_error=TypeError("another signature"))
    monkeypatch.setattr(module, "_package", absent if broken == "absent" else lambda: package)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (8 if broken == "old GPU" else 9, 0)
    )
    monkeypatch.setattr(attention_module, "_refused", set())
    monkeypatch.setattr(attention_module, "_capability", lambda device: 9)
    module._prepare_backward.cache_clear()
    ways = {"flash4": flash4_attention, "cudnn": attention_module.DENSE["sdpa"]}
    q = draw(1, 600, 2, 8).bfloat16().as_subclass(OnGpu).requires_grad_()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            out = attention_module._by("auto", ways, q, q, q, False, 600)
            assert out.shape == q.shape
    (record,) = caplog.records
    assert record.levelno == level
    assert said in record.getMessage()


def test_what_it_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (device, 0))

    def case(**other: Any) -> Any:
        given = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (1, 4, 2, 64), "device": 9}
        given |= other
        return SimpleNamespace(**given, numel=lambda: given.get("count", 512))

    module._refuse(case())
    module._refuse(case(dtype=torch.float16, shape=(9, 2, 8)))
    for other, text in (
        ({"is_cuda": False}, "on a GPU"),
        ({"dtype": torch.float32}, "bfloat16 or float16"),
        ({"device": 10}, "compute capability 9.x"),
        ({"shape": (1, 4, 2, 136)}, "up to 128 columns"),
        ({"shape": (1, 4, 2, 20)}, "a multiple of 8"),
        ({"count": 2**30}, "up to 2147483647 numbers"),
    ):
        with pytest.raises(NotImplementedError, match=text):
            module._refuse(case(**other))


def modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "flash_attn"]


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a package with such an interface where it is found, and quack-kernels 0.6.5 beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in modules():
        monkeypatch.delitem(sys.modules, name)
    for name in (FOLDER, ENABLED):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(module.metadata, "version", lambda name: {"quack-kernels": "0.6.5"}[name])
    monkeypatch.setattr(module.knobs.cache, "dir", str(tmp_path / "triton"))
    module._package.cache_clear()

    def put(interface: str) -> None:
        folder = tmp_path / "flash_attn" / "cute"
        folder.mkdir(parents=True)
        (folder / "interface.py").write_text(interface)
        importlib.invalidate_caches()

    yield put
    for name in modules():
        del sys.modules[name]
    module._package.cache_clear()


WHOLE = f"""
import os
said = os.environ["{FOLDER}"], os.environ["{ENABLED}"]
_flash_attn_fwd = _flash_attn_bwd = None
"""


def test_kernels_are_kept_beside_those_of_triton(
    on_disk: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the package reads when it is imported; where the user has said something, that holds."""
    on_disk(WHOLE)
    assert module._package().said == (str(tmp_path / "triton/flash4/sm_90-quack-0.6.5"), "1")
    for name, value in ((FOLDER, "/elsewhere"), (ENABLED, "0")):
        monkeypatch.setenv(name, value)
    module.keep_kernels()
    assert (os.environ[FOLDER], os.environ[ENABLED]) == ("/elsewhere", "0")


@pytest.mark.parametrize(
    ("interface", "text"),
    [
        ("raise OSError('libcuda.so.1')", "does not load: OSError: libcuda.so.1"),
        ("raise AssertionError", "does not load: AssertionError"),
        ("import no_such_cutlass", "does not load: ModuleNotFoundError: No module named 'no_such_cutlass'"),
        ("_flash_attn_fwd = None", "this flash-attn-4 has no _flash_attn_bwd"),
    ],
)
def test_a_package_that_does_not_load(interface: str, text: str, on_disk: Callable[[str], None]) -> None:
    on_disk(interface)
    with pytest.raises(ImportError) as caught:
        module._package()
    assert text in str(caught.value)


def test_packages_that_are_absent(on_disk: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="flash-attn-4 is not installed"):
            module._package()
    assert FOLDER not in os.environ

    def version(name: str) -> str:
        raise module.metadata.PackageNotFoundError(name)

    on_disk(WHOLE)
    monkeypatch.setattr(module.metadata, "version", version)
    with pytest.raises(ImportError, match=r"does not load: PackageNotFoundError: .*quack-kernels"):
        module._package()


COMPILE = """
import contextlib
from types import SimpleNamespace

import torch
from surgrec.kernels import flash4_attention as module
from torch._subclasses.fake_tensor import FakeTensorMode

torch.cuda.device_of = lambda tensor: contextlib.nullcontext()  # it asks the driver
module.starts_of = lambda sizes, device: torch.zeros(len(sizes) + 1, dtype=torch.int32, device=device)
interface = module._package()
compile, compiled = interface.cute.compile, []


def counted(*arguments, **options):
    compiled.append(arguments[0])
    return compile(*arguments, **options)


interface.cute.compile = counted
with FakeTensorMode():
    for width in (32, 64, 80, 128):
        for sizes in (None, (301, 17, 1, 640)):
            rows = (3, 160) if sizes is None else (sum(sizes),)
            memory = torch.zeros(*rows, 3, 6, width, device="cuda:0", dtype=torch.bfloat16)
            context = SimpleNamespace()
            context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
            out = module._Attention.forward(context, *memory.unbind(-3), sizes, True)
            before = len(compiled)
            parts = module._Attention.backward.__wrapped__(context, out)[:3]
            assert len(compiled) == before, "the forward pass did not compile all of the backward pass"
            assert [part.stride(-3) for part in parts] == [3 * 6 * width] * 3
print("compiled", len(compiled))
"""
COMPILED = 4 * 2 * 4
"""Widths, equal and packed sequences, kernels."""


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn-4")
def test_the_package_compiles_for_hopper_once(tmp_path: Path, on_hopper: Callable[[str], str]) -> None:
    """For sm_90a on any machine, by tensors without memory; a second process finds the kernels on disk."""
    for compiled in (COMPILED, 0):
        printed = on_hopper(COMPILE)
        assert f"compiled {compiled}\n" in printed
        assert "aux_data" not in printed
    assert len(list(tmp_path.glob("flash4/*/*/*/*.o"))) == COMPILED
