"""Configurations survive YAML, and mistakes in them do not go unnoticed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import (
    FREE,
    PLACE,
    differences,
    digest,
    flatten,
    from_document,
    is_free,
    to_document,
)
from surgrec.configs.yaml_io import ConfigError, dump_yaml, from_plain, load_yaml, to_plain


@dataclass(frozen=True)
class Inner:
    number: float = 1.0
    path: Path = Path("a")


@dataclass(frozen=True)
class Outer:
    count: int = 1
    name: str = "x"
    flag: bool = False
    maybe: float | None = None
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, number=FLOATS, path=st.sampled_from([Path("a"), Path("/b/c d"), Path("ü.h5")]))
OUTERS = st.builds(
    Outer,
    count=st.integers(-(2**60), 2**60),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    flag=st.booleans(),
    maybe=st.none() | FLOATS,
    kind=st.sampled_from(["a", "b"]),
    pair=st.tuples(FLOATS, FLOATS),
    inner=INNERS,
    many=st.lists(INNERS, max_size=3).map(tuple),
)


@given(OUTERS)
def test_round_trip_through_yaml(outer):
    assert from_plain(Outer, yaml.safe_load(dump_yaml(to_plain(outer)))) == outer


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name, tmp_path):
    config = PRESETS[name][1]
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(to_document(config)))
    assert from_document(load_yaml(path)) == config


def test_numbers_that_yaml_reads_as_text():
    assert from_plain(Outer, yaml.safe_load("maybe: 1e-4")).maybe == 1e-4
    assert from_plain(Outer, {"inner": {"number": 3}}).inner.number == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "config has no entry cuont; it has count"),
        ({"count": "1"}, "config.count must be int, not '1'"),
        ({"count": True}, "config.count must be int, not True"),
        ({"count": 1.5}, "config.count must be int"),
        ({"flag": 1}, "config.flag must be bool"),
        ({"maybe": "many"}, "config.maybe must be a number"),
        ({"kind": "c"}, "config.kind is 'c'; it may be 'a', 'b'"),
        ({"pair": [1.0]}, "config.pair needs 2 values, not 1"),
        ({"pair": 1.0}, "config.pair must be a list"),
        ({"inner": 3}, "config.inner must be a group"),
        ({"inner": {"nmber": 3}}, "config.inner has no entry nmber"),
        ({"many": [{"number": "x"}]}, r"config.many\[0\].number must be a number"),
        ([1], "config must be a group"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(Outer, values)


def test_place_is_not_part_of_a_document():
    config = PRESETS["demo"][1]
    assert to_document(replace(config, out=Path("x"), resume="none", dry_run=True)) == to_document(config)
    assert not set(PLACE) & to_document(config).keys()


def test_differences_are_dotted():
    config = PRESETS["mae-vitb"][1]
    other = replace(config, seed=3, data=replace(config.data, fps=4.0))
    assert differences(to_document(config), to_document(other)) == {"seed": (0, 3), "data.fps": (None, 4.0)}


def test_digest_ignores_what_may_change_and_nothing_else():
    config = PRESETS["mae-vitb"][1]
    reference = digest(to_document(config))
    assert (
        digest(to_document(replace(config, micro_batch=8, data=replace(config.data, threads=3)))) == reference
    )
    assert digest(to_document(replace(config, seed=1))) != reference
    assert digest(to_document(replace(config, model=replace(config.model, size="large")))) != reference


def test_free_entries_exist():
    names = flatten(to_document(PRESETS["mae-vitb"][1]))
    for free in FREE:
        assert any(is_free(name) and (name == free or name.startswith(free + ".")) for name in names), free


def test_every_field_is_documented():
    """--help shows the docstring below each field; tyro reads it from the source."""
    import tyro._docstrings as docstrings

    def check(kind):
        for f in dataclasses.fields(kind):
            value = getattr(kind(), f.name)
            if dataclasses.is_dataclass(value):
                check(type(value))
            else:
                assert docstrings.get_field_docstring(kind, f.name, ()), f"{kind.__name__}.{f.name}"

    for name in ("mae-vitb", "jepa-vitl"):
        check(type(PRESETS[name][1]))
