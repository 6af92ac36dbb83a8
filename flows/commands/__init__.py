"""One module for each command of `stable-sam`: a function whose typer annotations are its options.

The functions import torch, prefect and ray themselves, so that `--help` and wrong options are answered at once.
"""
