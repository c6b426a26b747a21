"""Which samples share a decode, and how they are kept apart: arithmetic of sample numbers, no state.

A unit is one decoded stretch of video; its M = clips x repeats members are samples. Samples come in slots of
M. Slot t holds one member each of M units, as a convolutional interleaver has it (Forney, "Burst-correcting
codes for the classic bursty channel", 1971). With M = 3 and a delay of 2, member m of unit u written u.m:

    slot      0             1             2             3             4             5
    sample    0   1   2     3   4   5     6   7   8     9   10  11    12  13  14    15  16  17
    member    4.0 2.1 0.2   5.0 3.1 1.2   6.0 4.1 2.2   7.0 5.1 3.2   8.0 6.1 4.2   9.0 7.1 5.2

Each slot begins one new unit, so that decoders are busy evenly; members of one unit are delay * M + 1 samples
apart; delay * M * (M - 1) / 2 finished clips wait, and up to M - 1 more within a slot. A random permutation
within blocks of as many clips would put members of a unit into one batch, and ask for most units of a block
at its start. Units are drawn independently of each other, so that no other shuffling is needed.

The members of the first (M - 1) * delay units that would lie before sample 0 are never shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from surgrec.configs.data import DataConfig


@dataclass(frozen=True, slots=True)
class Sharing:
    """clips: of a unit. repeats: crops of each clip. delay: slots from one member of a unit to the next."""

    clips: int = 1
    repeats: int = 1
    delay: int = 0

    @property
    def members(self) -> int:
        """Samples of a unit."""
        return self.clips * self.repeats

    def unit(self, sample: int) -> tuple[int, int]:
        """Unit and member of a sample; the inverse of `sample`."""
        slot, member = divmod(sample, self.members)
        return slot + (self.members - 1 - member) * self.delay, member

    def sample(self, unit: int, member: int) -> int:
        """Sample number of a unit's member: grows with the member; below 0 where it is never shown."""
        return (unit - (self.members - 1 - member) * self.delay) * self.members + member

    def clip(self, member: int) -> int:
        """Which of the unit's clips a member shows. The crops of one clip are as far apart as can be."""
        return member % self.clips

    def units(self, first: int, count: int) -> list[tuple[int, int]]:
        """Runs (first unit, count) that hold the units of samples first, ..., first + count - 1."""
        runs = []
        for member in range(self.members):
            begin = -((member - first) // self.members)  # the first slot whose sample is not before `first`
            end = -((member - first - count) // self.members)
            if end > begin:
                runs.append((begin + (self.members - 1 - member) * self.delay, end - begin))
        return runs


def make_sharing(data: DataConfig, global_batch: int) -> Sharing:
    """The sharing that `data` asks for, with the longest delay whose waiting clips fit into data.shuffle_mib.

    Where it reaches a whole global batch, the delay is rounded down to a multiple of it. Then no batch holds
    two members of a unit; and they fall on neighbouring rows of their batches, hence on one rank, however
    many ranks there are, where M divides the micro-batch.

    Raises:
        ValueError: a number that makes no sense, or a pool too small for a delay of one slot.
    """
    for name in ("clips_per_decode", "repeats"):
        if getattr(data, name) < 1:
            raise ValueError(f"{name} is {getattr(data, name)}; it must be at least 1")
    if data.shuffle_mib < 0:
        raise ValueError(f"shuffle_mib is {data.shuffle_mib}; 0 mixes none")
    members = data.clips_per_decode * data.repeats
    if members == 1 or data.shuffle_mib == 0:
        return Sharing(data.clips_per_decode, data.repeats)
    clip_bytes = data.frames * data.size * data.size * 3
    waiting = members * (members - 1) // 2  # for each slot of delay; the unit just decoded adds M - 1
    delay = ((data.shuffle_mib << 20) // clip_bytes - (members - 1)) // waiting
    if delay < 1:
        needed = -(-(waiting + members - 1) * clip_bytes >> 20)
        raise ValueError(
            f"shuffle_mib is {data.shuffle_mib}: too small to mix units of {members} clips of "
            f"{clip_bytes / 2**20:.2f} MiB. Give at least {needed} MiB, or 0 to mix none."
        )
    batch_slots = lcm(global_batch, members) // members
    if delay >= batch_slots:
        delay -= delay % batch_slots
    return Sharing(data.clips_per_decode, data.repeats, delay)
