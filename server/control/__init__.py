"""The coordinator's control service: enrolment, renewal, protocols, heartbeats and events, over gRPC."""
