"""A passport as people read it in a terminal; figures always with their n and interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from shared_model.passport.document import JointPart, Passport, Score, SitePart
from shared_model.passport.signed import SignedPassport

LABELS = {"fused": "Films + table", "image": "Films alone", "clinical": "Table alone", "initial": "Initial"}
JOINT_LABELS = LABELS | {"public": "Initial"}
LEFT = 16  # width of the words on the left


def signer_words(signed: SignedPassport, *, key_given: bool) -> str:
    """Who signed, and what that is worth."""
    signer = signed.signer
    if signer.kind == "run":
        return ("fits; of a key that was made for this passport alone and forgotten: nothing was changed since, and "
                "nobody vouches for who made it")  # fmt: skip
    if key_given:
        return f"fits; of the coordinator {signer.name}, with the key that is known here"
    return (f"fits; of the coordinator {signer.name}, by the passport's own word. Key {signer.key}, to compare: "
            f"{signer.verify_key.fingerprint}")  # fmt: skip


def print_passport(signed: SignedPassport, *, key_given: bool, console: Console | None = None) -> None:
    """Print a passport: what it is, how well it did, what it cost, who took part, what it must not be used for."""
    out, said = console or Console(), signed.passport
    for left, right in _head(signed, key_given=key_given):
        out.print(f"{left:{LEFT}}{right}", highlight=False, markup=False, soft_wrap=True)
    out.print(_scores(said))
    if said.metrics.sites:
        out.print(_table("At each hospital, on its own test women (as released: noised where there is privacy)",
                         ("Hospital", "Women", "Cancer", "AUC"),
                         ((name, *_women(score), auc(score))
                          for name, score in said.metrics.sites.items())))  # fmt: skip
    if said.metrics.joint is not None:
        out.print(_together(said.metrics.joint))
    out.print(_sites(said))
    out.print("Limits of use", style="bold")
    for limit in said.limits:
        out.print(f"- {limit}", highlight=False, markup=False)


def _women(score: Score) -> tuple[str, str]:
    return _count(score.n), _count(score.positives)


def _count(women: float | None) -> str:
    return "few" if women is None else f"{women:.0f}"


def auc(score: Score) -> str:
    """`0.873 (0.843-0.898)`, or a dash; without bounds where one score for all women makes them meet."""
    if score.auc is None:
        return "–"
    low, high = score.auc_low, score.auc_high
    return f"{score.auc:.3f}" + ("" if low is None or high is None or low == high else f" ({low:.3f}-{high:.3f})")


def _head(signed: SignedPassport, *, key_given: bool) -> Iterable[tuple[str, str]]:
    said = signed.passport
    rounds = f"{said.rounds_closed} of {said.rounds_planned} rounds"
    yield "Study", f"{said.study}, {said.status}, {rounds}, made {said.made}"
    yield "Passport", signed.sha256
    yield "Signature", signer_words(signed, key_given=key_given)
    if said.replaces:
        yield "Replaces", f"{said.replaces[0]}: signed again when heat maps had been measured"
    yield "Protocol", said.protocol_sha256
    yield "Weights", f"{said.model.sha256} (round {said.model.round}, {said.model.rule})"
    yield "Model", (f"{said.model.size}, {said.model.fusion} fusion, {said.model.parameters:,} weights, begun from "
                    f"{said.model.origin} ones: {said.model.recipe}")  # fmt: skip
    yield "Data", said.data.words
    yield "Prepared by", (f"contract {said.data.contract_version} ({said.data.contract_sha256[:12]}), pipeline "
                          f"{said.data.pipeline_sha256[:12]}, {said.data.height} x {said.data.width} pixels of "
                          f"{said.data.spacing_mm:g} mm")  # fmt: skip
    yield "Privacy", _privacy(said)
    yield "Software", (f"release {said.software.release}, code {said.software.code_sha256[:12]}, "
                       f"{said.software.components} components in the bill of materials")  # fmt: skip
    head = said.record.head
    yield "On record", "no audit log on one machine" if head is None else (
        f"audit log of {head.head.owner}, entry {head.head.sequence}, {head.head.sha256[:16]}")  # fmt: skip


def _privacy(said: Passport) -> str:
    terms = said.privacy
    if terms.mode == "none":
        return "none beyond keeping the data at home"
    spent = [row.epsilon for row in terms.sites if row.epsilon is not None]
    most = f"at most epsilon {max(spent):.2f}" if spent else "epsilon not known"
    unheard = [row.site for row in terms.sites if row.unheard]
    lost = f"; answers of {', '.join(unheard[:8])} were lost: they may have spent all their budget" if unheard else ""
    return (f"{most} for each {terms.unit} (planned {terms.planned_epsilon:g}), delta {terms.delta:g}, "
            f"{terms.adjacency.replace('_', ' ')}, accountant {terms.accountant}{lost}")  # fmt: skip


def _scores(said: Passport) -> Table:
    rows = []
    for name, score in said.metrics.test.items():
        rows.append((LABELS.get(name, name), *_women(score), auc(score),
                     _share(score, "sensitivity"), _share(score, "specificity")))  # fmt: skip
    title = (f"On held-out women, opened once ({100 * said.metrics.confidence:.0f} % intervals; threshold for a "
             f"specificity of {100 * said.model.specificity:.0f} % on others)")  # fmt: skip
    return _table(title, ("Model", "Women", "Cancer", "AUC", "Sensitivity", "Specificity"), rows)


def _share(score: Score, name: str) -> str:
    value, low, high = (getattr(score, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" + ("" if low is None or high is None else f" ({100 * low:.0f}-{100 * high:.0f})")


def _together(joint: JointPart) -> Table:
    """All hospitals' own women, and how their figures came about."""
    charged = "" if joint.epsilon is None else f", at most epsilon {joint.epsilon:.2f} a hospital"
    how = "exact, summed under masks; no epsilon covers it" if joint.how == "masked" else f"counts with noise{charged}"
    title = f"On the own test women of {joint.sites} hospitals together, joint histograms of {joint.bins} bins ({how})"
    if joint.withheld:
        return _table(f"{title}: {joint.withheld}", ("Model",), ())
    rows = [(JOINT_LABELS.get(name, name), *_women(score), auc(score)) for name, score in joint.models.items()]
    return _table(title, ("Model", "Women (to tens)", "Cancer", "AUC"), rows)


def _sites(said: Passport) -> Table:
    spent = {row.site: row for row in said.privacy.sites}
    rows = []
    for site in said.sites:
        row = spent.get(site.name)
        epsilon = "–" if row is None or row.epsilon is None else f"{row.epsilon:.2f} of {row.budget:.2f}"
        rows.append((site.name, f"{site.patients}", _participation(site), epsilon))
    return _table("Hospitals (training patients, rounded)", ("Hospital", "Patients", "Rounds", "Epsilon"), rows)


def _participation(site: SitePart) -> str:
    """`contributed 1-4, 6; late 5`."""
    places: dict[str, list[str]] = {}
    for span in site.rounds:
        where = f"{span.first}" if span.first == span.last else f"{span.first}-{span.last}"
        places.setdefault(span.outcome.replace("_", " "), []).append(where)
    shown = (f"{outcome} {', '.join(where[:6])}{', ...' * (len(where) > 6)}" for outcome, where in places.items())
    return "; ".join(shown) or "–"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0 or column in ("AUC", "Sensitivity", "Specificity"))
    for row in rows:
        table.add_row(*row)
    return table
