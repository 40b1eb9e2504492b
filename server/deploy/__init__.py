"""The coordinator as it runs: home folder, SuperLink under supervision, studies, daemon; used by `server/cli`."""
