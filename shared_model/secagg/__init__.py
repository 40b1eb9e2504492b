"""Secure sum over hospitals: the coordinator learns the sum of the survivors' values and no single site's.

A library without network, Flower or torch; `Site` is the trainer's side, `Server` the coordinator's.
"""

from shared_model.secagg.fixed_point import FixedPoint
from shared_model.secagg.server import SecureSum, Server, Stage
from shared_model.secagg.session import Peer, Session, threshold
from shared_model.secagg.site import Contribution, Site

__all__ = ["Contribution", "FixedPoint", "Peer", "SecureSum", "Server", "Session", "Site", "Stage", "threshold"]
