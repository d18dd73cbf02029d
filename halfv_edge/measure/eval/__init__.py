"""Quality, measured side by side."""
