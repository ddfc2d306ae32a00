"""Show plans, verifications and the state of a migration as text."""

from collections.abc import Mapping
from typing import Any

from repstitch.text import columns, num

UNITS = ("B", "kB", "MB", "GB", "TB")
STATES = {"": "to do", "translated": "translated", "native": "native", "skipped": "no translation"}


def plan_text(plan: Mapping[str, Any]) -> str:
    """Show a plan."""
    dims = plan["dimensions"]
    rows = f"{plan['rows']:,} rows" + (
        f", {plan['without_vector']:,} without a vector" if plan["without_vector"] else ""
    )
    free = "free space unknown" if plan["free_bytes"] is None else f"{in_bytes(plan['free_bytes'])} free"
    lines = [
        f"Plan for {plan['address']}: {rows}, {dims['old']} -> {dims['new']} dimensions",
        "",
        f"New vectors: {plan['new_column']} ({plan['layout']}); the state is kept in {plan['state_kept']}",
        f"Cut-over:    {plan['cut_over']}",
        f"Disk:        {in_bytes(plan['peak_bytes'])} more at the peak ({free})",
        *(f"             {in_bytes(n_bytes):>10}  {cause}" for cause, n_bytes in plan["bytes"].items()),
    ]
    if plan["fits"] is False:
        lines.append("             The disk is too small; free some space first.")
    lines.append(_hours_line(plan))
    for index in plan["index"]:
        settings = ", ".join(f"{name} {value}" for name, value in index["settings"].items())
        size = (
            "" if plan["index_bytes"] is None else f", about {in_bytes(plan['index_bytes'])} that should fit in memory"
        )
        lines.append(
            f"Index:       {index['kind']}" + (f" ({settings})" if settings else "") + f", like {index['name']}{size}"
        )
    if not plan["index"]:
        lines.append("Index:       none, as on the old vectors")
    lines += [f"Depends:     {sentence}" for sentence in plan["dependents"]]
    lines += _quality_lines(plan["quality"])
    lines.append(f"Re-embedding instead: {_re_embedding(plan['re_embedding'])}")
    return "\n".join(lines)


def verification_text(result: Mapping[str, Any], phase: str) -> str:
    """Show the results of a verification."""
    rows = result["rows"]
    lines = [
        f"{mark(rows)}  rows: {rows['translated']:,} translated, {rows['native']:,} native, {rows['skipped']:,} "
        f"without translation; {rows['missing']:,} missing, {rows['wrong']:,} wrong, {rows['changed']:,} changed, "
        f"{rows['doubled']:,} doubled" + (f" (first: id {rows['first_bad']})" if rows["first_bad"] else "")
    ]
    if rows["native_compared"] > 1:
        lines.append(
            f"{'pass' if rows['natives_fit'] else 'FAIL'}  native rows: their cosine with their own translation is "
            f"{num(rows['native_gain'])} above that with another row's ({rows['native_compared']:,} rows)"
        )
    index = result["index"]
    if index is None:
        lines.append("-     index: there is none, as on the old vectors")
    elif "why" in index:
        lines.append(f"{mark(index)}  index: {index['why']}")
    else:
        lines.append(
            f"{mark(index)}  index: finds {num(index['recall@10'])} of the exact nearest ten (at least "
            f"{num(index['least'])} required), {index['queries']} queries ({index['of']})"
        )
    lines.append(_map_line(result["map"]))
    if result["qrels"] is not None:
        lines.append(
            f"      relevance: nDCG@10 {num(result['qrels']['ndcg@10'])} of {result['qrels']['queries']} queries"
        )
    latency = [(f"      {name}", *_milliseconds(times)) for name, times in result["latency"].items()]
    lines.append(columns([("      search", "p50 ms", "p99 ms"), *latency]))
    if not result["passed"]:
        lines.append("The verification failed; the migration cannot be cut over.")
    elif not result["complete"]:
        lines.append(
            "Not verified by search: there are too few native rows of the table's rows, and no queries. Pass --target "
            "or --queries, or cut over with --without-search."
        )
    lines.append(f"State: {phase}")
    return "\n".join(lines)


def status_text(result: Mapping[str, Any]) -> str:
    """Show how far a migration has come."""
    lines = [
        f"{result['address']}: {result['phase']} ({result['source']} -> {result['target']}, stitcher "
        f"{result['stitcher']}, begun {result['started']})",
        *(
            f"  {n_rows:>12,}  {STATES.get(state, state)}"
            for state, n_rows in sorted(result["states"].items())
            if n_rows
        ),
        f"  {result['rest']:>12,}  missing or out of date",
    ]
    written = result["written_since"]
    if written is not None:
        lines.append(
            f"  {written['look_old']:>12,}  of {written['rows']:,} rows written since the cut-over look like "
            f"{result['source']}"
        )
    verification = result["verification"]
    if verification is not None:
        word = "passed" if verification["passed"] else "failed"
        lines.append(
            f"  verified {verification['at']}: {word}" + ("" if verification["complete"] else ", not by search")
        )
    return "\n".join(lines)


def in_bytes(n_bytes: float) -> str:
    """Format a number of bytes, such as "1.5 GB"."""
    power = 0
    while abs(n_bytes) >= 1000 and power < len(UNITS) - 1:
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:.{0 if power == 0 else 1}f} {UNITS[power]}"


def in_time(hours: float) -> str:
    """Format a duration, such as "12 s", "3 min" or "2.5 h"."""
    seconds = 3600 * hours
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{hours:.1f} h"


def mark(part: Mapping[str, Any]) -> str:
    """Return whether a check passed, as a word of four letters."""
    return "pass" if part["passed"] else "FAIL"


def _hours_line(plan: Mapping[str, Any]) -> str:
    if plan["hours"] is None:
        return f"Time:        not estimated: {plan['not_timed']}"
    steps = ", ".join(f"{name} {in_time(plan['hours'][name])}" for name in ("fill", "index", "verify"))
    return f"Time:        about {in_time(plan['hours']['total'])} ({steps}), timed on a copy of some rows"


def _quality_lines(quality: Mapping[str, Any]) -> list[str]:
    lines = []
    if "recall@1" in quality:
        interval = quality["interval"]
        ends = "" if interval is None else f" [{num(interval[0])}, {num(interval[1])}]"
        lines.append(
            f"Quality:     recall@1 {num(quality['recall@1'])}{ends} in a pool of {quality['pool']:,} on the card's "
            "own pairs" + (f"; verdict: {quality['verdict']}" if quality["verdict"] else "")
        )
    lines.append(
        f"             in your domain: {quality['in_your_domain']}; verify with --target or --queries of your own"
    )
    return lines


def _re_embedding(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "not estimated; name the column of the texts with --text-column"
    text = f"about {cost['tokens']:,} tokens of column {cost['column']}"
    if cost["cost"] is None:
        return f"{text}; add --price-per-million for the cost"
    return f"{text}, {cost['cost']:,.2f} at {cost['price_per_million']:g} per million"


def _map_line(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "-     map: not checked, because too few rows of the table have a native vector to compare with"
    low, high = result["interval"]
    text = (
        f"map: recall@1 {num(result['recall@1'])} [{num(low)}, {num(high)}], {result['queries']:,} native queries, "
        f"pool of {result['pool']:,}"
    )
    if "card" not in result:
        return f"{mark(result)}  {text}; chance is {num(1 / result['pool'])}"
    note = "" if result["same_pool"] else f"; the card's pool is {result['card_pool']:,}"
    return f"{mark(result)}  {text}; the card has {num(result['card'])}{note}"


def _milliseconds(times: Mapping[str, float] | None) -> tuple[str, str]:
    return ("-", "-") if times is None else (f"{times['p50_ms']:.2f}", f"{times['p99_ms']:.2f}")
