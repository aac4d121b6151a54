"""The figures of the long fault suite as the page of the service shows them. Nothing here measures."""

import json
from pathlib import Path
from typing import Any

from compressor.pages import Block, table, told

FAULTS = Path(__file__).parent / "results" / "faults.json"
Figures = dict[str, Any]
ROW_RESULTS = ("hit", "miss", "error", "bypass")


def write(figures: Figures) -> None:
    """Keep the figures."""
    FAULTS.parent.mkdir(exist_ok=True)
    FAULTS.write_text(json.dumps(figures, indent=2) + "\n")


def _all(figures: Figures) -> str:
    """Return all figures, in Markdown."""
    told = [
        _overload(figures["overload"]),
        _hang_ups(figures["hang_ups"]),
        _scarcity(figures["scarcity"]),
        _killed(figures["killed"]),
        _drain(figures["drain"]),
        _invalid(figures["invalid"]),
        _scoring(figures["scoring"]),
        _half_sent(figures["half_sent"]),
        _redis(figures["redis"]),
        _soak(figures["soak"]),
    ]
    where = (
        f"On {figures['machine']['cores']} cores with a load average of {figures['load_average']:g} before; "
        f"`{figures['model']}`, for Redis `{figures['table']}`:"
    )
    head = ["fault of Redis", "requests/s", "Redis asked", *(f"rows: {result}" for result in ROW_RESULTS)]
    phases = [_phase(name, phase) for name, phase in figures["redis"]["faults"].items()]
    return "\n".join([where, "", *(f"- **{name}**: {what}" for name, what in told), "", table(head, phases)])


def _overload(f: Figures) -> tuple[str, str]:
    return f"{f['clients']} clients, {f['capacity']} places", (
        f"{f['answered']:,} answered, {f['refused']:,} refused with 429; a refusal took {f['refusal_p50_ms']:g} ms "
        f"(median), {f['refusal_p99_ms']:g} ms (99th percentile); RSS {f['rss_mb_begin']:g} MB at first, "
        f"{f['rss_mb_end']:g} MB at last, {f['rss_mb_per_minute']:+g} MB/min in the second half"
    )


def _hang_ups(f: Figures) -> tuple[str, str]:
    stay, leave = f["all_stay"]["tokens_per_second"], f["half_leave"]["tokens_per_second"]
    return f"half of {f['clients']} clients hang up", (
        f"the others get {leave:g} tokens/s together, {stay:g} where all stay ({f['ratio']:g} times as many)"
    )


def _scarcity(f: Figures) -> tuple[str, str]:
    return f"{f['clients']} clients, a KV cache for {f['texts']} long texts", (
        f"{f['answered']:,} answers, all as without neighbours, {f['left']:,} clients that left; requests were sent "
        f"back {f['sent_back']:,.0f} times, {f['found']:.0%} of the tokens of prompts were there; latency "
        f"{f['latency_p50_ms']:g} ms (median), {f['latency_p99_ms']:g} ms (99th percentile)"
    )


def _killed(f: Figures) -> tuple[str, str]:
    first, again = f["ready_seconds"], f["ready_again_seconds"]
    return "`kill -9` under load", f"started again and ready after {again:g} s (the first time {first:g} s)"


def _drain(f: Figures) -> tuple[str, str]:
    return "SIGTERM with a full queue", (
        f"{f['accepted']} accepted requests, {f['queued']:g} of them queued: {f['lost']} lost, exit 0 after "
        f"{f['seconds']:g} s"
    )


def _invalid(f: Figures) -> tuple[str, str]:
    return f"{len(f['cases'])} kinds of costly bodies up to 1 MiB, {_room(f)}", (
        f"all refused or answered; RSS {f['rss_mb_begin']:g} MB at first, {f['rss_mb_peak']:g} MB at most; the slowest "
        f"`/livez` {f['slowest_probe_ms']:g} ms"
    )


def _scoring(f: Figures) -> tuple[str, str]:
    gap, beside = f["beside_scoring"]["gap_ms"], f["beside_prompts"]["gap_ms"]
    return f"{f['prompts']} prompts of {f['tokens']} tokens to score, {_room(f)}", (
        f"scored in {f['beside_scoring']['seconds']:g} s; RSS {f['rss_mb_begin']:g} MB at first, "
        f"{f['rss_mb_peak']:g} MB at most; longest gap in a stream {gap:g} ms, beside prompts to read {beside:g} ms"
    )


def _half_sent(f: Figures) -> tuple[str, str]:
    return f"{f['bodies']} bodies of 1 MiB, then {f['heads']:,} heads, half sent, {_room(f)}", (
        f"RSS {f['rss_mb_begin']:g} MB at first, {f['rss_mb_peak']:g} MB at most; the slowest `/livez` "
        f"{f['slowest_probe_ms_bodies']:g} and {f['slowest_probe_ms_heads']:g} ms; SIGTERM beside ten half-sent "
        f"bodies: exit 0 after {f['stop_seconds']:g} s"
    )


def _room(f: Figures) -> str:
    return f"in {f['pod_mib']} MiB" if f["pod_mib"] else "without a memory limit"


def _redis(f: Figures) -> tuple[str, str]:
    return "Redis, all faults below", (
        f"{f['requests']:,} requests, {f['failed']} failed, {f['different_answers']} answered differently than without "
        f"a cache; latency {f['latency_p50_ms']:g} ms (median), {f['latency_p99_ms']:g} ms (99th percentile)"
    )


def _phase(name: str, phase: Figures) -> list[str]:
    rows = [f"{phase[f'rows_{result}']:,.0f}" for result in ROW_RESULTS]
    return [name, f"{phase['requests_per_second']:g}", f"{phase['asked']:,.0f}", *rows]


def _soak(f: Figures) -> tuple[str, str]:
    return f"{f['minutes']:g} minutes at full load", (
        f"{f['requests']:,} requests and {f['hung_up']:,} clients that hung up, {f['failed']} failed; RSS "
        f"{f['rss_mb_settled']:g} MB after two minutes, {f['rss_mb_end']:g} MB at the end, "
        f"{f['rss_mb_per_minute']:+.2f} MB/min"
    )


BLOCKS = (Block("faults", "service/README.md", told(FAULTS, _all)),)
