"""The verbs of the compiler, imported as ``fxdistill.passes``; ``passes/README.md`` lists them in order."""

if __name__ != "fxdistill.passes":  # a second copy of every class would exist under the bare name
    raise ImportError("import fxdistill.passes instead of the bare package 'passes'")
