"""pydstp inside other people's evaluation frameworks: lmms-eval and VLMEvalKit.

Neither is needed to use pydstp, and neither is imported but by the module that serves it. See
docs/evaluation_frameworks.md.
"""
