"""The courier's kit: a site's keys and certificate, its enrolment and renewal, and the tunnel to the coordinator."""
