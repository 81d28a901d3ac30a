"""The load generator: joins a run like rollout servers do and appends made-up groups, without any engine."""
