"""What a run should do: a typed schema, presets in YAML, overrides, and where each value came from."""
