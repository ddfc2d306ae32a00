"""Show plans, verifications and the state of a migration as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from repstitch.bulk.job import ADVICE, CUT_OVER
from repstitch.text import columns, num

UNITS = ("B", "kB", "MB", "GB", "TB")
AFTER_A_FAILURE = (
    "Translate wrong rows again and build a missing index with `repstitch migrate run`; then verify again."
)
LEAST_RECOGNISED = 0.5  # of rows of the old space, below which the number of those that look old says nothing
STATES = {"translated": "translated", "native": "native", "skipped": "no translation"}


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
        f"New vectors: {plan['place']}; the state is kept in {plan['state_kept']}",
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
    lines += _mixed_lines(plan["mixed"])
    lines += _share_lines(plan["share_curve"], plan.get("chosen"))
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
    lines += _mixed_lines(result.get("mixed"))
    if result["qrels"] is not None:
        lines.append(
            f"      relevance: nDCG@10 {num(result['qrels']['ndcg@10'])} of {result['qrels']['queries']} queries"
        )
    latency = [(f"      {name}", *_milliseconds(times)) for name, times in result["latency"].items()]
    lines.append(columns([("      search", "p50 ms", "p99 ms"), *latency]))
    if not result["passed"]:
        lines.append("The verification failed" + ("." if phase == CUT_OVER else "; the migration cannot be cut over."))
        lines.append(f"State: {phase}. {AFTER_A_FAILURE}")
        return "\n".join(lines)
    if not result["complete"]:
        lines.append(f"Not verified by search: {_why_incomplete(result['map'])}. Pass --target or --queries.")
    lines.append(state_line(phase))
    return "\n".join(lines)


def status_text(result: Mapping[str, Any]) -> str:
    """Show how far a migration has come."""
    n_to_do, n_without_state = result["rest"], result["states"].get("", 0)
    n_written = 0  # by programs that write new vectors since the cut-over, which have no state
    if result["phase"] == CUT_OVER:
        n_written = n_without_state - n_to_do
    else:
        n_to_do = max(n_to_do, n_without_state)  # the first is counted up to a limit
    lines = [
        f"{result['address']}: {result['phase']} ({result['source']} -> {result['target']}, stitcher "
        f"{result['stitcher']}, begun {result['started']})",
        *(
            f"  {n_rows:>12,}  {STATES.get(state, state)}"
            for state, n_rows in sorted(result["states"].items())
            if state and n_rows
        ),
        *([f"  {n_written:>12,}  written since the cut-over"] if n_written > 0 else []),
        f"  {n_to_do:>12,}  to do, because the new vector is missing or out of date",
    ]
    if result["placement"] is not None:
        lines.append(f"  {result['placement']}")
    written = result["written_since"]
    if written is not None:
        lines.append(_written_line(written, result["source"]))
    verification = result["verification"]
    if verification is not None:
        word = "passed" if verification["passed"] else "failed"
        lines.append(
            f"  verified {verification['at']}: {word}" + ("" if verification["complete"] else ", not by search")
        )
    lines.append(ADVICE[result["phase"]])
    return "\n".join(lines)


def _written_line(written: Mapping[str, float], source: str) -> str:
    if written["recognised"] < LEAST_RECOGNISED:
        return f"  {'?':>12}  of {written['rows']:,} rows written since the cut-over: {source} looks like the new space"
    return (
        f"  {written['look_old']:>12,}  of {written['rows']:,} rows written since the cut-over look like {source} "
        f"({written['recognised']:.0%} of its rows would)"
    )


def state_line(phase: str) -> str:
    """Say what state a migration is in, and what the next step is."""
    return f"State: {phase}. {ADVICE[phase]}"


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
        ends = "" if quality["interval"] is None else f" {_interval(quality['interval'])}"
        lines.append(
            f"Quality:     recall@1 {num(quality['recall@1'])}{ends} in a pool of {quality['pool']:,}, on the "
            "held-out pairs of the scorecard" + (f"; verdict: {quality['verdict']}" if quality["verdict"] else "")
        )
    advice = {"unknown": "; train with --own rows of this table, and verify with --target or --queries"}
    likeness = "" if quality["likeness"] is None else f". {quality['likeness']}"
    domain = quality["in_your_domain"]
    lines.append(f"             in your domain: {domain}{advice.get(domain, '')}{likeness}")
    expected = quality["expected"]
    if expected is not None:
        right = f"{num(expected['right'])} {_interval(expected['interval'])} of the right ten results are found"
        lines.append(f"             expected: {right} in a pool of {expected['pool']:,} rows of the table")
    return lines


def _interval(ends: Sequence[float]) -> str:
    return f"[{num(ends[0])}, {num(ends[1])}]"


def _mixed_lines(mixed: Mapping[str, Any] | None) -> list[str]:
    """Show how searches change while more and more rows are native."""
    if mixed is None:
        return []
    lines = [
        f"Mixed:       share of the right ten results, of {mixed['rows']:,} held-out rows of which some are native; "
        f"searched by {mixed['queries']}"
    ]
    is_corrected = mixed["length"] != 1
    more = ("corrected", "native results") if is_corrected else ()
    rows: list[tuple[str, ...]] = [("             native", "found", "native results", *more)]
    for plain, corrected in zip(mixed["plain"], mixed["with_length"], strict=True):
        row = [f"             {plain['share']:.0%}", num(plain["overlap"]), f"{plain['native_share']:.0%}"]
        rows.append((*row, *([num(corrected["overlap"]), f"{corrected['native_share']:.0%}"] if is_corrected else [])))
    lines.append(columns(rows))
    if is_corrected:
        is_stated = mixed.get("stated", True)
        lines.append(
            f"             corrected: {'' if is_stated else 'possible '}with --translated-length {mixed['length']:g}"
        )
        if not is_stated:
            lines.append("             By judged questions a length may lose what it gains here; compare with --qrels.")
        lines += [f"             {mixed['how']}"] if "how" in mixed else []
    return lines


def _share_lines(curve: Sequence[Mapping[str, Any]] | None, chosen: Mapping[str, Any] | None) -> list[str]:
    """Show what re-embedding a share of the rows gains, and how many rows were chosen."""
    lines: list[str] = []
    if curve is not None and chosen is not None:
        lines.append(
            "Re-embed:    share of the right ten results if some rows are embedded anew (held-out rows search)"
        )
        rows: list[tuple[str, ...]] = [("             anew", "dense rows", "random rows")]
        rows += [(f"             {p['share']:.0%}", num(p["overlap"]), num(p["random"])) for p in curve]
        lines.append(columns(rows))
        lines.append(
            "             Questions that people ask may gain less than rows do; verify with --queries, --qrels."
        )
    if chosen is not None:
        lines.append(
            f"             {chosen['rows']:,} rows chosen ({chosen['share']:.0%}); their ids are in {chosen['ids_out']}"
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
    note = "" if result["same_pool"] else f"; the scorecard's pool is {result['card_pool']:,}"
    return f"{mark(result)}  {text}; the scorecard has {num(result['card'])}{note}"


def _why_incomplete(by_map: Mapping[str, Any] | None) -> str:
    if by_map is None:
        return "too few held-out rows of the stitcher are in this table, and no queries were passed"
    return (
        f"{by_map['pool']:,} of {by_map['card_pool']:,} held-out rows are in this table; half of the scorecard's pool "
        "is needed"
    )


def _milliseconds(times: Mapping[str, float] | None) -> tuple[str, str]:
    return ("-", "-") if times is None else (f"{times['p50_ms']:.2f}", f"{times['p99_ms']:.2f}")
