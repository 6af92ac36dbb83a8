"""Label Studio (JSON tasks, with brush masks)."""
