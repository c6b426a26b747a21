"""From log-likelihoods of the options to shares of 1, by several rules.

sum: the likelihood of all tokens of an option, which favours short ones. length: the mean over its tokens.
prior: the mean over its tokens, less that for a picture without content in the same wording and order:
contextual calibration (Zhao et al., Calibrate Before Use, ICML 2021), where shares are divided by those
without content and made to sum to 1 again.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.metrics import Floats
from surgrec.vision_language.records import Reply

Rule = Literal["sum", "length", "prior"]
RULES: Final[tuple[Rule, ...]] = ("sum", "length", "prior")


def shares_of(reply: Reply, rule: Rule, without: Reply | None = None) -> Floats:
    """float64 [C] in the order shown, summing to 1. without: the reply to the content-free question, for
    prior.

    Raises ValueError where the reply has no likelihoods, or `without` has others.
    """
    scores = _scores(reply, rule)
    if rule == "prior":
        if without is None:
            raise ValueError("there is no reply to the content-free question")
        scores = scores - _log_softmax(_scores(without, rule))
    return np.exp(_log_softmax(scores))


def chosen(shares: Floats) -> int | None:
    """The position of the largest share; None where several are equal, as nothing is chosen then."""
    best: NDArray[np.int64] = np.flatnonzero(shares == shares.max())
    return int(best[0]) if len(best) == 1 else None


def _scores(reply: Reply, rule: Rule) -> Floats:
    likelihoods, tokens = (np.array(each, np.float64) for each in (reply.log_likelihoods, reply.tokens))
    if not len(likelihoods) or len(likelihoods) != len(tokens) or tokens.min() < 1:
        raise ValueError("a reply without a log-likelihood and a count of tokens for each option")
    return likelihoods if rule == "sum" else likelihoods / tokens


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max()
    found: Floats = shifted - np.log(np.exp(shifted).sum())
    return found
