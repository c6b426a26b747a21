"""How much of each domain and data set has been drawn, next to what the balance asks for."""

from __future__ import annotations

from surgrec.loaders.sampler import Mix

SHOWN = 50
"""Data sets with a curve of their own: those with the largest expected shares."""


def mix_scalars(drawn: Mix, expected: Mix) -> dict[str, float]:
    """Tags mix_domain/NAME/{drawn,expected} and mix_dataset/DOMAIN/NAME/...: shares in 0..1 since step 1.

    drawn holds counts, expected probabilities.
    """
    scalars: dict[str, float] = {}
    groups = (
        ("domain", drawn.domains, expected.domains),
        ("dataset", drawn.datasets, expected.datasets),
    )
    for level, counts, shares in groups:
        total = max(sum(counts.values()), 1)
        for name in sorted(shares, key=lambda name: -shares[name])[:SHOWN]:
            scalars[f"mix_{level}/{name}/drawn"] = counts[name] / total
            scalars[f"mix_{level}/{name}/expected"] = shares[name]
    return scalars
