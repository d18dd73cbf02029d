"""The profile of a model: its schema and rules, where it is kept, presets, and which one is in force."""
