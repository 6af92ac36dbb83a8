"""One module for each command of `stable-sam`: a function whose typer annotations are its options.

Heavy imports (torch, prefect, ray) stand inside the functions, so that `--help` and mistakes are answered at once.
"""
