"""Finds out which node is which party; called at the start of a session and before each attempt.

A node is asked `describe` once. It counts only when it runs the protocol's release and has approved this very protocol;
a node that does not answer, or does not fit yet, is asked again at the next call while somebody is missing. A node that
is not connected any more stands for nobody; it is asked anew when it comes back, under the same id or another one.
"""

from __future__ import annotations

from server.aggregation.flower import Answer
from server.rounds.study import Study, plain
from shared_model.errors import SignatureError
from shared_model.messages import DescribeReply, DescribeRequest, ErrorReply, Frame
from shared_model.signing import VerifyKey

DESCRIBE_S = 120.0  # a describe computes nothing, but couriers poll and start a process for each message


def missing_sites(study: Study) -> list[str]:
    """Names of the protocol's sites that no node stands for, in name order."""
    return sorted(site.name for site in study.protocol.federation.sites if site.name not in study.roster.sites)


def call_roll(study: Study) -> None:
    """Forget the nodes that are gone, and ask those that stand for nobody who they are; nothing is sent when nobody is
    missing."""
    roster, connected = study.roster, study.exchange.nodes()
    bound = None if study.bound is None else study.bound()
    if bound is not None:  # a node that nobody is enrolled with is not even asked, nor is a site of another study
        sites = {site.name for site in study.protocol.federation.sites}
        connected = tuple(node for node in connected
                          if node in bound and (bound[node][1] == "evaluator" or bound[node][0] in sites))  # fmt: skip
    _forget(study, connected)
    if not missing_sites(study) and roster.evaluator:
        return
    settled = roster.settled
    unknown = [node for node in connected if node not in settled]
    if not unknown:
        return
    timeout = min(DESCRIBE_S, study.protocol.federation.deadline_s)
    answers = study.exchange.ask({node: Frame(DescribeRequest()) for node in unknown}, timeout_s=timeout)
    with study.journal.entry():
        for node in unknown:
            _settle(study, node, answers[node], enrolled=None if bound is None else bound[node])


def _forget(study: Study, connected: tuple[int, ...]) -> None:
    roster = study.roster
    gone = roster.gone(connected)
    roster.refused = {node: words for node, words in roster.refused.items() if node in connected}
    if not gone:
        return
    with study.journal.entry():
        for name in gone:
            roster.forget(name)
            study.note("site_absent", "its node is not connected any more", severity="warning", code="lost", site=name)


def _settle(study: Study, node: int, answer: Answer, *, enrolled: tuple[str, str] | None) -> None:
    reply = answer.frame.message if answer.frame else None
    if not isinstance(reply, DescribeReply):
        words = reply.reason if isinstance(reply, ErrorReply) else answer.detail or "it answered with another message"
        text = f"node {node} does not say who it is: {plain(words)}"
        study.note("site_absent", text, severity="warning", code="no_answer")
        return
    fault = _fault(study, reply, enrolled)
    if fault:
        code, text = fault
        if study.roster.refused.get(node) == text:
            return  # said once is enough
        study.roster.refused[node] = text
        site = reply.site if enrolled is None else enrolled[0]  # whose node it is, whatever it says
        study.note("alarm", f"node {node} is left out: {text}", severity="warning", code=code, site=site)
        return
    study.roster.refused.pop(node, None)
    if reply.role == "evaluator":
        study.roster.evaluator, study.roster.evaluator_node = reply.site, node
    else:
        study.roster.sites[reply.site] = node
        if study.protocol.summed and reply.key is not None:
            study.roster.keys[reply.site] = VerifyKey.from_hex(reply.key)
    study.note("site_present", f"{reply.role}, {plain(reply.device)}", site=reply.site)


def _fault(study: Study, reply: DescribeReply, enrolled: tuple[str, str] | None) -> tuple[str, str] | None:
    """Why a node cannot take part: a stable code and words, or None."""
    protocol, roster = study.protocol, study.roster
    if enrolled is not None and (reply.site, reply.role) != enrolled:
        name, role = enrolled
        return "another_name", f"it says that it is {reply.site} ({reply.role}), and was enrolled as {name} ({role})"
    if reply.release != protocol.release:
        return "release", f"it runs release {plain(reply.release)}, the protocol is for {protocol.release}"
    if protocol.summed and reply.role == "site" and not _is_key(reply.key):
        return "no_key", "its trainer names no signing key, without which nothing is summed securely"
    if protocol.sha256 not in reply.protocols:
        return "not_approved", "its administrator has not approved this protocol"
    if reply.role == "site" and reply.site not in {site.name for site in protocol.federation.sites}:
        return "unknown_site", "its name is not in the protocol"
    # Without enrolment nobody can tell which of two nodes with one name is genuine; the first one keeps the name.
    if reply.role == "site" and reply.site in roster.sites:
        return "second_node", "another node already stands for this site"
    if reply.role == "evaluator" and roster.evaluator:
        return "second_node", "another node already is the evaluator"
    return None


def _is_key(text: str | None) -> bool:
    try:
        return text is not None and VerifyKey.from_hex(text) is not None
    except SignatureError:
        return False
