"""Who may take part: certificate authority, invitations, registry of members, and the gateway that lets them in."""
