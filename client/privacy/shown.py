"""Ledger, its check, a study's cost and the policy as tables or JSON; for `client.privacy.cli`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.privacy.book import GROUPS, account_of
from client.privacy.ledger import Ledger
from client.privacy.policy import Decision, PrivacyPolicy
from client.privacy.verify import Verified
from client.privacy.what_if import Outlook
from shared_model.plain_yaml import check_plain
from shared_model.protocol import Protocol

WHO = {"train": "trained on", "metrics": "tested on"}


def shown(ledger: Ledger, policy: PrivacyPolicy, *, delta: float, study: str | None = None) -> dict[str, Any]:
    """What `ledger show` shows, as plain values: groups, studies and entries.

    Raises:
        StorageError: the ledger cannot be read.
    """
    records, limit = ledger.records(), policy.epsilon_limit
    groups = [{"group": group, "patients": spender.count, "steps": spender.account.steps, "epsilon": epsilon,
               "left": None if limit is None else max(0.0, limit - epsilon)}
              for group in GROUPS for spender in ledger.spenders(group)
              for epsilon in [spender.account.epsilon(delta=delta)] if spender.count or spender.account.steps]
    studies = []
    for name in sorted({(r["study"], r["protocol_sha256"], r["group"]) for r in records}):
        its = [r for r in records if (r["study"], r["protocol_sha256"], r["group"]) == name]
        studies.append({
            "study": name[0], "protocol_sha256": name[1], "group": name[2], "reservations": len(its),
            "unsettled": sum(r["state"] == "reserved" for r in its), "rounds": len({r["round"] for r in its}),
            "epsilon": account_of(its).epsilon(delta=delta),
        })  # fmt: skip
    entries = [record for record in records if study is None or record["study"] == study]
    return {"delta": delta, "limit": limit, "groups": groups, "studies": studies, "entries": entries}


def print_ledger(found: dict[str, Any], *, as_json: bool, console: Console | None = None) -> None:
    """Print :func:`shown`."""
    if as_json:
        _json(found)
        return
    there, limit = console or Console(), found["limit"]
    allowed = "no limit of this site's own" if limit is None else f"limit {limit:g}"
    spent = _table(f"Spent, at delta {found['delta']:g}, {allowed}", "Women", "How many", "Steps", "Epsilon", "Left")
    for row in found["groups"]:
        spent.add_row(WHO[row["group"]], str(row["patients"] or "unnamed"), str(row["steps"]), f"{row['epsilon']:.3f}",
                      "-" if row["left"] is None else f"{row['left']:.3f}")  # fmt: skip
    there.print(spent if found["groups"] else "Nothing was spent here yet.")
    if not found["studies"]:
        return
    by = _table("By study (each alone; on the same women they compose to less than the sum)", "Study", "Protocol",
                "Women", "Rounds", "Entries", "Unsettled", "Epsilon")  # fmt: skip
    for row in found["studies"]:
        by.add_row(row["study"], row["protocol_sha256"][:12], WHO[row["group"]], str(row["rounds"]),
                   str(row["reservations"]), str(row["unsettled"]), f"{row['epsilon']:.3f}")  # fmt: skip
    there.print(by)
    lines = _table("Entries", "No", "When", "Study", "Protocol", "Round", "Women", "Mechanism", "State")
    for row in found["entries"]:
        lines.add_row(str(row["id"]), str(row["reserved_at"])[:19], row["study"], row["protocol_sha256"][:12],
                      f"{row['round']}.{row['attempt']}", f"{WHO[row['group']]} {(row['patients'] or 'unnamed')[:8]}",
                      f"Gaussian, sigma {row['noise_multiplier']:g}, q {row['sample_rate']:g}, {row['steps']} steps",
                      row["state"] if row["state"] == "settled" else "reserved: it counts")  # fmt: skip
    there.print(lines)


def print_verified(found: Verified, console: Console | None = None) -> None:
    """Print what holds of a ledger."""
    table = Table(show_header=False, title="The ledger is whole", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Chain", f"{found.entries} lines of ledger {found.log[:8]}, whole and in order; "
                  f"{found.reservations} reservations, {found.unsettled} of them unsettled (they count)")  # fmt: skip
    table.add_row("Anchor", "fits: this is not an older copy" if found.anchor else "[red]is gone[/red]")
    table.add_row("Audit log", f"{found.witnessed} entries hold the ledger's head, and fit up to line {found.covered}"
                  if found.witnessed else "holds no head of it: nobody else vouches for it")  # fmt: skip
    for one in found.comparisons:
        agree = "they agree" if one.agrees else "[red]they disagree[/red]"
        table.add_row(f"Epsilon, {WHO[one.group]}", f"{one.prv:.4f} by PRV (Opacus), {one.pld:.4f} by PLD "
                      f"(dp-accounting) at delta {found.delta:g}: {agree}")  # fmt: skip
    (console or Console()).print(table)


def print_outlook(
    protocol: Protocol, decision: Decision, costs: Sequence[Outlook], *, as_json: bool, console: Console | None = None
) -> None:
    """Print what a study would cost."""
    if as_json:
        _json({"study": protocol.study, "protocol_sha256": protocol.sha256, "delta": protocol.privacy.delta,
               "refusals": list(map(str, decision.refusals)), "clamps": list(map(str, decision.clamps)),
               "groups": [{"group": cost.group, "rounds": cost.rounds, "limit": cost.limit, "before": cost.before,
                           "after": cost.after, "affordable": cost.affordable,
                           "patients": [vars(kind) for kind in cost.kinds]} for cost in costs]})  # fmt: skip
        return
    there = console or Console()
    table = _table(f"{protocol.study}, {protocol.rounds} rounds, at delta {protocol.privacy.delta:g}", "Women",
                   "How many", "Epsilon now", "After it", "Limit", "")  # fmt: skip
    for cost in costs:
        for kind in cost.kinds:
            words = "" if kind.after <= cost.limit * (1 + 1e-6) else "the site abstains before its end"
            table.add_row(WHO[cost.group], str(kind.count or "any"), f"{kind.before:.3f}", f"{kind.after:.3f}",
                          f"{cost.limit:g}", words)  # fmt: skip
    if protocol.private:
        there.print(table)
    else:
        there.print("It trains without differential privacy: no epsilon bounds what it tells.")
    for clamp in decision.clamps:
        there.print(f"[yellow]This site changes[/yellow] {escape(str(clamp))}")
    for refusal in decision.refusals:
        there.print(f"[red]This site refuses it[/red]: {escape(str(refusal))}")


def print_policy(path: Path, console: Console | None = None) -> None:
    """Print a policy file line by line, whatever is wrong with it: :meth:`client.deploy.home.Policy.read` says that."""
    from client.deploy.policy_file import policy_lines

    try:
        text = path.read_text(encoding="utf-8")
        check_plain(text, source=str(path))
        values = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    said: dict[str, Any] = values if isinstance(values, dict) else {}
    table, missing = _table(str(path), "Line", "Value", "What it means"), []
    for name, field in PrivacyPolicy.model_fields.items():
        value = "[red]missing[/red]"
        if name in said:
            value = "[yellow]open[/yellow]" if said[name] is None else escape(json.dumps(said[name], default=str))
        else:
            missing.append(policy_lines()[name])
        table.add_row(name, value, field.description)
    there = console or Console()
    there.print(table)
    if missing:
        there.print("Nothing runs until these lines are in it, with values of your own:")
        for line in missing:
            there.print(f"  {line}", markup=False, soft_wrap=True, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _json(values: dict[str, Any]) -> None:
    Console().print(json.dumps(values, indent=1, allow_nan=False), markup=False, highlight=False, soft_wrap=True)
