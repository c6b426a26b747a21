"""What each packet of a video is to random access, codec by codec, from its headers in the mapped file.

Decoders differ in what they show of a stream's start; the rules here are those of FFmpeg's libavcodec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders import nal, picture_types
from surgrec.loaders.display_order import order_by_count, order_by_reference, unwrap_order
from surgrec.loaders.packet_index import BROKEN, DISCARD, DISPOSABLE, HIDDEN, KEY, OPEN_KEY
from surgrec.loaders.parameter_sets import (
    H264Parameters,
    HevcParameters,
    length_size,
    parse_h264_sps,
    parse_hevc_pps,
    parse_hevc_sps,
    units_of_extradata,
)

Flags = NDArray[np.uint8]
Mask = NDArray[np.bool_]

REMUX: Final = "remux it with `ffmpeg -i in -c copy out.mp4` for random access"
TRANSCODE: Final = "transcode it, for example with `ffmpeg -i in -c:v libx264 out.mp4`, for random access"

TRUSTED_KEY_FLAGS: Final = frozenset(
    (
        "flv1",
        "h263",
        "h263p",
        "ffv1",
        "vp6",
        "vp6f",
        "svq1",
        "cinepak",
        "msrle",
        "msvideo1",
        "flashsv",
        "qtrle",
    )
)
"""Codecs that never reorder, whose key frames are taken from the container."""


@dataclass(frozen=True, slots=True)
class PacketView:
    """Where the packets of one stream lie: data uint8 is the mapped file; start, size int64 [P] are inside
    it; flags u8 [P] holds BROKEN and DISCARD; container_key bool [P] is the container's key flag."""

    data: NDArray[np.uint8]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    flags: Flags
    container_key: Mask
    extradata: bytes
    intra_only: bool


@dataclass(frozen=True, slots=True)
class Classified:
    """flags u8 [P]. `order` is the display order (uint32 packets, before hidden and discarded ones are
    taken out), None where only time stamps can give it. `reason`: why there is no random access, or empty.
    `by_count`: the order comes from picture order counts, which true time stamps must follow."""

    flags: Flags
    order: NDArray[np.uint32] | None
    reason: str = ""
    note: str = ""
    nal_length_size: int = 0
    by_count: bool = False


def classify(codec: str, view: PacketView) -> Classified:
    """Flags and display order of a stream. `codec` is FFmpeg's name of the format (h264, hevc, vp9, ...)."""
    if view.intra_only:
        return _in_decode_order(view, np.ones(len(view.start), bool), np.zeros(len(view.start), bool))
    found = CLASSIFIERS.get(codec)
    if found is not None:
        return found(view)
    if codec in TRUSTED_KEY_FLAGS:
        return _in_decode_order(view, view.container_key, np.zeros(len(view.start), bool))
    reason = f"the frame types of codec {codec} are not known here; {TRANSCODE}"
    return Classified(view.flags.copy(), None, reason)


def _in_decode_order(
    view: PacketView, key: Mask, hidden: Mask, reason: str = "", note: str = ""
) -> Classified:
    """Codecs whose frames come out as they go in; packets ahead of the first key frame give nothing."""
    hidden = hidden | (np.cumsum(key) == 0)
    flags = view.flags | key * np.uint8(KEY) | hidden * np.uint8(HIDDEN)
    return Classified(flags.astype(np.uint8), np.arange(len(flags), dtype=np.uint32), reason, note)


def _parameter_units(
    view: PacketView, hashes: NDArray[np.uint64], prefix: int, is_set: Callable[[bytes], bool]
) -> dict[int, list[bytes]]:
    """The parameter sets of each distinct packet that carries some, by their hash, in the stream's order."""
    carrying = np.flatnonzero(hashes)
    _, first = np.unique(hashes[carrying], return_index=True)
    found = {}
    for packet in carrying[np.sort(first)]:
        content = view.data[view.start[packet] : view.start[packet] + view.size[packet]].tobytes()
        found[int(hashes[packet])] = [u for u in nal.split_units(content, prefix) if is_set(u)]
    return found


def _parameters_note(
    known: list[bytes], inline: dict[int, list[bytes]], hashes: NDArray[np.uint64], access: Mask
) -> tuple[str, str]:
    """(reason, note) where parameter sets inside packets differ from those of the container.

    Decoding that starts at a key frame has the container's sets and what the packets from there on carry:
    behind the first packet with other sets, each key frame must bring as many as the container has.
    """
    changed = [number for number, units in inline.items() if not set(units) <= set(known)]
    if not changed:
        return "", ""
    first = int(np.argmax(np.isin(hashes, np.array(changed, np.uint64))))
    whole = [number for number, units in inline.items() if len(units) >= len(known)]
    late = np.flatnonzero(access)
    late = late[late >= first]
    if np.isin(hashes[late], np.array(whole, np.uint64)).all():
        return "", "parameter sets change within the stream"
    return f"parameter sets change within the stream and are not repeated at each key frame; {TRANSCODE}", ""


def _is_h264_set(unit: bytes) -> bool:
    return unit[0] & 31 in (7, 8)


def _is_hevc_set(unit: bytes) -> bool:
    return 32 <= unit[0] >> 1 & 63 <= 34


def _h264(view: PacketView) -> Classified:
    prefix = length_size("h264", view.extradata)
    known = [u for u in units_of_extradata("h264", view.extradata) if _is_h264_set(u)]
    sets = [parse_h264_sps(u) for u in known if u[0] & 31 == 7] or _first_h264_sps(view, prefix)
    if not sets:
        return Classified(view.flags.copy(), None, f"H.264 without a sequence parameter set; {TRANSCODE}")
    fields = sets[0].slice_fields
    bits, pictures, hashes, low = nal.scan_h264(view.data, view.start, view.size, prefix, fields)
    carried = _parameter_units(view, hashes, prefix, _is_h264_set)
    sets += [parse_h264_sps(u) for units in carried.values() for u in units if u[0] & 31 == 7]
    damaged = (bits & nal.DAMAGED) > 0
    coded = (bits & nal.VCL) > 0
    key = (bits & nal.IDR) > 0
    open_key = coded & ~key & ((bits & nal.RECOVERY) > 0)
    disposable = coded & ~key & ((bits & nal.REFERENCE) == 0)
    flags = _flags(view, key, open_key, disposable, ~coded, damaged)
    reason, note = _parameters_note(known, carried, hashes, key | open_key)
    field = (bits & nal.FIELD) > 0
    whole = (pictures == np.where(field, 2, 1)) | ~coded | ((flags & BROKEN) > 0)
    one_syntax = len({s.slice_fields for s in sets}) == 1
    if prefix and damaged[:1].any() and view.data[view.start[0] : view.start[0] + 4].tobytes() == b"\0\0\0\1":
        reason = f"start codes where the container promises lengths of NAL units; {TRANSCODE}"
    elif not whole.all() or not (one_syntax or all(s.slice_fields.frame_mbs_only for s in sets)):
        first = int(np.argmin(whole))
        reason = f"packet {first} does not hold exactly one frame (fields or parts of frames); {TRANSCODE}"
    reason = _start_reason("an IDR picture", flags) or reason
    note = note or _sizes_note(sets)
    if all(s.reorder == 0 for s in sets):
        return Classified(flags, np.arange(len(flags), dtype=np.uint32), reason, note, prefix)
    order = None
    if one_syntax and fields.order_bits:
        count = unwrap_order(low, key, (bits & nal.REFERENCE) > 0, fields.order_bits)
        order = order_by_count(count, coded & ~damaged)
    return Classified(flags, order, reason, note, prefix, order is not None)


def _first_h264_sps(view: PacketView, prefix: int) -> list[H264Parameters]:
    """SPS of the first packets, for streams whose container holds none."""
    for packet in range(min(len(view.start), 256)):
        content = view.data[view.start[packet] : view.start[packet] + view.size[packet]].tobytes()
        found = [parse_h264_sps(u) for u in nal.split_units(content, prefix) if u[0] & 31 == 7]
        if found:
            return found
    return []


def _hevc(view: PacketView) -> Classified:
    prefix = length_size("hevc", view.extradata)
    known = [u for u in units_of_extradata("hevc", view.extradata) if _is_hevc_set(u)]
    known_sets = [parse_hevc_sps(u) for u in known if u[0] >> 1 & 63 == 33]
    known_extra = [parse_hevc_pps(u)[1] for u in known if u[0] >> 1 & 63 == 34]
    fields = nal.HevcSliceFields(
        known_sets[0].order_bits if known_sets and known_extra else 0,
        known_extra[0] if known_extra else 0,
        bool(known_sets) and known_sets[0].colour_planes,
    )
    bits, pictures, hashes, low, types, layers = nal.scan_hevc(
        view.data, view.start, view.size, prefix, fields
    )
    carried = _parameter_units(view, hashes, prefix, _is_hevc_set)
    inline = [u for units in carried.values() for u in units]
    sets = [parse_hevc_sps(u) for u in known + inline if u[0] >> 1 & 63 == 33]
    if not sets:
        return Classified(view.flags.copy(), None, f"HEVC without a sequence parameter set; {TRANSCODE}")
    picture_sets = [parse_hevc_pps(u) for u in known + inline if u[0] >> 1 & 63 == 34]
    damaged = (bits & nal.DAMAGED) > 0
    coded = (bits & nal.VCL) > 0
    irap = coded & (types >= 16) & (types <= 23)
    # A CRA picture opens the stream at its start and behind an end of sequence (8.1.3, NoRaslOutputFlag).
    ended = np.concatenate(([True], (bits[:-1] & nal.END_OF_SEQUENCE) > 0))
    count = np.cumsum(coded)
    fresh_since = np.maximum.accumulate(np.where(ended, count - coded, 0))
    key = irap & ((types <= 20) | (count - coded == fresh_since))
    open_key = irap & ~key
    # Skipped leading pictures refer to frames ahead of their IRAP picture: none after a fresh start.
    last_irap = np.maximum.accumulate(np.where(irap, np.arange(len(types)), -1))
    hidden = ~coded | (((types == 8) | (types == 9)) & (last_irap >= 0) & key[last_irap])
    top = layers[coded].max(initial=0)
    disposable = coded & (types < 16) & (types % 2 == 0) & (layers == top)
    flags = _flags(view, key, open_key, disposable, hidden, damaged)
    reason, note = _parameters_note(known, carried, hashes, irap)
    drops = irap & ((bits & nal.NO_PRIOR_OUTPUT) > 0)
    whole = (pictures == 1) | ~coded | ((flags & BROKEN) > 0)
    if np.flatnonzero(coded).size and drops[np.flatnonzero(coded)[0] + 1 :].any():
        reason = f"a key frame drops frames ahead of it (no_output_of_prior_pics_flag); {TRANSCODE}"
    elif any(hides for hides, _ in picture_sets):
        reason = f"pictures that are coded but not shown (pic_output_flag); {TRANSCODE}"
    elif not whole.all():
        reason = f"packet {int(np.argmin(whole))} does not hold exactly one frame; {TRANSCODE}"
    reason = _start_reason("a key frame", flags) or reason
    note = note or _sizes_note(sets)
    if all(s.reorder == 0 for s in sets):
        return Classified(flags, np.arange(len(flags), dtype=np.uint32), reason, note, prefix)
    order = None
    one_syntax = (
        len({(s.order_bits, s.colour_planes) for s in sets}) == 1 and len({x for _, x in picture_sets}) == 1
    )
    if one_syntax and fields.order_bits:
        # prevTid0Pic (8.3.1): no leading picture, no sub-layer non-reference picture.
        anchor = (layers == 0) & ~((types >= 6) & (types <= 9)) & ~((types < 16) & (types % 2 == 0))
        order = order_by_count(unwrap_order(low, key, anchor, fields.order_bits), coded & ~damaged & ~hidden)
    return Classified(flags, order, reason, note, prefix, order is not None)


def _sizes_note(sets: list[H264Parameters] | list[HevcParameters]) -> str:
    sizes = sorted({(s.width, s.height) for s in sets})
    if len(sizes) == 1:
        return ""
    return "picture size changes within the stream: " + ", ".join(f"{w}x{h}" for w, h in sizes)


def _flags(
    view: PacketView, key: Mask, open_key: Mask, disposable: Mask, hidden: Mask, damaged: Mask
) -> Flags:
    flags = view.flags.astype(np.uint8)
    for mask, bit in ((key, KEY), (open_key, OPEN_KEY), (disposable, DISPOSABLE), (hidden, HIDDEN)):
        flags |= (mask & ~damaged).astype(np.uint8) * np.uint8(bit)
    return flags | damaged.astype(np.uint8) * np.uint8(BROKEN)


def _start_reason(wanted: str, flags: Flags) -> str:
    """Why a stream whose first picture cannot be decoded alone has no random access, or empty."""
    pictures = np.flatnonzero((flags & (HIDDEN | BROKEN)) == 0)
    if pictures.size and not flags[pictures[0]] & (KEY | OPEN_KEY):
        return f"the stream does not start with {wanted}; {TRANSCODE}"
    return ""


def _mpeg12(view: PacketView) -> Classified:
    kind, shown, extra = picture_types.scan_mpeg12(view.data, view.start, view.size)
    closed = (extra & picture_types.CLOSED) > 0
    intra = kind == picture_types.INTRA
    whole = (shown == 1) | (kind == picture_types.NO_PICTURE)
    reason = "" if whole.all() else f"packet {int(np.argmin(whole))} does not hold exactly one frame; {REMUX}"
    damaged = (kind != picture_types.NO_PICTURE) & ((extra & picture_types.DAMAGED) > 0)
    hidden = (np.cumsum(intra) == 0) | (shown == 0)
    return _by_reference(view, kind, hidden, closed, reason, damaged)


def _mpeg4(view: PacketView) -> Classified:
    head = view.extradata
    if not head and len(view.start):
        head = view.data[view.start[0] : view.start[0] + view.size[0]].tobytes()
    time_bits = picture_types.mpeg4_time_bits(head)
    if time_bits is None:
        return Classified(view.flags.copy(), None, f"MPEG-4 without a VOL header; {TRANSCODE}")
    kind, shown, extra = picture_types.scan_mpeg4(view.data, view.start, view.size, time_bits)
    reason = ""
    if (shown > 1).any():
        reason = f"packed B-frames: packet {int(np.argmax(shown > 1))} holds several frames; {TRANSCODE}"
        # The place-holders that follow packed frames make as many packets as frames.
        return Classified(view.flags.copy(), np.arange(len(kind), dtype=np.uint32), reason)
    if ((extra & picture_types.DAMAGED) > 0).any():
        reason = (
            f"packet {int(np.argmax(extra & picture_types.DAMAGED))} has a cut picture header; {TRANSCODE}"
        )
    none = np.zeros(len(kind), bool)
    found = _by_reference(view, kind, shown == 0, none, reason, none)
    return Classified(found.flags, found.order, _start_reason("an I-VOP", found.flags) or found.reason)


def _by_reference(
    view: PacketView, kind: NDArray[np.uint8], hidden: Mask, closed: Mask, reason: str, damaged: Mask
) -> Classified:
    """MPEG-1, MPEG-2, MPEG-4 part 2: display order from picture types; B pictures at the start of the
    stream that lack their past reference are not decoded, unless their group is closed."""
    hidden = hidden | damaged
    intra = kind == picture_types.INTRA
    both = kind == picture_types.BIDIRECTIONAL
    reference = (intra | (kind == picture_types.PREDICTED)) & ~hidden
    closed_group = np.maximum.accumulate(np.where(reference, np.arange(len(kind)), 0))
    hidden = hidden | (both & (np.cumsum(reference) < 2) & ~closed[closed_group])
    order = order_by_reference(reference, ~hidden, ~hidden)
    flags = _flags(view, intra & closed & ~hidden, intra & ~closed & ~hidden, both & ~hidden, hidden, damaged)
    return Classified(flags, order, reason)


def _by_header(
    scan: Callable[..., picture_types.Scan], *arguments: int, skips_start: bool = True
) -> Callable[[PacketView], Classified]:
    """Codecs that do not reorder: key and hidden frames from each packet's own header.

    skips_start: whether the decoder shows nothing ahead of the first key frame.
    """

    def classified(view: PacketView) -> Classified:
        kind, shown, extra = scan(view.data, view.start, view.size, *arguments)
        several = shown > 1
        reason = (
            f"packet {int(np.argmax(several))} shows several frames; {TRANSCODE}" if several.any() else ""
        )
        damaged = (extra & picture_types.DAMAGED) > 0
        found = _in_decode_order(view, kind == picture_types.INTRA, shown == 0, reason)
        flags = np.where(damaged, (view.flags | BROKEN).astype(np.uint8), found.flags)
        if not skips_start and (found.flags[: int(np.argmax(shown > 0)) + 1] & HIDDEN).all():
            reason = f"the stream does not start with a key frame; {TRANSCODE}"
        return Classified(flags, found.order, reason)

    return classified


CLASSIFIERS: Final[dict[str, Callable[[PacketView], Classified]]] = {
    "h264": _h264,
    "hevc": _hevc,
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
    "mpeg4": _mpeg4,
    "vp8": _by_header(picture_types.scan_vp8),
    "vp9": _by_header(picture_types.scan_vp9),
    "av1": _by_header(picture_types.scan_av1),
    # The picture type is the first field: 0 is intra in these, 1 a data packet's header bit in Theora.
    "msmpeg4v2": _by_header(picture_types.scan_first_byte, 0xC0, 0, 0, 0, skips_start=False),
    "msmpeg4v3": _by_header(picture_types.scan_first_byte, 0xC0, 0, 0, 0, skips_start=False),
    "wmv1": _by_header(picture_types.scan_first_byte, 0xC0, 0, 0, 0, skips_start=False),
    "wmv2": _by_header(picture_types.scan_first_byte, 0x80, 0, 0, 0, skips_start=False),
    "theora": _by_header(picture_types.scan_first_byte, 0x40, 0, 0x80, 0x80),
}


def frames_shown(flags: Flags) -> Mask:
    """Packets that put a frame on display."""
    return (flags & (HIDDEN | DISCARD | BROKEN)) == 0
