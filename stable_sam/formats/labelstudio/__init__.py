"""The format of Label Studio: JSON tasks with brush masks."""
