"""The answer of a comparison in sentences: better than public weights, better than alone, by how much, at which price
in privacy, and for whom not. For the comparison's report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.reporting.claims import interval
from server.reporting.for_whom import for_whom
from server.reporting.smallness import how_little
from shared_model.evaluation.gain import too_few

Arm = Mapping[str, Any]
OWN = {"local": "their own models, trained without noise", "local_noised": "their own models under the same privacy"}


def verdict(row: Mapping[str, Any], name: str = "difference") -> str:
    """`better`, `worse` or `not shown` from an interval."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return "not shown"
    return "better" if low > 0 else "worse" if high < 0 else "not shown"


def headline(document: Mapping[str, Any]) -> list[str]:
    """Sentences in order of weight."""
    arms: Mapping[str, Arm] = document["arms"]
    plain = next(iter(arms.values()))
    found = [_public(document, plain), _little(document, plain), _alone(plain), *_prices(document),
             for_whom(plain["subgroups"], plain["models"]["federated"]["auc"])]  # fmt: skip
    return [sentence for sentence in found if sentence]


def women(document: Mapping[str, Any]) -> str:
    """`7,929 held-out women (1,961 with cancer) of 5 populations`."""
    rows = document["populations"]
    n, positives = sum(r["n"] for r in rows), sum(r["positives"] for r in rows)
    of = f" of {len(rows)} populations" if len(rows) > 1 else ""
    return f"{n:,} held-out women ({positives:,} with cancer){of}"


def _public(document: Mapping[str, Any], arm: Arm) -> str:
    gap, shared = arm["pairs"].get("federated_vs_public_only"), arm["models"]["federated"]
    kind = "with privacy" if arm["private"] else "without privacy"
    if gap is None:
        return f"Trained {kind}, the shared model has an AUC of {interval(shared, 'auc')} on {women(document)}."
    public = arm["models"]["public_only"]
    words = {"better": "beats", "worse": "is worse than", "not shown": "is not shown to beat"}[verdict(gap)]
    if too_few(shared["n"], shared["positives"]):
        words = "cannot be judged, for want of women, against"
    return (
        f"Trained {kind}, the shared model {words} the initial public weights: AUC {interval(shared, 'auc')} against "
        f"{interval(public, 'auc')}, a difference of {interval(gap, 'difference')}, on {women(document)}."
    )


def _little(document: Mapping[str, Any], arm: Arm) -> str:
    n, positives = (sum(row[key] for row in document["populations"]) for key in ("n", "positives"))
    shared = arm["models"]["federated"]
    if shared["auc"] is None:
        return ""
    return how_little(n, positives, shared["auc_low"], shared["auc_high"], kind=str(document["cohort"]),
                      confidence=document["confidence"])  # fmt: skip


def _alone(arm: Arm) -> str:
    """The shared model against the hospitals' own, on each one's own test women."""
    rows = {site: row["pairs"]["shared_vs_local"] for site, row in arm["sites"].items()
            if "shared_vs_local" in row["pairs"]}  # fmt: skip
    if not rows:
        return ""
    judged = {site: _at_site(arm, site, "shared_vs_local") for site in rows}
    few = [f"{site} ({arm['sites'][site]['n']:,} own test women, {arm['sites'][site]['positives']:,} with cancer)"
           for site, found in judged.items() if found == "too few"]  # fmt: skip
    if len(few) == len(rows):
        return f"Whether it beats what a hospital has alone cannot be judged: too few women at {', '.join(few)}."
    better = [site for site, word in judged.items() if word == "better"]
    words = [f"It beats what the hospital has alone at {len(better)} of {len(rows)} hospitals"]
    if better:
        gains = ", ".join(f"{site} {rows[site]['difference']:+.3f}" for site in better)
        words.append(f" ({gains} in AUC on the hospital's own test women)")
    for word, text in (("not shown", "a gain is not shown at"), ("worse", "it is worse at")):
        sites = [f"{site} {interval(rows[site], 'difference')}" for site, found in judged.items() if found == word]
        if sites:
            words.append(f"; {text} {', '.join(sites)}")
    if few:
        words.append(f"; too few women to judge at {', '.join(few)}")
    return "".join(words) + "."


def _at_site(arm: Arm, site: str, pair: str) -> str:
    """`verdict` on a site's own test women, or `too few`."""
    found = arm["sites"][site]
    return "too few" if too_few(found["n"], found["positives"]) else verdict(found["pairs"][pair])


def _prices(document: Mapping[str, Any]) -> list[str]:
    """One sentence an arm with privacy."""
    sentences = []
    for name, price in document["price"].items():
        arm = document["arms"][name]
        if arm["epsilon"] is None:
            continue
        sentence = (
            f"Protecting every patient with epsilon {arm['epsilon']:.2f} (delta {arm['delta']:g}, add or remove one "
            f"patient) costs {interval(price, 'difference')} in AUC; "
            f"{interval(arm['models']['federated'], 'auc')} remain"
        )
        if gap := arm["pairs"].get("federated_vs_public_only"):
            sentence += f", {interval(gap, 'difference')} more than public weights"
        sentence += "".join(_counted(arm, f"shared_vs_{name}", whose) for name, whose in OWN.items())
        sentences.append(sentence + ".")
    return sentences


def _counted(arm: Arm, pair: str, whose: str) -> str:
    judged = [_at_site(arm, site, pair) for site, row in arm["sites"].items() if pair in row["pairs"]]
    if not judged:
        return ""
    better, worse, few = judged.count("better"), judged.count("worse"), judged.count("too few")
    return (
        f". Against {whose}, {better} of {len(judged)} hospitals are better off, {worse} worse off, and for "
        f"{len(judged) - better - worse - few} the interval includes no difference"
        + (f"; {few} have too few women to judge" if few else "")
    )
