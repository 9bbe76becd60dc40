"""The report on a data set as one HTML file that loads nothing: no script, no other file, pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from guided.data_check import DataReport, FoldWay, Group, Twins

SHOWN = 50  # rows of a long table

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5d676f; --line: #d9dee2; --page: #fff; --card: #f5f7f8;
  --wrong: #b3261e; --doubtful: #8a5a00; --note: #245b8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9eb; --soft: #a1abb3; --line: #3a434a; --page: #15191c;
  --card: #1e2428; --wrong: #ff8a80; --doubtful: #f0b860; --note: #8fc1f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.soft, .soft { color: var(--soft); }
ul.remarks { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .5rem; }
ul.remarks li { background: var(--card); border-left: 4px solid var(--note); padding: .5rem .8rem; }
ul.remarks li.wrong { border-color: var(--wrong); } ul.remarks li.doubtful { border-color: var(--doubtful); }
ul.remarks b { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
td.id { overflow-wrap: anywhere; min-width: 12rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .7rem; background: #0072B2; vertical-align: middle; min-width: 1px; }
.swatch { display: inline-block; width: 1.1rem; height: 1.1rem; border: 1px solid var(--line); vertical-align: middle; }
figure { margin: 0 0 1.2rem; } figcaption { margin-bottom: .3rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(60px, 1fr)); gap: 2px; }
.tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; }
@media (max-width: 500px) { table { font-size: .82rem; } th, td { padding-right: .5rem; } }
"""


def data_page(report: DataReport) -> str:
    """The page; every name in it is escaped, and a policy in its head forbids scripts and requests."""
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{escape(report.name)}: data check</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(report.name)}</h1>",
        f"<p class=soft>{report.cells:,} cells of {len(report.classes)} classes, read from a {report.kind}</p>",
        _remarks(report),
        _classes(report),
        _folds(report.folds),
        _groups(report.groups),
        _twins(report.twins),
        _unreadable(report),
        _montages(report),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _remarks(report: DataReport) -> str:
    if not report.remarks:
        return "<p>Nothing is wrong with it.</p>"
    items = [
        f"<li class={remark.level}><b>{escape(remark.told)}</b>{escape(remark.consequence)}</li>"
        for remark in report.remarks
    ]
    return f"<ul class=remarks>{''.join(items)}</ul>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of HTML cells; columns in `numbers` stand to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return f"<div class=scroll><table><tr>{line('th', head)}</tr>{body}</table></div>"


def _classes(report: DataReport) -> str:
    most = max(report.classes.values())
    rows = [
        (
            escape(label),
            f"{count:,}",
            f"{count / report.cells:.1%}",
            f'<span class=bar style="width:{9 * count / most:.2f}rem"></span>',
        )
        for label, count in sorted(report.classes.items(), key=lambda item: -item[1])
    ]
    return "<h2>Classes</h2>" + _table(("class", "cells", "share", ""), rows, (1, 2))


def _folds(ways: Sequence[FoldWay]) -> str:
    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1%}"

    rows = [
        (
            "single cell" if way.group == "none" else way.group,
            f"{way.groups:,}",
            f"{way.most:,}" if not way.refused else escape(way.refused),
            *(
                ("", "", "", "", "")
                if way.refused
                else (str(way.folds), str(way.lacking), share(way.patient), share(way.region), share(way.twin))
            ),
        )
        for way in ways
    ]
    head = ("folds by", "groups", "at most", "told for", "lack a class", "patient", "region", "duplicate")
    return (
        "<h2>Folds</h2><p class=soft>The last three columns are what leaks: the share of test cells whose patient, "
        "region or duplicate stands in training too.</p>" + _table(head, rows, (1, 2, 3, 4, 5, 6, 7))
    )


def _groups(groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    rows = []
    for group in groups:
        red, green, blue = (round(value) for value in group.colour)
        rows.append(
            (
                f"{escape(group.column)} {escape(group.name)}",
                f"{group.cells:,}",
                str(group.classes),
                f"{group.width:g} x {group.height:g}",
                f'<span class=swatch style="background:rgb({red},{green},{blue})"></span> {red} {green} {blue}',
                f"{group.contrast:.0f}",
                f"{group.shift:.1f}",
            )
        )
    head = ("group", "cells", "classes", "median size", "mean colour", "contrast", "shift")
    return (
        "<h2>Groups</h2><p class=soft>Shift: how far the mean colour lies from that of all other cells of the same "
        "classes, in standard deviations of single cells.</p>" + _table(head, rows, (1, 2, 5, 6))
    )


def _twins(sets: Sequence[Twins]) -> str:
    if not sets:
        return ""
    # First what contradicts or leaks most.
    order = sorted(sets, key=lambda each: (-len(each.columns), -len(each.ids)))
    rows = [
        (
            "equal" if each.exact else "alike",
            escape(", ".join(each.columns)) or "nothing",
            "<br>".join(
                f"{escape(name)} <span class=soft>{escape(label)}</span>"
                for name, label in zip(each.ids[:6], each.labels[:6], strict=True)
            )
            + (f"<br>… and {len(each.ids) - 6} more" if len(each.ids) > 6 else ""),
        )
        for each in order[:SHOWN]
    ]
    more = f"<p class=soft>… and {len(sets) - SHOWN} more sets</p>" if len(sets) > SHOWN else ""
    return f"<h2>Duplicates</h2>{_table(('pictures', 'differ in', 'cells'), rows)}{more}"


def _unreadable(report: DataReport) -> str:
    if not report.unreadable:
        return ""
    rows = [(f"{line}", escape(name), escape(reason)) for line, name, reason in report.unreadable[:SHOWN]]
    more = len(report.unreadable) - SHOWN
    told = f"<p class=soft>… and {more} more</p>" if more > 0 else ""
    return f"<h2>What cannot be used</h2>{_table((report.unit, 'cell', 'reason'), rows, (0,))}{told}"


def _montages(report: DataReport) -> str:
    figures = [
        f"<figure><figcaption><b>{escape(label)}</b> <span class=soft>{report.classes[label]:,} cells</span>"
        f"</figcaption><div class=tiles>{''.join(map(_picture, tiles))}</div></figure>"
        for label, tiles in report.montage.items()
    ]
    return f"<h2>What the cells look like</h2>{''.join(figures)}"


def _picture(tile: Image.Image) -> str:
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
