"""The result of a run as one page of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secateur.records import Score, Trial, Trials
from secateur.text import MISSING, data_size, quantity, three
from secateur.train.compress.setting import ACCURACY

__all__ = ["headline", "in_digits", "page"]

_SHOWN = 8
_LARGE = 10


def page(record: Trials) -> str:
    """The goal and whether it is met, dense, chosen and rivals side by side, the frontier, where the files are.

    Args:
        record: of a run.

    Returns:
        Lines without a newline at the end.
    """
    chosen = record.point(record.chosen)
    lines = [_goal(record), ""]
    chosen_on = "" if record.split == "valid" else ", chosen on valid"
    lines += [f"on {record.split}{chosen_on}; ms per call of {record.batch}, beside your model's in the same rounds:"]
    lines += _table(record, chosen)
    lines += ["", *_sentences(record, chosen), "", *_frontier(record)]
    if record.notes:
        lines += ["", *(f"note: {note}" for note in record.notes)]
    lines += ["", _files(record)]
    return "\n".join(lines)


def in_digits(value: float, score: Score, *, signed: bool = False) -> str:
    """A metric or a change of it: two decimals, four where the dense model's is below 10, as of a fraction or a loss.

    Args:
        value: to be shown.
        score: of any model on that data.
        signed: with its sign, as a change.

    Example:
        >>> in_digits(0.5, Score("valid", 90.0, 2.0)), in_digits(-0.0123, Score("valid", 0.9, 0.0123), signed=True)
        ('0.50', '-0.0123')
    """
    places = 2 if abs(score.value + score.drop) >= _LARGE else 4
    if not signed:
        return f"{value:.{places}f}"
    return f"{value if abs(value) >= 0.5 * 10.0**-places else 0.0:+.{places}f}"


def headline(record: Trials) -> str:
    """What was asked, whether it is met, and the change of a metric of the user's own, in one line for a title.

    Args:
        record: of a run.
    """
    told, dense = record.point(record.chosen).told, record.dense.told
    line = f"{_asked(record)}: {'met' if record.met else 'not met'}"
    if record.metric == ACCURACY:
        return line
    return (
        f"{line}; {record.metric} on {record.split} {in_digits(dense.value, dense)} -> {in_digits(told.value, dense)}"
    )


def _asked(record: Trials) -> str:
    asked = list[str]()
    for name, value in record.goal.items():
        if name == "max_drop":
            asked.append(f"at most {value:g} points lost")
        elif name == "speedup":
            asked.append(f"{value:g} x as fast")
        else:
            limit = record.limits[name]
            figure = {"bytes": f"a file of {data_size(int(limit))}", "params": f"{quantity(limit)} parameters"}
            asked.append(f"at most {figure.get(name, f'{quantity(limit)} multiply-adds')}")
    return ", ".join(asked)


def _goal(record: Trials) -> str:
    verdict = "met" if record.met else f"NOT MET by any of {len(record.points)} points"
    told = f"goal: {_asked(record)}: {verdict}"
    return told if record.met else f"{told}; the nearest misses: {'; '.join(record.missed)}"


def _table(record: Trials, chosen: Trial) -> list[str]:
    errors = any(trial.told.standard_error is not None for trial in record.points)
    head = ("", record.metric, "change ± s.e." if errors else "change", "file", "params", "MACs", "ms / yours", "speed")
    rows = [_row("your model", record.dense), _row("chosen" if record.met else "nearest", chosen)]
    rows += [_row(rival.name, rival.trial) for rival in record.rivals if rival.trial is not None]
    return _columns([head, *rows])


def _row(name: str, trial: Trial) -> tuple[str, ...]:
    dense = trial.key == "dense"
    return (
        name,
        in_digits(trial.told.value, trial.told),
        "" if dense else _change(trial),
        data_size(trial.bytes),
        quantity(trial.params),
        quantity(trial.macs),
        three(trial.ms) if dense else f"{three(trial.ms)} / {three(trial.ms * trial.speedup)}",
        "" if dense else f"{trial.speedup:.2f} x",
    )


def _change(trial: Trial) -> str:
    error = trial.told.standard_error
    change = in_digits(-trial.told.drop, trial.told, signed=True)
    return change + ("" if error is None else f" ± {in_digits(error, trial.told)}")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{c:>{width}}" for c, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _sentences(record: Trials, chosen: Trial) -> list[str]:
    shares = [f"{100 * share:.1f} %" for share in chosen.sparsities]
    began = "" if chosen.untrained is None else f" (untrained: {in_digits(chosen.untrained, chosen.valid)} on valid)"
    lines = [
        f"{'chosen' if record.met else 'nearest'}: {chosen.family}, {' then '.join(shares)} removed; trained "
        f"{chosen.epochs} epochs, {three(chosen.seconds)} s{began}"
    ]
    lines += list(_losses(record, chosen))
    lines.append(_time(record, chosen))
    for rival in record.rivals:
        lines.append(f"{rival.name}: {rival.note}{_verdict(record, chosen, rival.trial)}")
    return lines


def _time(record: Trials, chosen: Trial) -> str:
    low, high = chosen.spread
    differ = f"equal models differ by {low:.2f} to {high:.2f} here"
    if chosen.speedup > high:
        return f"time: {chosen.speedup:.2f} x as fast, measured; {differ}"
    if chosen.speedup < low:
        return f"time: slower than your model ({chosen.speedup:.2f} x; {differ}); for speed stay dense"
    if "speedup" in record.goal and record.met:
        return f"time: {chosen.speedup:.2f} x is the ratio of medians, but {differ}: too busy a machine to be sure"
    masked = "; masked weights run as before" if chosen.macs == record.dense.macs else ""
    return f"time: no gain ({chosen.speedup:.2f} x; {differ}){masked}"


def _losses(record: Trials, chosen: Trial) -> Iterable[str]:
    told = chosen.told
    if record.split == "valid":
        yield "figures are of valid, on which points were chosen too, so they flatter; give test= for some that do not"
    if told.standard_error is None or not told.standard_error:
        return
    if abs(told.drop) <= 2 * told.standard_error:
        yield f"the change on {told.split} is inside two standard errors: not measurable with so few samples"
    elif told.split == "test" and told.drop > record.goal.get("max_drop", told.drop):
        yield (
            f"on test {told.drop:.2f} points are lost, more than asked for; on valid, by which it was chosen, "
            f"{chosen.valid.drop:.2f}"
        )


def _verdict(record: Trials, chosen: Trial, rival: Trial | None) -> str:
    """Where the rival is about as good in everything, the user should hear it."""
    if rival is None or rival.told.value < chosen.told.value or rival.bytes > 1.1 * chosen.bytes:
        return ""
    slower = rival.speedup < 0.9 * chosen.speedup  # each against the dense model of its own rounds
    if slower or ("macs" in record.goal and rival.macs > 1.1 * chosen.macs):
        return ""
    return ". It does as well in metric, bytes and time as the chosen one: think of taking it"


def _frontier(record: Trials) -> list[str]:
    points = [record.point(key) for key in record.frontier]
    if not points:
        return [f"frontier: none of {len(record.points)} points is better than your model in metric, bytes or MACs"]
    head = ("", "change", "file", "MACs", "speed", "removed")
    rows = [
        (
            f"{'*' if point.key == record.chosen else ' '} {point.family}",
            in_digits(-point.told.drop, point.told, signed=True),
            f"1/{record.dense.bytes / point.bytes:.1f}",
            f"1/{record.dense.macs / point.macs:.1f}" if point.macs else MISSING,
            f"{point.speedup:.2f} x",
            " then ".join(f"{100 * share:.1f} %" for share in point.sparsities),
        )
        for point in points[:_SHOWN]
    ]
    more = [f"  and {len(points) - _SHOWN} more in .frontier"] if len(points) > _SHOWN else []
    return [
        f"frontier: {len(points)} of {len(record.points)} points, than which none is better in metric, bytes and MACs:",
        *_columns([head, *rows]),
        *more,
    ]


def _files(record: Trials) -> str:
    if record.folder is None:
        return "nothing was written: sc.save(result.model, path) writes the chosen one; folder= keeps every point"
    return f"files: {record.folder}/points/{record.chosen}.safetensors is the chosen one; every point in trials.jsonl"
