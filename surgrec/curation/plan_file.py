"""Writer of the plan; loaders/corpus_plan.py reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from surgrec.curation.records import hdf5_in_place
from surgrec.loaders.corpus_plan import FORMAT_NAME, FORMAT_VERSION
from surgrec.loaders.segments import SegmentTable


def write_plan(
    out: Path,
    index_digest: str,
    segments: SegmentTable,
    weight: ArrayLike,
    reason: ArrayLike,
    reasons: Sequence[str],
    duplicate_of: ArrayLike,
    levels: Mapping[str, ArrayLike],
    content_area: ArrayLike,
    record: Mapping[str, Any],
) -> str:
    """Writes a plan, columns as in CorpusPlan; its digest, the same for the same content.

    levels: from the outside in. record: what the plan was made with, plain values. The file appears under its
    name only when it is complete and on disk; of the same content it has the same bytes. Raises OSError where
    the disk is full or not writable.
    """
    columns: dict[str, NDArray[Any]] = {
        "segments/video": np.asarray(segments.video, "i4"),
        "segments/start": np.asarray(segments.start, "i8"),
        "segments/end": np.asarray(segments.end, "i8"),
        "segments/weight": np.asarray(weight, "f8"),
        "segments/reason": np.asarray(reason, "i4"),
        "segments/duplicate_of": np.asarray(duplicate_of, "i8"),
        "content_area": np.asarray(content_area, "i4"),
        **{f"levels/{name}": np.asarray(labels, "i4") for name, labels in levels.items()},
    }
    attributes = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "index_digest": index_digest,
        "record": json.dumps(record, sort_keys=True),
    }
    state = xxhash.xxh3_128(json.dumps([attributes, list(reasons), list(levels)]).encode())
    for name, column in columns.items():
        state.update(f"{name} {column.dtype} {column.shape}".encode())
        state.update(np.ascontiguousarray(column).view(np.uint8).data if column.size else b"")
    digest = state.hexdigest()
    with hdf5_in_place(out) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column)
        text = h5py.string_dtype("utf-8")
        file.create_dataset("reasons", data=np.array(list(reasons), dtype=object), dtype=text)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.attrs.create("level_names", list(levels), dtype=text, shape=(len(levels),))
        file.attrs["digest"] = digest
    return digest
