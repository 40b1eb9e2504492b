"""How `site egress` shows the list of what left a site: a table for people, one JSON line a reply for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.privacy.egress_log import RELEASED, REPEATED
from client.privacy.egress_values import PROTECTIONS, Value
from shared_model.audit import Entry

Listed = tuple[Entry, list[Value]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Values of one reply with one purpose and one protection, together."""

    sequence: int
    time: str
    recipient: str
    study: str
    round: int | None
    what: str
    purpose: str
    protection: str
    count: int
    bytes: int
    sha256: str


def chosen(entries: Iterable[Listed], *, study: str | None) -> list[Listed]:
    """The entries of one study, or all."""
    return [(entry, values) for entry, values in entries if study is None or entry.fields.get("study") == study]


def lines_of(entries: Sequence[Listed]) -> Iterator[Line]:
    """Rows of the table. A model's tensors are one row for each protection; the list itself names each."""
    for entry, values in entries:
        groups: dict[tuple[str, str], list[Value]] = {}
        for value in values:
            groups.setdefault((value.purpose, value.protection), []).append(value)
        for (purpose, protection), members in groups.items():
            one = len(members) == 1
            yield Line(
                sequence=entry.sequence, time=entry.time, recipient=str(entry.fields["recipient"]),
                study=str(entry.fields.get("study") or ""), round=_number(entry.fields.get("round")),
                what=members[0].name if one else f"{len(members)} values, {members[0].name} to {members[-1].name}",
                purpose=purpose, protection=protection, count=len(members), bytes=sum(v.bytes for v in members),
                sha256=members[0].sha256 if one else str(entry.fields["reply_sha256"]),
            )  # fmt: skip


def documents(entries: Sequence[Listed]) -> Iterator[dict[str, Any]]:
    """One document an entry, with every value: name, purpose, shape, bytes, sha256, protection."""
    for entry, values in entries:
        fields = {name: value for name, value in entry.fields.items() if name != "values"}
        yield {"sequence": entry.sequence, "time": entry.time, "kind": entry.kind, **fields,
               "values": [asdict(value) for value in values]}  # fmt: skip


def summary(entries: Sequence[Listed]) -> dict[str, int]:
    """Bytes of values by protection, every protection named; and how many replies were repeated or only counted."""
    found: dict[str, int] = dict.fromkeys(PROTECTIONS, 0)
    repeated = counted = 0
    for entry, values in entries:
        for value in values:
            found[value.protection] += value.bytes
        repeated += entry.kind == REPEATED and "reply_sha256" in entry.fields
        counted += sum(int(str(count)) for name, count in entry.fields.items() if name.startswith("unlisted_"))
    return {**found, "repeated": repeated, "counted": counted}


def show(entries: Sequence[Listed], console: Console) -> None:
    """Print the table, what it adds up to, and what the words mean. It fits a terminal of 80 columns: what a reply's
    values have in common stands once, above them."""
    table = Table(title="What left this site", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("value, and why")
    table.add_column("protection", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    last = 0
    for line in lines_of(entries):
        if line.sequence != last:
            about = f"{line.study}, round {line.round}" if line.round is not None else line.study or "no study"
            table.add_row(f"[bold]{line.time[:19].replace('T', ' ')} UTC to {escape(line.recipient[:40])}[/bold] "
                          f"({escape(about)})", end_section=False)  # fmt: skip
            last = line.sequence
        red = line.protection == "unprotected" and line.count > 1
        table.add_row(f"  {escape(line.what)} [dim]{escape(line.purpose)}[/dim]",
                      f"[red]{line.protection}[/red]" if red else line.protection, f"{line.bytes:,}",
                      line.sha256[:8])  # fmt: skip
    console.print(table)
    total = summary(entries)
    for name, words in PROTECTIONS.items():
        if total[name]:
            console.print(f"{name:12} {total[name]:,} bytes: {words}", highlight=False)
    replies = len({str(entry.fields["reply_sha256"]) for entry, _ in entries if entry.kind == RELEASED})
    console.print(f"Replies      {replies} different ones, {total['repeated']} repeated with the same bytes, "
                  f"{total['counted']} more only counted", highlight=False)  # fmt: skip


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def as_json(entries: Sequence[Listed]) -> str:
    """All documents, one a line."""
    return "\n".join(json.dumps(document) for document in documents(entries))
