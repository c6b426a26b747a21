"""Splits for property tests: without a fault, and rows to plant faults with."""

from __future__ import annotations

from hypothesis import strategies as st

from surgrec.evaluation.manifest import SPLITS, Row, SplitManifest


@st.composite
def clean(draw: st.DrawFn, clips_apart: float = 5.0) -> SplitManifest:
    """A manifest in which nothing is wrong: 2 to 5 classes, each in every split; groups of one split, each of
    one file, from which clips are cut that do not touch; 130 test clips and more."""
    classes = draw(st.integers(2, 5))
    rows = []
    for split in SPLITS:
        groups = draw(st.integers(2, 6))
        clips = draw(st.integers(max(classes, -(-130 // groups)), 80)) if split == "test" else 3 * classes
        for group in range(groups):
            first = draw(st.integers(0, classes - 1))
            for clip in range(clips):
                start = clip * (10 + clips_apart)
                # Whole numbers of classes in a row: each class is in each group.
                label = (first + clip) % classes
                rows.append(
                    Row(f"made/{split}{group}.mp4", label, split, f"{split} {group}", start, start + 10)
                )
    return SplitManifest("made", tuple(f"act{label}" for label in "abcde"[:classes]), tuple(rows))


@st.composite
def grouped(draw: st.DrawFn) -> SplitManifest:
    """Whole files in 3 to 12 groups of any size, with labels and splits that mean nothing."""
    classes = draw(st.integers(2, 4))
    groups = draw(st.integers(3, 12))
    rows = []
    for group in range(groups):
        for clip in range(draw(st.integers(1, 9))):
            label = draw(st.integers(0, classes - 1))
            split = draw(st.sampled_from(SPLITS))
            rows.append(Row(f"made/{group}/{clip}.mp4", label, split, f"group {group}"))
    rows[0:2] = [
        Row("made/x.mp4", 0, "train", "group 0"),
        Row("made/y.mp4", 1, "test", "group 1"),
    ]
    return SplitManifest("made", tuple(f"act{label}" for label in "abcd"[:classes]), tuple(rows))
